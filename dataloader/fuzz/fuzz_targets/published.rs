//! Arbitrary bytes as a file of a published data set, IDX, MAT-file, CIFAR's records.

#![no_main]

mod folder;

use folder::FOLDER;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| codinet_dataloader::fuzzing::read_published(&FOLDER, bytes));
