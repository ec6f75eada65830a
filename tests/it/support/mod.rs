//! Starts the real parts as child processes and speaks the public protocol with bytes of our own.
#![allow(dead_code)] // a kit: each topic uses a part of it

pub(crate) mod caller;
pub(crate) mod linear;
pub(crate) mod nats;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod rabbit;
pub(crate) mod redis;
pub(crate) mod riak;
pub(crate) mod time;
pub(crate) mod wire;
pub(crate) mod worker;

use std::sync::atomic::{AtomicU32, Ordering};

/// A word that no other test of this run has: a subject prefix, a namespace or a key of one's own.
pub(crate) fn unique(word: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("{word}{}", NEXT.fetch_add(1, Ordering::Relaxed))
}
