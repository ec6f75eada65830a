#![no_main]
//! See `fuzz/targets/wire.rs`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| datastore_fuzz::wire::run(data));
