//! Entry points for fuzzing: every format that other programs write, read from arbitrary bytes. They must not panic, hang or
//! take memory out of proportion. `fuzz/` calls them with a fuzzer's inputs, the test below with mutations of good files.

use std::fs;
use std::path::Path;

use crate::dataset::{Dataset, DatasetInfo, ShardList};
use crate::decode::{Channels, Decoder, Format};
use crate::import::prepare::Preparer;
use crate::jpeg::{self, tile};
use crate::region::Region;
use crate::shard::parse_index;

/// Opens `tar` as a shard in `folder`, and reads all samples that its scan found.
pub fn read_shard(folder: &Path, tar: &[u8]) {
    let path = folder.join("fuzzed.tar");
    let _ = fs::remove_file(path.with_extension("idx"));
    fs::write(&path, tar).expect("the folder can be written");
    let Ok(dataset) = Dataset::open(path.to_str().expect("a path in UTF-8")) else { return };
    let mut encoded = Vec::new();
    for sample in 0..dataset.len() {
        dataset.read(sample, &mut encoded).expect("the scan has found it");
    }
}

/// Corrects the checksums of all blocks of a tar that could be headers, so that more than the checksum is tested.
pub fn fix_checksums(tar: &mut [u8]) {
    for block in tar.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

/// Parses `text` as the index of a tar of 1 MB, and writes and parses an accepted one again.
pub fn read_index(text: &[u8]) {
    let parse = |text: &str| parse_index(text, 1_000_000);
    let Some(index) = std::str::from_utf8(text).ok().and_then(parse) else { return };
    assert_eq!(parse(&index.to_text()), Some(index));
}

/// Parses `text` as a list of shards and as a `dataset.json`.
pub fn read_list(text: &[u8]) {
    if let Ok(Some(list)) = ShardList::parse("s3://bucket/folder/_info.json", text) {
        let _ = (list.split(None), list.split(Some("train")), list.samples("s3://bucket/folder/x.tar"));
    }
    let _ = DatasetInfo::parse(Path::new("dataset.json"), text);
}

/// Decodes `encoded` as a JPEG or PNG: whole, a middle part, an eighth as `bench` does, tiled, and smaller as an import with
/// `--max-side` does. All agree on whether it is sound, and on its pixels.
pub fn decode_image(encoded: &[u8]) {
    const MAX_PIXELS: u64 = 1 << 18;
    let mut decoder = Decoder::with_max_pixels(MAX_PIXELS);
    let Ok(header) = decoder.header(encoded) else { return };
    let middle = |side: u32| (side / 3, (side / 2).max(1));
    let ((left, width), (top, height)) = (middle(header.width), middle(header.height));
    let region = Region { left, top, width, height };
    let mut part = Vec::new();
    let shown = decoder.decode_region(encoded, &header, Channels::Rgb, region, &mut part);
    let mut whole = Vec::new();
    let is_sound = decoder.decode(encoded, &header, Channels::Rgb, &mut whole).is_ok();
    let eighth = jpeg::entropy_decode(encoded, &mut Vec::new());
    assert!(eighth == is_sound || header.format == Format::Png || header.is_tiled(), "an eighth, {header:?}");
    for (tile, max_side) in [(true, None), (false, Some(8)), (true, Some(8))] {
        let prepared =
            Preparer::new(tile, max_side, MAX_PIXELS).expect("valid settings").prepare(encoded).is_ok();
        assert!(prepared == is_sound, "imported with tiles {tile}, {max_side:?}, {header:?}");
    }
    if !is_sound {
        return;
    }
    let rows = |pixels: &[u8], shown: Region| -> Vec<u8> {
        let at =
            |y: u32| 3 * ((y - shown.top) as usize * shown.width as usize + (left - shown.left) as usize);
        (top..top + height).flat_map(|y| &pixels[at(y)..][..3 * width as usize]).copied().collect()
    };
    let shown = shown.expect("the whole is decoded, too");
    assert!(rows(&part, shown) == rows(&whole, header.whole()), "{region:?} of {header:?}");
    if let Some(tiled) = tile::transcode(encoded) {
        let header = decoder.header(&tiled).expect("a transcoded file is sound");
        let mut again = Vec::new();
        decoder.decode(&tiled, &header, Channels::Rgb, &mut again).expect("a transcoded file is sound");
        assert!(again == whole, "tiled, {header:?}");
    }
}

/// Reads `bytes` as each format of the published datasets, from a file in `folder`.
pub fn read_published(folder: &Path, bytes: &[u8]) {
    crate::import::read_as_any(folder, bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    /// Changes a few bytes, runs of bytes or numbers of `bytes`, or cuts it short.
    fn mutate(bytes: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
        let mut below = |limit: usize| rng.next_u64() as usize % limit.max(1);
        for _ in 0..=below(4) {
            let at = below(bytes.len());
            let until = (at + below(40)).min(bytes.len());
            match below(6) {
                0 => bytes[at..until].iter_mut().take(1).for_each(|byte| *byte ^= 1 << below(8)),
                1 => bytes.truncate(at),
                2 => bytes.splice(at..at, bytes[at..until].to_vec()).for_each(drop),
                3 => bytes[at..until].fill([0, b'0', b'7', b'9', 0xFF, b'\n', b'\t', b'"'][below(8)]),
                4 => bytes.drain(at..until).for_each(drop),
                _ => {
                    let number = ["18446744073709551615", "4294967296", "-1", "1e9", "00"][below(5)];
                    bytes.splice(at..(at + number.len()).min(bytes.len()), number.bytes()).for_each(drop);
                }
            }
        }
    }

    fn seed_tar() -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let long = format!("{}long.png", "folder/".repeat(20)); // by GNU's extension
        let extensions = [("path", b"pax/name.jpg".as_slice()), ("uid", b"99999999")];
        for (name, contents) in
            [("a.jpg", &b"image"[..]), ("a.cls", b"7"), ("b.txt", b"?"), (&long, &[1; 700])]
        {
            let mut header = tar::Header::new_gnu();
            header.set_size(contents.len() as u64);
            tar.append_data(&mut header, name, contents).unwrap();
        }
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        tar.append_data(&mut header, long.replace("png", "cls"), &b"1"[..]).unwrap();
        tar.append_pax_extensions(extensions).unwrap();
        tar.append_data(&mut header, "short.jpg", &b"i"[..]).unwrap();
        tar.append_data(&mut header, "pax/name.cls", &b"2"[..]).unwrap();
        tar.into_inner().unwrap()
    }

    #[test]
    fn mutated_files_give_errors_or_data() {
        // In memory if possible: each successful scan writes an index, and syncs it.
        let shared = Path::new("/dev/shm");
        let folder =
            if shared.is_dir() { tempfile::tempdir_in(shared) } else { tempfile::tempdir() }.unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let tar = seed_tar();
        read_shard(folder.path(), &tar);
        let opened = Dataset::open(folder.path().join("fuzzed.tar").to_str().unwrap()).unwrap();
        assert_eq!(opened.len(), 3, "the seed itself is good");
        let idx = fs::read(folder.path().join("fuzzed.idx")).unwrap();
        let idx = String::from_utf8(idx).unwrap().replacen(&format!(" {} ", tar.len()), " 1000000 ", 1);
        assert!(parse_index(&idx, 1_000_000).is_some());
        let lists = [
            r#"{"splits": {"train": {"filenames": ["x.tar"], "shard_lengths": [3], "num_samples": 3}}}"#,
            r#"{"wids_version": 1, "shardlist": [{"url": "x.tar", "nsamples": 3}], "datasets": [{"base": "b", "shardlist": []}]}"#,
            r#"{"version": 1, "name": "", "classes": 1, "channels": 3, "image_size": null, "samples": 3, "shards": 1, "class_names": ["a"]}"#,
        ];
        let picture: Vec<u8> = (0..40 * 24 * 3).map(|i| (i * 7 % 251) as u8).collect();
        let encoded = |encoding| {
            let mut encoder = crate::encode::Encoder::new(encoding).unwrap();
            encoder.encode(&picture, 40, 24, Channels::Rgb).unwrap().to_vec()
        };
        let jpeg = encoded(crate::encode::Encoding::Jpeg { quality: 90 });
        let images = [tile::transcode(&jpeg).unwrap(), jpeg, encoded(crate::encode::Encoding::Png)];
        images.iter().for_each(|seed| decode_image(seed));
        let idx_file = [&[0, 0, 8, 1, 0, 0, 0, 9][..], &[3; 9]].concat();
        for round in 0..2000 {
            let mut mutated = tar.clone();
            mutate(&mut mutated, &mut rng);
            if round % 2 == 0 {
                fix_checksums(&mut mutated);
            }
            read_shard(folder.path(), &mutated);
            let mut mutated = idx.clone().into_bytes();
            mutate(&mut mutated, &mut rng);
            read_index(&mutated);
            let mut mutated = lists[round % lists.len()].as_bytes().to_vec();
            mutate(&mut mutated, &mut rng);
            read_list(&mutated);
            let seed = &images[round % images.len()];
            let by_scipy = include_bytes!("../../tests/golden/svhn_scipy.mat");
            let mut mutated = seed.clone();
            mutate(&mut mutated, &mut rng);
            decode_image(&mutated);
            let mut mutated = if round % 2 == 0 { by_scipy.to_vec() } else { idx_file.clone() };
            mutate(&mut mutated, &mut rng);
            read_published(folder.path(), &mutated);
        }
    }
}
