//! The IDX format of the MNIST family: a magic number, big-endian dimensions, then bytes; plain or gzipped.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::error::{IoContext, Result};
use crate::import::{broken_source, describe_unreadable};

/// An array of bytes with its dimensions.
pub(in crate::import) struct Idx {
    /// Its file.
    pub(in crate::import) path: PathBuf,
    /// Its dimensions; the first is the number of images or labels.
    pub(in crate::import) dimensions: Vec<usize>,
    /// Its bytes, as many as the dimensions say.
    pub(in crate::import) bytes: Vec<u8>,
}

/// Reads `folder/name`, or `folder/name.gz`, an array of bytes with `rank` dimensions.
///
/// # Errors
/// Both files are missing, another format or rank, fewer or more bytes than the dimensions say.
pub(in crate::import) fn read(folder: &Path, name: &str, rank: u8) -> Result<Idx> {
    let plain = folder.join(name);
    let path = if plain.exists() { plain } else { folder.join(format!("{name}.gz")) };
    let mut reader = BufReader::new(File::open(&path).context("open", &path)?);
    let zipped = path.extension().is_some_and(|extension| extension == "gz");
    let parsed =
        if zipped { parse(&mut MultiGzDecoder::new(reader), rank) } else { parse(&mut reader, rank) };
    match parsed {
        Ok((dimensions, bytes)) => Ok(Idx { path, dimensions, bytes }),
        Err(what) => Err(broken_source(&path, &what)),
    }
}

fn parse(reader: &mut impl Read, rank: u8) -> Result<(Vec<usize>, Vec<u8>), String> {
    let mut word = [0; 4];
    reader.read_exact(&mut word).map_err(describe_unreadable)?;
    let expected = [0, 0, 8, rank]; // 8: unsigned bytes
    if word != expected {
        return Err(format!("not the IDX file expected: it starts with {word:02x?}, not {expected:02x?}"));
    }
    let mut dimensions = Vec::new();
    for _ in 0..rank {
        reader.read_exact(&mut word).map_err(describe_unreadable)?;
        dimensions.push(u32::from_be_bytes(word) as usize);
    }
    let size = dimensions.iter().try_fold(1_u64, |size, &dimension| size.checked_mul(dimension as u64));
    let size = size.ok_or_else(|| format!("impossible dimensions {dimensions:?}"))?;
    // Reads at most one byte more than expected. Memory grows with the data, not with the header's claim.
    let mut bytes = Vec::new();
    reader.take(size.saturating_add(1)).read_to_end(&mut bytes).map_err(describe_unreadable)?;
    match (bytes.len() as u64).cmp(&size) {
        std::cmp::Ordering::Less => Err(format!("cut short: {} of {size} bytes", bytes.len())),
        std::cmp::Ordering::Equal => Ok((dimensions, bytes)),
        std::cmp::Ordering::Greater => Err(format!("longer than the {size} bytes that {dimensions:?} make")),
    }
}
