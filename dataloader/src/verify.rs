//! A whole data set examined: every image decoded, and everything odd about them counted.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::ops::Range;
use std::path::PathBuf;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::dataset::Dataset;
use crate::decode::{Channels, Decoder, Format, Header, jpeg_frame};
use crate::error::{BadImage, Result};
use crate::jpeg::libjpeg::Colours;
use crate::parallel;

/// What was found; `--json` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Samples, all of which were read.
    pub samples: u64,
    /// Shards that hold them.
    pub shards: u64,
    /// Bytes of encoded images.
    pub bytes: u64,
    /// How many images there are of each kind: format and colour space, as `JPEG YCbCr`, `JPEG CMYK`, `PNG
    /// grey`.
    pub kinds: BTreeMap<String, u64>,
    /// JPEGs.
    pub jpegs: u64,
    /// JPEGs that are progressive.
    pub progressive: u64,
    /// JPEGs that restart markers cut into tiles, so that a part is decoded without the rest.
    pub tiled: u64,
    /// Sizes of the images that decode; null where none does.
    pub sizes: Option<Sizes>,
    /// Every class, in the order of the numbers.
    pub classes: Vec<Class>,
    /// Images that their EXIF orientation turns or mirrors: training ignores it.
    pub turned: Vec<Turned>,
    /// Samples whose image is, byte for byte, that of a sample before them.
    pub duplicates: u64,
    /// Of these, those with another label than the first.
    pub relabelled: u64,
    /// Some duplicates: the first sample and the later one.
    pub duplicate_examples: Vec<[Place; 2]>,
    /// Every sample that training would fail at.
    pub bad: Vec<Fault>,
}

/// Widths and heights of the images with the fewest, the middle number and the most pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Sizes {
    /// The fewest pixels.
    pub smallest: (u32, u32),
    /// As many images have fewer pixels as have more.
    pub median: (u32, u32),
    /// The most pixels.
    pub largest: (u32, u32),
}

/// A class and its samples.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Class {
    /// Its number.
    pub label: u32,
    /// Its name, where known.
    pub name: Option<String>,
    /// How many samples have it.
    pub samples: u64,
}

/// Where a sample lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The shard.
    pub shard: PathBuf,
    /// The key in it.
    pub key: String,
}

/// An image whose EXIF orientation isn't 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Turned {
    /// The image.
    #[serde(flatten)]
    pub place: Place,
    /// The orientation by the EXIF standard, 2 to 8.
    pub orientation: u32,
}

/// A sample that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The sample.
    #[serde(flatten)]
    pub place: Place,
    /// What is wrong with it, and how to mend it.
    pub reason: String,
}

/// Samples that are examined in one go.
const PIECE: usize = 64;

/// Of so many classes, those without samples are listed as well.
const MOST_EMPTY_CLASSES: usize = 1 << 20;

/// The most duplicates that are named.
const MOST_EXAMPLES: usize = 100;

/// Reads and decodes every image of `dataset` on `threads` threads. `progress` is called from all of them,
/// with the samples and bytes just done. Memory is 16 bytes a sample, a little for each size of image, and
/// what is listed.
///
/// # Errors
/// What has nothing to do with the samples, as threads that can't be started. What is wrong with samples is
/// reported.
pub fn verify(dataset: &Dataset, threads: usize, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<Report> {
    let channels = Channels::new(dataset.info().map_or(3, |info| info.channels))?;
    let examine = |examiner: &mut Examiner, piece: usize| {
        let samples = piece * PIECE..dataset.len().min((piece + 1) * PIECE);
        let before = examiner.seen.bytes;
        examiner.examine(dataset, channels, samples.clone());
        progress(samples.len() as u64, examiner.seen.bytes - before);
        Ok(())
    };
    let start = || Ok(Examiner::default());
    let examiners = parallel::for_each(dataset.len().div_ceil(PIECE), threads, start, examine)?;
    let mut seen = Seen::default();
    for examiner in examiners {
        seen.add(examiner.seen);
    }
    Ok(report(dataset, seen))
}

/// What one thread has seen.
#[derive(Default)]
struct Seen {
    bytes: u64,
    kinds: BTreeMap<String, u64>,
    jpegs: u64,
    progressive: u64,
    tiled: u64,
    /// Pixels, width, height, and how many images have them.
    sizes: BTreeMap<(u64, u32, u32), u64>,
    turned: Vec<(u32, u32)>,
    /// The first 12 bytes of each image's SHA-256, and its sample.
    checksums: Vec<([u8; 12], u32)>,
    bad: Vec<(u32, String)>,
}

impl Seen {
    fn add(&mut self, other: Seen) {
        self.bytes += other.bytes;
        self.jpegs += other.jpegs;
        self.progressive += other.progressive;
        self.tiled += other.tiled;
        for (kind, count) in other.kinds {
            *self.kinds.entry(kind).or_default() += count;
        }
        for (size, count) in other.sizes {
            *self.sizes.entry(size).or_default() += count;
        }
        self.turned.extend(other.turned);
        self.checksums.extend(other.checksums);
        self.bad.extend(other.bad);
    }
}

#[derive(Default)]
struct Examiner {
    decoder: Decoder,
    encoded: Vec<u8>,
    pixels: Vec<u8>,
    seen: Seen,
}

impl Examiner {
    fn examine(&mut self, dataset: &Dataset, channels: Channels, samples: Range<usize>) {
        for sample in samples {
            let number = sample as u32; // a dataset has no more
            let label = match dataset.read(sample, &mut self.encoded) {
                Ok(info) => info.label,
                Err(error) => {
                    self.seen.bad.push((number, error.to_string()));
                    continue;
                }
            };
            self.seen.bytes += self.encoded.len() as u64;
            let mut checksum = [0; 12];
            checksum.copy_from_slice(&Sha256::digest(&self.encoded)[..12]);
            self.seen.checksums.push((checksum, number));
            if let Err(BadImage(reason)) = self.decode(number, channels) {
                self.seen.bad.push((number, reason));
            }
            if let Some(classes) = dataset.classes().filter(|&classes| label as usize >= classes) {
                let reason = format!("label {label} is outside the {classes} classes; mend the .cls member");
                self.seen.bad.push((number, reason));
            }
        }
    }

    fn decode(&mut self, number: u32, channels: Channels) -> Result<(), BadImage> {
        let header = self.decoder.header(&self.encoded)?;
        self.count_kind(number, &header)?;
        self.decoder.decode(&self.encoded, &header, channels, &mut self.pixels)?;
        let pixels = u64::from(header.width) * u64::from(header.height);
        *self.seen.sizes.entry((pixels, header.width, header.height)).or_default() += 1;
        Ok(())
    }

    fn count_kind(&mut self, number: u32, header: &Header) -> Result<(), BadImage> {
        let seen = &mut self.seen;
        let colours = match header.format {
            Format::Jpeg => {
                let frame = jpeg_frame(&self.encoded)?;
                seen.jpegs += 1;
                seen.progressive += u64::from(frame.progressive);
                seen.tiled += u64::from(header.is_tiled());
                match frame.colours {
                    Colours::Rgb => "RGB",
                    Colours::YCbCr => "YCbCr",
                    Colours::Grey => "grey",
                    Colours::Cmyk => "CMYK",
                    Colours::Ycck => "YCCK",
                }
            }
            Format::Png => png_colours(&self.encoded),
        };
        *seen.kinds.entry(format!("{} {colours}", header.format)).or_default() += 1;
        if let Some(orientation @ 2..=8) = orientation(&self.encoded) {
            seen.turned.push((number, orientation));
        }
        Ok(())
    }
}

/// The colours of a PNG whose header has been read.
fn png_colours(encoded: &[u8]) -> &'static str {
    // The colour type is the tenth byte of the first chunk's contents.
    match encoded.get(25) {
        Some(2) => "RGB",
        Some(3) => "indexed",
        Some(4) => "grey with alpha",
        Some(6) => "RGB with alpha",
        _ => "grey",
    }
}

fn orientation(encoded: &[u8]) -> Option<u32> {
    let exif = exif::Reader::new().read_from_container(&mut Cursor::new(encoded)).ok()?;
    exif.get_field(exif::Tag::Orientation, exif::In::PRIMARY)?.value.get_uint(0)
}

fn report(dataset: &Dataset, mut seen: Seen) -> Report {
    seen.turned.sort_unstable();
    seen.bad.sort();
    seen.checksums.sort_unstable();
    let label = |sample: u32| dataset.sample_info(sample as usize).map_or(0, |info| info.label);
    let mut report = Report {
        samples: dataset.len() as u64,
        shards: dataset.shards().len() as u64,
        bytes: seen.bytes,
        jpegs: seen.jpegs,
        progressive: seen.progressive,
        tiled: seen.tiled,
        sizes: sizes(&seen.sizes),
        kinds: seen.kinds,
        classes: classes(dataset),
        turned: Vec::new(),
        duplicates: 0,
        relabelled: 0,
        duplicate_examples: Vec::new(),
        bad: Vec::new(),
    };
    for same in seen.checksums.chunk_by(|a, b| a.0 == b.0) {
        let first = same[0].1;
        for &(_, later) in &same[1..] {
            report.duplicates += 1;
            report.relabelled += u64::from(label(later) != label(first));
            if report.duplicate_examples.len() < MOST_EXAMPLES {
                report.duplicate_examples.push([place(dataset, first), place(dataset, later)]);
            }
        }
    }
    let turned = |(sample, orientation)| Turned { place: place(dataset, sample), orientation };
    report.turned = seen.turned.into_iter().map(turned).collect();
    let fault = |(sample, reason)| Fault { place: place(dataset, sample), reason };
    report.bad = seen.bad.into_iter().map(fault).collect();
    report
}

fn place(dataset: &Dataset, sample: u32) -> Place {
    let info = dataset.sample_info(sample as usize);
    Place {
        shard: info.map_or(PathBuf::new(), |info| info.shard.to_owned()),
        key: info.map_or(String::new(), |info| info.key.to_owned()),
    }
}

fn sizes(counted: &BTreeMap<(u64, u32, u32), u64>) -> Option<Sizes> {
    let size = |(&(_, width, height), _): (&(u64, u32, u32), &u64)| (width, height);
    let middle = counted.values().sum::<u64>() / 2;
    let mut before = 0;
    let median = counted.iter().find(|(_, count)| {
        before += **count;
        before > middle
    });
    Some(Sizes {
        smallest: counted.first_key_value().map(size)?,
        median: median.map(size)?,
        largest: counted.last_key_value().map(size)?,
    })
}

fn classes(dataset: &Dataset) -> Vec<Class> {
    let known = dataset.classes().unwrap_or(0).min(MOST_EMPTY_CLASSES) as u32;
    let mut counts: BTreeMap<u32, u64> = (0..known).map(|label| (label, 0)).collect();
    for info in (0..dataset.len()).filter_map(|sample| dataset.sample_info(sample)) {
        *counts.entry(info.label).or_default() += 1;
    }
    let names = dataset.info().and_then(|info| info.class_names.as_deref()).unwrap_or_default();
    let class = |(label, samples)| Class { label, name: names.get(label as usize).cloned(), samples };
    counts.into_iter().map(class).collect()
}
