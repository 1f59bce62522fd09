//! `codinet-data import` as its users run it, and MATLAB's files, for the tests of importers.

use std::io::Write;
use std::path::Path;
use std::process::Output;

use flate2::Compression;
use flate2::write::ZlibEncoder;

use crate::program::codinet_data;

pub fn import(dataset: &str, source: &Path, out: &Path, more: &[&str]) -> Output {
    let paths = ["--src", source.to_str().unwrap(), "--output", out.to_str().unwrap()];
    codinet_data(&[&["import", dataset], &paths[..], more].concat())
}

/// A data element of a MAT-file: of up to 4 bytes in the tag itself, above it padded to 8.
pub fn element(kind: u32, bytes: &[u8]) -> Vec<u8> {
    let size = bytes.len() as u32;
    let mut element = match size {
        1..=4 => (size << 16 | kind).to_le_bytes().to_vec(),
        _ => [kind.to_le_bytes(), size.to_le_bytes()].concat(),
    };
    element.extend_from_slice(bytes);
    element.resize(element.len().next_multiple_of(8), 0);
    element
}

/// An array: its name, its class, its dimensions, and the elements of its contents.
pub fn array(name: &str, class: u8, dimensions: &[u32], contents: &[Vec<u8>]) -> Vec<u8> {
    let dimensions: Vec<u8> = dimensions.iter().flat_map(|n| n.to_le_bytes()).collect();
    let header =
        [element(6, &[class, 0, 0, 0, 0, 0, 0, 0]), element(5, &dimensions), element(1, name.as_bytes())];
    element(14, &[header.concat(), contents.concat()].concat())
}

pub fn compressed(array: &[u8]) -> Vec<u8> {
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
    zlib.write_all(array).unwrap();
    let zipped = zlib.finish().unwrap();
    [&15_u32.to_le_bytes()[..], &(zipped.len() as u32).to_le_bytes(), &zipped].concat()
}

/// A file of these arrays.
pub fn mat(arrays: &[Vec<u8>]) -> Vec<u8> {
    let mut file = b"MATLAB 5.0 MAT-file, Platform: GLNXA64".to_vec();
    file.resize(124, b' ');
    file.extend_from_slice(&[0, 1, b'I', b'M']);
    file.extend(arrays.concat());
    file
}
