//! How to reach the servers, as configured.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;

/// How to reach the servers.
#[derive(Debug, Clone)]
pub struct PostgresSettings {
    /// The servers and how many of the slots each is given when they are first assigned.
    pub shards: Vec<ShardSettings>,
    /// See [`Limits`].
    pub limits: Limits,
}

/// One server.
#[derive(Clone)]
pub struct ShardSettings {
    /// Its name, which it remembers.
    pub name: String,
    /// Where it is, and who we are.
    pub url: String,
    /// Its part of the slots, against the others'.
    pub weight: u32,
    /// Where its read replicas are.
    pub replicas: Vec<String>,
}

/// Bounds of each server's pool.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections.
    pub pool_size: u32,
    /// Until a connection is had.
    pub connect_timeout: Duration,
    /// An idle connection is closed after it.
    pub idle_timeout: Duration,
    /// The server ends a statement that takes longer.
    pub statement_timeout: Duration,
    /// The server ends a statement that waits longer for a lock.
    pub lock_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pool_size: 16,
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(600),
            statement_timeout: Duration::from_secs(5),
            lock_timeout: Duration::from_secs(1),
        }
    }
}

// Neither of them may show its password, wherever it is printed.
impl std::fmt::Debug for ShardSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardSettings")
            .field("name", &self.name)
            .field("weight", &self.weight)
            .finish_non_exhaustive()
    }
}

/// Parameters that a URL may have. The driver ignores any other, and logs it with its value: a slip in `sslmode` would leave the
/// connection unchecked, one in `password` would show it.
const PARAMETERS: [&str; 18] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

/// Whether a URL can be read, and what it should be. The message holds nothing of it: a name
/// that is none may be a part of a password.
pub fn check_url(url: &str) -> Result<(), String> {
    let parameters = url.split('#').next().and_then(|url| url.split_once('?')).map_or("", |(_, rest)| rest);
    for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
        let name = parameter.split_once('=').map_or(parameter, |(name, _)| name);
        if !PARAMETERS.contains(&name) && !name.starts_with("options[") && !name.starts_with("options%5B") {
            return Err("has a parameter that is not known; known are those of libpq: sslmode, sslrootcert, sslcert, \
                 sslkey, host, hostaddr, port, dbname, user, password, application_name, options"
                .to_owned());
        }
    }
    let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
    let read = matches!(scheme, "postgres" | "postgresql") && url.parse::<PgConnectOptions>().is_ok();
    let expected = "should be a URL such as \"postgres://user:password@host:5432/database?sslmode=prefer\"";
    if read { Ok(()) } else { Err(expected.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_that_the_driver_would_ignore_is_refused() {
        let url = |rest: &str| check_url(&format!("postgres://u:p@h:1/d{rest}"));
        for good in [
            "",
            "?",
            "?sslmode=verify-full&sslrootcert=/a%20b",
            "?options=-c%20a%3Db",
            "?options[a]=b",
            "?options%5Ba%5D=b",
            "?host=/run&user=x#?",
        ] {
            assert_eq!(url(good), Ok(()), "{good}");
        }
        for bad in ["?sslmod=verify-full", "?passwrod=hunter2", "?sslmode=prefer&hunter2", "?SSLMODE=require"]
        {
            let refused = url(bad).unwrap_err();
            assert!(refused.contains("sslmode") && !refused.contains("hunter2"), "{bad}: {refused}");
        }
    }
}
