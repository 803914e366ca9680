#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| quorumfs_api_fuzz::keys(data));
