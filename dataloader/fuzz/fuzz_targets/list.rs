//! Arbitrary bytes as another tool's list of shards, and as a `dataset.json`.

#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| codinet_dataloader::fuzzing::read_list(text));
