#![no_main]
//! See `fuzz/targets/cursor.rs`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| datastore_fuzz::cursor::run(data));
