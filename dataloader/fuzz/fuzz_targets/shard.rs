//! Arbitrary bytes as a tar shard: scanned, then every sample read.

#![no_main]

mod folder;

use folder::FOLDER;

libfuzzer_sys::fuzz_target!(|tar: &[u8]| codinet_dataloader::fuzzing::read_shard(&FOLDER, tar));
