//! Arbitrary bytes as an image: whole, in part, tiled and imported.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| codinet_dataloader::fuzzing::decode_image(bytes));
