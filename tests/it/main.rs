//! Black-box tests: the real binary, a private NATS server, raw messages as the contract describes them.
//!
//! Nothing here uses the crate's own codec, model or client, but for `fuzz_corpus`. `support` starts the parts and
//! speaks the wire; `behavior` is one suite of trials run on every backend in both encodings; the other files take
//! a topic each.
//! Run with `cargo test --test it`; one group of trials with `cargo test --test it memory_json::get`.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)] // a test that cannot go on should panic

mod behavior;
mod bench;
mod cache;
mod cli;
mod client;
#[cfg(feature = "test-sabotage")]
mod coherence;
mod crash;
mod discovery;
mod floors;
mod fuzz_corpus;
mod headers;
mod history;
mod lifecycle;
mod outage;
mod readme;
mod record;
mod redis;
mod replica;
mod riak;
mod shards;
mod stand_in;
mod support;
mod transfer;
