#![no_main]
//! See `fuzz/targets/json.rs`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| datastore_fuzz::json::run(data));
