//! `codinet-data import` of ImageNet, folders of images and Parquet files, from small ones made here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::Path;

use codinet_dataloader::encode::{Encoder, Encoding};
use codinet_dataloader::{Channels, Dataset};

mod image_folder;
mod imagenet;
#[cfg(feature = "parquet")]
mod parquet_files;

use crate::program::{data_error, stdout};
use crate::published::import;

/// A small JPEG; each number makes another one.
fn photograph(number: usize) -> Vec<u8> {
    let width = 16 + number % 5;
    let height = 12 + number % 7;
    let pixels: Vec<u8> = (0..width * height * 3).map(|i| (i * (number + 3) / 2 % 251) as u8).collect();
    let mut encoder = Encoder::new(Encoding::Jpeg { quality: 90 }).unwrap();
    encoder.encode(&pixels, width as u32, height as u32, Channels::Rgb).unwrap()
}

fn tar(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, contents) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, &contents[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Every sample: key, label, encoded image, in the order of the shards.
fn samples(folder: &Path) -> Vec<(String, u32, Vec<u8>)> {
    let dataset = Dataset::open(folder.to_str().unwrap()).unwrap();
    let sample = |number| {
        let mut image = Vec::new();
        let info = dataset.read(number, &mut image).unwrap();
        (info.key.to_owned(), info.label, image)
    };
    (0..dataset.len()).map(sample).collect()
}

/// All files but indexes, which hold the time of writing: path in the folder, contents.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            found.extend(files(&path).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else if !name.ends_with(".idx") {
            found.insert(name, fs::read(&path).unwrap());
        }
    }
    found
}
