//! How to reach the servers, as configured.

use crate::link;

/// How to reach the servers.
#[derive(Debug, Clone)]
pub struct RedisSettings {
    /// The servers and how many of the slots each is given when they are first assigned.
    pub shards: Vec<ShardSettings>,
    /// Connections to each server.
    pub pool_size: usize,
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

// It may not show its password, wherever it is printed.
impl std::fmt::Debug for ShardSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardSettings")
            .field("name", &self.name)
            .field("weight", &self.weight)
            .finish_non_exhaustive()
    }
}

/// Whether a URL can be read, and what it should be. The message holds nothing of it.
pub fn check_url(url: &str) -> Result<(), String> {
    let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
    let read = matches!(scheme, "redis" | "rediss" | "redis+unix") && link::redis::Redis::check(url).is_ok();
    let expected = "should be a URL such as \"redis://user:password@host:6379/0\", \"rediss://...\" for TLS, or \
                    \"redis+unix:///path/of.sock?db=0&user=...&pass=...\"";
    if read { Ok(()) } else { Err(expected.to_owned()) }
}
