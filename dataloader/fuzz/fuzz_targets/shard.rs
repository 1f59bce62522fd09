//! Arbitrary bytes as a tar shard: scanned, then every sample read. Once as they are, and once with the checksums of their
//! headers corrected, which a fuzzer hardly finds.

#![no_main]

mod folder;

use codinet_dataloader::fuzzing::{fix_checksums, read_shard};
use folder::FOLDER;

libfuzzer_sys::fuzz_target!(|tar: &[u8]| {
    read_shard(&FOLDER, tar);
    let mut corrected = tar.to_vec();
    fix_checksums(&mut corrected);
    if corrected != tar {
        read_shard(&FOLDER, &corrected);
    }
});
