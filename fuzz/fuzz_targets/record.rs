#![no_main]
//! See `fuzz/targets/record.rs`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| datastore_fuzz::record::run(data));
