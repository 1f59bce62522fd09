//! Small datasets for the tests, mostly of flat greys whose one value is the sample's number, so that a pixel tells
//! where it came from.

use std::path::Path;

use codinet_dataloader::encode::{Encoder, Encoding};
use codinet_dataloader::{Channels, Dataset, DatasetInfo, Error, ShardWriter};

pub const SIZE: u32 = 12;

pub fn png(pixels: &[u8]) -> Vec<u8> {
    let side = (pixels.len() as f64).sqrt() as u32;
    Encoder::new(Encoding::Png).unwrap().encode(pixels, side, side, Channels::Grey).unwrap()
}

pub fn flat(value: u32) -> Vec<u8> {
    png(&[value as u8; (SIZE * SIZE) as usize])
}

/// Shards of four flat images each, labelled by number modulo 10.
pub fn write_flat(folder: &Path, count: u32) {
    let mut writer = ShardWriter::new(folder, "x", 4).unwrap();
    for sample in 0..count {
        writer.write(&format!("k{sample:03}"), "png", &flat(sample), sample % 10).unwrap();
    }
    let (shards, samples) = writer.finish().unwrap();
    let name = "flat".to_owned();
    let shards = u64::from(shards);
    let info = DatasetInfo {
        version: 1,
        name,
        classes: 10,
        channels: 1,
        image_size: Some(SIZE),
        samples,
        shards,
        class_names: None,
    };
    info.save(folder).unwrap();
}

/// One shard of these images, all with label 0.
pub fn write_images(folder: &Path, images: &[(&str, Vec<u8>)]) {
    let mut writer = ShardWriter::new(folder, "x", 100).unwrap();
    for (name, image) in images {
        let (key, extension) = name.split_once('.').unwrap();
        writer.write(key, extension, image, 0).unwrap();
    }
    writer.finish().unwrap();
}

pub fn open(folder: &Path) -> Result<Dataset, Error> {
    Dataset::open(folder.to_str().unwrap())
}
