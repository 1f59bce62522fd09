//! Arbitrary bytes as the index of a shard.

#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| codinet_dataloader::fuzzing::read_index(text));
