//! Checks a whole dataset: decodes every image, and counts everything unusual.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::ops::Range;
use std::path::PathBuf;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::dataset::Dataset;
use crate::decode::{Channels, Decoder, Format, Header, read_jpeg_header};
use crate::error::{BadImage, Result};
use crate::jpeg::libjpeg::Colours;
use crate::left_out::LeftOut;
use crate::parallel;

/// The result of [`verify`], which `--json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Number of samples; all were read.
    pub samples: u64,
    /// Shards that hold them.
    pub shards: u64,
    /// Bytes of encoded images.
    pub bytes: u64,
    /// Number of images of each kind, by format and colour space: `JPEG YCbCr`, `JPEG CMYK`, `PNG grey`.
    pub kinds: BTreeMap<String, u64>,
    /// Number of JPEGs.
    pub jpegs: u64,
    /// Number of progressive JPEGs.
    pub progressive: u64,
    /// Number of JPEGs with tiles; see [`tile`](crate::jpeg::tile).
    pub tiled: u64,
    /// Sizes of the images that can be decoded; null if none can.
    pub sizes: Option<Sizes>,
    /// Every class, by number.
    pub classes: Vec<Class>,
    /// Images that their EXIF orientation rotates or mirrors. Training ignores the orientation.
    pub turned: Vec<RotatedImage>,
    /// Number of samples whose image has the bytes of an earlier sample's.
    pub duplicates: u64,
    /// Number of duplicates whose label differs from the first sample's.
    pub relabelled: u64,
    /// Some duplicates: the first sample and the later one.
    pub duplicate_examples: Vec<[SampleLocation; 2]>,
    /// Files and members that were found and not read, by kind.
    pub left_out: LeftOut,
    /// Every sample that training can't use.
    pub bad: Vec<BadSample>,
}

/// Widths and heights of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Sizes {
    /// The image with the fewest pixels.
    pub smallest: (u32, u32),
    /// An image with the median number of pixels.
    pub median: (u32, u32),
    /// The image with the most pixels.
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

/// The location of a sample.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SampleLocation {
    /// The shard, or the folder of images.
    pub shard: PathBuf,
    /// The sample's key in it.
    pub key: String,
    /// The image's member in the shard, or its file below the folder.
    pub name: String,
}

/// An image whose EXIF orientation isn't 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RotatedImage {
    /// The image.
    #[serde(flatten)]
    pub location: SampleLocation,
    /// The orientation by the EXIF standard, 2 to 8.
    pub orientation: u32,
}

/// A sample that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BadSample {
    /// The sample.
    #[serde(flatten)]
    pub location: SampleLocation,
    /// What is wrong with it, and how to fix it.
    pub reason: String,
}

/// Samples in a thread's next piece of work.
const CHUNK: usize = 64;

/// Classes without samples are listed up to this number of classes.
const MAX_EMPTY_CLASSES: usize = 1 << 20;

/// Limit of listed duplicates.
const MAX_EXAMPLES: usize = 100;

/// Reads and decodes every image of `dataset` on `threads` threads; an image of over `max_pixels` pixels is bad. The
/// decoder is that of training, so a sample that no view could be decoded of is found here. `progress` is called from all
/// threads, with the samples and bytes just read. Memory: 16 bytes a sample, a little for each size of image, and the
/// lists of the report.
///
/// # Errors
/// Problems other than the samples', such as a thread that can't be started. The samples' are in the report.
pub fn verify(
    dataset: &Dataset,
    threads: usize,
    max_pixels: u64,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Report> {
    let channels = Channels::new(dataset.info().map_or(3, |info| info.channels))?;
    let examine = |examiner: &mut Examiner, chunk: usize| {
        let samples = chunk * CHUNK..dataset.len().min((chunk + 1) * CHUNK);
        let before = examiner.findings.bytes;
        examiner.examine(dataset, channels, samples.clone());
        progress(samples.len() as u64, examiner.findings.bytes - before);
        Ok(())
    };
    let start = || Ok(Examiner::new(max_pixels));
    let examiners = parallel::for_each(dataset.len().div_ceil(CHUNK), threads, start, examine)?;
    let mut findings = Findings::default();
    for examiner in examiners {
        findings.add(examiner.findings);
    }
    Ok(make_report(dataset, findings))
}

/// The findings of one thread, or of all.
#[derive(Default)]
struct Findings {
    bytes: u64,
    kinds: BTreeMap<String, u64>,
    jpegs: u64,
    progressive: u64,
    tiled: u64,
    /// Number of images by pixels, width and height.
    sizes: BTreeMap<(u64, u32, u32), u64>,
    turned: Vec<(u32, u32)>,
    /// The first 12 bytes of each image's SHA-256, and its sample.
    checksums: Vec<([u8; 12], u32)>,
    bad: Vec<(u32, String)>,
}

impl Findings {
    fn add(&mut self, other: Findings) {
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

struct Examiner {
    decoder: Decoder,
    encoded: Vec<u8>,
    pixels: Vec<u8>,
    findings: Findings,
}

impl Examiner {
    fn new(max_pixels: u64) -> Examiner {
        Examiner {
            decoder: Decoder::with_max_pixels(max_pixels),
            encoded: Vec::new(),
            pixels: Vec::new(),
            findings: Findings::default(),
        }
    }

    fn examine(&mut self, dataset: &Dataset, channels: Channels, samples: Range<usize>) {
        for sample in samples {
            let number = sample as u32; // a dataset has no more
            let label = match dataset.read(sample, &mut self.encoded) {
                Ok(info) => info.label,
                Err(error) => {
                    self.findings.bad.push((number, error.to_string()));
                    continue;
                }
            };
            self.findings.bytes += self.encoded.len() as u64;
            let mut checksum = [0; 12];
            checksum.copy_from_slice(&Sha256::digest(&self.encoded)[..12]);
            self.findings.checksums.push((checksum, number));
            if let Err(BadImage(reason)) = self.decode(number, channels) {
                self.findings.bad.push((number, reason));
            }
            if let Some(classes) = dataset.classes().filter(|&classes| label as usize >= classes) {
                let reason =
                    format!("label {label} is outside the {classes} classes; correct the .cls member");
                self.findings.bad.push((number, reason));
            }
        }
    }

    fn decode(&mut self, number: u32, channels: Channels) -> Result<(), BadImage> {
        let header = self.decoder.header(&self.encoded)?;
        self.count_kind(number, &header)?;
        self.decoder.decode(&self.encoded, &header, channels, &mut self.pixels)?;
        let pixels = u64::from(header.width) * u64::from(header.height);
        *self.findings.sizes.entry((pixels, header.width, header.height)).or_default() += 1;
        Ok(())
    }

    fn count_kind(&mut self, number: u32, header: &Header) -> Result<(), BadImage> {
        let findings = &mut self.findings;
        let colours = match header.format {
            Format::Jpeg => {
                let frame = read_jpeg_header(&self.encoded)?;
                findings.jpegs += 1;
                findings.progressive += u64::from(frame.progressive);
                findings.tiled += u64::from(header.is_tiled());
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
        *findings.kinds.entry(format!("{} {colours}", header.format)).or_default() += 1;
        if let Some(orientation @ 2..=8) = orientation(&self.encoded) {
            findings.turned.push((number, orientation));
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

fn make_report(dataset: &Dataset, mut findings: Findings) -> Report {
    findings.turned.sort_unstable();
    findings.bad.sort();
    findings.checksums.sort_unstable();
    let label = |sample: u32| dataset.sample_info(sample as usize).map_or(0, |info| info.label);
    let mut report = Report {
        samples: dataset.len() as u64,
        shards: dataset.shards().len() as u64,
        bytes: findings.bytes,
        jpegs: findings.jpegs,
        progressive: findings.progressive,
        tiled: findings.tiled,
        sizes: summarize_sizes(&findings.sizes),
        kinds: findings.kinds,
        classes: count_classes(dataset),
        turned: Vec::new(),
        duplicates: 0,
        relabelled: 0,
        duplicate_examples: Vec::new(),
        left_out: dataset.left_out(),
        bad: Vec::new(),
    };
    for same in findings.checksums.chunk_by(|a, b| a.0 == b.0) {
        let first = same[0].1;
        for &(_, later) in &same[1..] {
            report.duplicates += 1;
            report.relabelled += u64::from(label(later) != label(first));
            if report.duplicate_examples.len() < MAX_EXAMPLES {
                report.duplicate_examples.push([locate(dataset, first), locate(dataset, later)]);
            }
        }
    }
    let rotated = |(sample, orientation)| RotatedImage { location: locate(dataset, sample), orientation };
    report.turned = findings.turned.into_iter().map(rotated).collect();
    let bad = |(sample, reason)| BadSample { location: locate(dataset, sample), reason };
    report.bad = findings.bad.into_iter().map(bad).collect();
    report
}

fn locate(dataset: &Dataset, sample: u32) -> SampleLocation {
    let info = dataset.sample_info(sample as usize);
    SampleLocation {
        shard: info.map_or(PathBuf::new(), |info| info.shard.to_owned()),
        key: info.map_or(String::new(), |info| info.key.to_owned()),
        name: info.map_or(String::new(), |info| info.name.to_owned()),
    }
}

fn summarize_sizes(counted: &BTreeMap<(u64, u32, u32), u64>) -> Option<Sizes> {
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

fn count_classes(dataset: &Dataset) -> Vec<Class> {
    let known = dataset.classes().unwrap_or(0).min(MAX_EMPTY_CLASSES) as u32;
    let mut counts: BTreeMap<u32, u64> = (0..known).map(|label| (label, 0)).collect();
    for info in (0..dataset.len()).filter_map(|sample| dataset.sample_info(sample)) {
        *counts.entry(info.label).or_default() += 1;
    }
    let names = dataset.info().and_then(|info| info.class_names.as_deref()).unwrap_or_default();
    let class = |(label, samples)| Class { label, name: names.get(label as usize).cloned(), samples };
    counts.into_iter().map(class).collect()
}
