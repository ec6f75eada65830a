//! How to reach the nodes and what to ask of them, as configured.

use std::time::Duration;

/// How to reach the nodes and what to ask of them.
#[derive(Debug, Clone)]
pub struct RiakSettings {
    /// Addresses of the nodes' protocol-buffers ports, `host:port`. Any node serves any key.
    pub hosts: Vec<String>,
    /// The bucket type that holds the records.
    pub bucket_type: String,
    /// Connections to each node.
    pub pool_size: usize,
    /// Until a connection is had.
    pub connect_timeout: Duration,
    /// Until a node has answered a request; then another one is asked.
    pub request_timeout: Duration,
    /// See [`Quorums`].
    pub quorums: Quorums,
}

/// How many replicas must answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quorums {
    /// Replicas that answer a read.
    pub r: Quorum,
    /// Primary replicas among them: without one, a key that exists may be told as missing.
    pub pr: Quorum,
    /// Replicas that have received a write.
    pub w: Quorum,
    /// Replicas that have stored it.
    pub dw: Quorum,
    /// Primary replicas among them.
    pub pw: Quorum,
}

/// A number of replicas as Riak takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quorum(pub u32);

/// More replicas than anybody keeps.
const REPLICAS_MAX: u32 = 64;

impl Quorum {
    /// One replica.
    pub const ONE: Self = Self(4_294_967_294);
    /// More than half of them.
    pub const QUORUM: Self = Self(4_294_967_293);
    /// Each of them.
    pub const ALL: Self = Self(4_294_967_292);
    /// What the bucket type says.
    pub const DEFAULT: Self = Self(4_294_967_291);

    /// Reads `one`, `quorum`, `all`, `default` or a number; the refusal says what it should be.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "one" => Ok(Self::ONE),
            "quorum" => Ok(Self::QUORUM),
            "all" => Ok(Self::ALL),
            "default" => Ok(Self::DEFAULT),
            number => match number.parse::<u32>() {
                Ok(number) if number <= REPLICAS_MAX => Ok(Self(number)),
                _ => Err(format!(
                    "should be one, quorum, all, default or a number of replicas up to {REPLICAS_MAX}"
                )),
            },
        }
    }
}

impl Quorum {
    /// How many replicas of so many that is, where the bucket type's own is known.
    pub(super) fn of(self, n_val: u32, of_type: Self) -> u32 {
        match self {
            Self::DEFAULT if of_type == Self::DEFAULT => 0,
            Self::DEFAULT => of_type.of(n_val, Self(0)),
            Self::ONE => 1,
            Self::QUORUM => n_val / 2 + 1,
            Self::ALL => n_val,
            Self(number) => number,
        }
    }
}

/// What a bucket type says of its replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OfType {
    /// Replicas of each key.
    pub(super) n_val: u32,
    /// Primary replicas that answer a read, where it does not say.
    pub(super) pr: Quorum,
    /// Primary replicas that store a write, where it does not say.
    pub(super) pw: Quorum,
}

/// What Riak gives a type that says nothing.
impl Default for OfType {
    fn default() -> Self {
        Self { n_val: 3, pr: Quorum(0), pw: Quorum(0) }
    }
}

impl Default for Quorums {
    fn default() -> Self {
        Self { r: Quorum::QUORUM, pr: Quorum(1), w: Quorum::QUORUM, dw: Quorum::QUORUM, pw: Quorum::QUORUM }
    }
}

/// Whether a text is an address of a node, and what it should be.
pub fn check_host(host: &str) -> Result<(), String> {
    let port = host.rsplit_once(':').filter(|(name, _)| !name.is_empty()).map(|(_, port)| port);
    match port.and_then(|port| port.parse::<u16>().ok()) {
        Some(1..) if !host.contains(['/', '@', ' ']) => Ok(()),
        _ => {
            Err("should be the host and protocol-buffers port of a node, such as \"127.0.0.1:8087\""
                .to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quorum_is_a_number_once_the_bucket_type_is_known() {
        for (asked, n_val, of_type, number) in [
            (Quorum::ONE, 3, Quorum(0), 1),
            (Quorum::QUORUM, 3, Quorum(0), 2),
            (Quorum::QUORUM, 5, Quorum(0), 3),
            (Quorum::QUORUM, 1, Quorum(0), 1),
            (Quorum::ALL, 5, Quorum(0), 5),
            (Quorum(2), 3, Quorum::ALL, 2),
            (Quorum(0), 3, Quorum::ALL, 0),
            (Quorum::DEFAULT, 3, Quorum(0), 0),
            (Quorum::DEFAULT, 3, Quorum::QUORUM, 2),
            (Quorum::DEFAULT, 3, Quorum::DEFAULT, 0),
        ] {
            assert_eq!(asked.of(n_val, of_type), number, "{asked:?} of {n_val}, {of_type:?}");
        }
    }
}
