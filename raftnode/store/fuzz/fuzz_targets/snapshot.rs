#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| quorumfs_store_fuzz::snapshot(data));
