//! Every pixel against Pillow's, on image folders of the user's: `CODINET_TEST_IMAGES` names folders of class folders,
//! separated by colons, and `CODINET_TEST_PYTHON` a Python with Pillow (default: python3).
//!
//!     CODINET_TEST_IMAGES=photos:cifar10/train cargo test --release -p codinet-data --test dataloader pillow -- --nocapture

use std::collections::HashMap;
use std::env;
use std::path::Path;
use std::process::Command;

use codinet_dataloader::{Channels, Dataset, Decoder, Region};
use sha2::{Digest, Sha256};

use crate::program::{codinet_data, stdout};

const IMAGES: &str = "CODINET_TEST_IMAGES";
const PYTHON: &str = "CODINET_TEST_PYTHON";

/// Pillow's SHA-256 of each image's pixels, with its width and height, by the file's path below the folder.
fn pillow_digests(folder: &str) -> HashMap<String, String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/pixel_digests.py");
    let python = env::var(PYTHON).unwrap_or_else(|_| "python3".into());
    let output = Command::new(python).args([script, folder]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let line = |line: &str| {
        let (digest, path) = line.rsplit_once('\t').unwrap();
        (path.to_owned(), digest.to_owned())
    };
    text.lines().map(line).collect()
}

/// Decodes every image of a dataset, whole and in nine regions. Returns the digests as Pillow's, by key, and how many
/// images are tiled.
fn decode_all(path: &Path) -> (HashMap<String, String>, usize) {
    let dataset = Dataset::open(path.to_str().unwrap()).unwrap();
    let mut decoder = Decoder::new();
    let mut encoded = Vec::new();
    let mut whole = Vec::new();
    let mut part = Vec::new();
    let mut digests = HashMap::new();
    let mut tiled = 0;
    for sample in 0..dataset.len() {
        let info = dataset.read(sample, &mut encoded).unwrap();
        let header = decoder.header(&encoded).unwrap();
        tiled += usize::from(header.is_tiled());
        decoder.decode(&encoded, &header, Channels::Rgb, &mut whole).unwrap();
        for region in divide(header.width, header.height) {
            let shown = decoder.decode_region(&encoded, &header, Channels::Rgb, region, &mut part).unwrap();
            let rows = region.top..region.top + region.height;
            for y in rows {
                let row = |pixels: &[u8], left: u32, top: u32, width: u32| {
                    let at = 3 * ((y - top) as usize * width as usize + (region.left - left) as usize);
                    pixels[at..at + 3 * region.width as usize].to_vec()
                };
                assert!(
                    row(&part, shown.left, shown.top, shown.width) == row(&whole, 0, 0, header.width),
                    "{}: row {y} of {region:?}",
                    info.name
                );
            }
        }
        let sha256: String = Sha256::digest(&whole).iter().map(|byte| format!("{byte:02x}")).collect();
        digests.insert(info.key.to_owned(), format!("{sha256}\t{}\t{}", header.width, header.height));
    }
    (digests, tiled)
}

/// Three by three regions, the last columns and rows of them narrow.
fn divide(width: u32, height: u32) -> Vec<Region> {
    let cuts = |side: u32| [0, side * 2 / 5, side.saturating_sub(3), side];
    let pairs = |side: u32| cuts(side).windows(2).map(|cut| (cut[0], cut[1])).collect::<Vec<_>>();
    let mut regions = Vec::new();
    for (top, bottom) in pairs(height) {
        for (left, right) in pairs(width) {
            if bottom > top && right > left {
                regions.push(Region { left, top, width: right - left, height: bottom - top });
            }
        }
    }
    regions
}

#[test]
fn pixels_equal_pillows() {
    let Ok(folders) = env::var(IMAGES) else {
        return println!("skipped: {IMAGES} names no folders of class folders");
    };
    let temporary = tempfile::tempdir().unwrap();
    for (number, folder) in folders.split(':').enumerate() {
        let tiled = temporary.path().join(format!("tiled-{number}"));
        let tiled_text = tiled.to_str().unwrap();
        stdout(&codinet_data(&["import", "imagefolder", "--src", folder, "--output", tiled_text]));
        for dataset in [folder, tiled_text] {
            let report = stdout(&codinet_data(&["verify", dataset]));
            assert!(report.contains("bad         0\n"), "{dataset}: {report}");
        }
        let expected = pillow_digests(folder);
        for (path, is_tiled) in [(Path::new(folder), false), (&tiled, true)] {
            let (digests, tiles) = decode_all(path);
            assert_eq!(digests.len(), expected.len(), "{}", path.display());
            let mut different: Vec<&String> = expected
                .iter()
                .filter(|(file, digest)| digests.get(file.rsplit_once('.').unwrap().0) != Some(digest))
                .map(|(file, _)| file)
                .collect();
            different.sort();
            println!(
                "{}: {} images, {tiles} tiled, {} differ from Pillow: {:?}",
                if is_tiled { "imported" } else { folder },
                digests.len(),
                different.len(),
                &different[..different.len().min(10)]
            );
            assert!(different.is_empty());
        }
    }
}
