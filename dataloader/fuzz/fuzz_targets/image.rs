//! Any bytes as an image: whole, in part and tiled it shows the same.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| codinet_dataloader::fuzzing::image(bytes));
