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
            statement_timeout: Duration::from_secs(30),
            lock_timeout: Duration::from_secs(5),
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

/// Whether a URL can be read, and what it should be. The message holds nothing of it.
pub fn check_url(url: &str) -> Result<(), String> {
    let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
    let read = matches!(scheme, "postgres" | "postgresql") && url.parse::<PgConnectOptions>().is_ok();
    let expected = "should be a URL such as \"postgres://user:password@host:5432/database?sslmode=prefer\"";
    if read { Ok(()) } else { Err(expected.to_owned()) }
}
