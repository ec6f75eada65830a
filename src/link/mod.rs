//! Connections to servers that more than one floor speaks to.
//!
//! Redis is a store (`backend`), a tier of the cache (`cache`) and the keeper of pending writes (`queue`); how it is
//! reached, and what a call that failed may have done, is the same for all of them.

pub mod batches;
pub mod redis;
pub mod together;

// Private servers, as the black-box tests start them.
#[cfg(test)]
#[path = "../../tests/it/support/redis.rs"]
pub(crate) mod private_redis;
#[cfg(test)]
#[expect(dead_code, reason = "the black-box tests use all of it")]
#[path = "../../tests/it/support/process.rs"]
pub(crate) mod process;
