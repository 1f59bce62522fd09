//! MATLAB's MAT-file, version 5: named arrays, each as it is or compressed by zlib.
//!
//! One array is read as a stream, whatever its size, and the others are skipped. An array of records (MATLAB's struct)
//! is small and read from memory. The crate for this format, matfile 0.5, isn't used: it holds the file and all arrays in
//! memory, takes a cut file for a complete one, and prints its errors.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::bufread::ZlibDecoder;

use crate::error::{Error, IoContext, Result};
use crate::import::{broken_source, describe_unreadable};

// The types of data elements. An array's numbers may be stored as another type than its class: MATLAB stores doubles
// that are small integers as bytes.
const INT8: u32 = 1;
const UINT8: u32 = 2;
const INT16: u32 = 3;
const UINT16: u32 = 4;
const INT32: u32 = 5;
const UINT32: u32 = 6;
const SINGLE: u32 = 7;
const DOUBLE: u32 = 9;
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;
const UTF8: u32 = 16;

/// The classes of arrays, by number.
const CLASSES: [&str; 16] = [
    "nothing", "cell", "struct", "object", "char", "sparse", "double", "single", "int8", "uint8", "int16",
    "uint16", "int32", "uint32", "int64", "uint64",
];

/// Those of numbers, one for each element.
const NUMBERS: std::ops::RangeInclusive<u8> = 6..=15;

/// The classes of records and of text.
const STRUCT: u8 = 2;
const CHAR: u8 = 4;

/// Limits of records in an array, and of fields in a record.
const MAX_RECORDS: usize = 1 << 20;
const MAX_FIELDS: usize = 256;

/// Limit of an array's dimensions, of its name, or of a value in a record, in bytes. All are far shorter.
const MAX_HEADER_BYTES: u32 = 4096;

/// An open array of numbers: its header, and a reader of its numbers.
pub(in crate::import) struct Array {
    path: PathBuf,
    header: Header,
    /// The type its numbers are stored as.
    stored: u32,
    /// The size of all numbers in bytes, and a reader of the rest of their element.
    size: u64,
    data: Box<dyn Read>,
}

struct Header {
    name: String,
    class: u8,
    complex: bool,
    dimensions: Vec<usize>,
}

impl Array {
    /// Opens the array of this name in the file at `path`.
    ///
    /// # Errors
    /// No such file or array, another format, an array of other values than real numbers, or of another size than its
    /// dimensions make.
    pub(in crate::import) fn open(path: &Path, name: &str) -> Result<Array> {
        let file = File::open(path).context("open", path)?;
        let array = find_array(&Arc::new(file), name).and_then(|(header, mut data)| {
            let Tag { kind, size, inline } = Tag::read(&mut data)?;
            let data = match inline {
                Some(bytes) => Box::new(Cursor::new(bytes).chain(data)),
                None => data,
            };
            let array = Array { path: path.to_owned(), header, stored: kind, size: size.into(), data };
            array.check().map(|()| array)
        });
        array.map_err(|what| broken_source(path, &what))
    }

    fn check(&self) -> Result<(), String> {
        let width = match self.stored {
            INT8 | UINT8 => 1,
            INT16 | UINT16 => 2,
            INT32 | UINT32 | SINGLE => 4,
            DOUBLE => 8,
            _ => 0,
        };
        if width == 0 || self.header.complex || !NUMBERS.contains(&self.header.class) {
            return Err(format!("{self}, stored as type {}; expected real numbers", self.stored));
        }
        let dimensions = &self.header.dimensions;
        let expected = dimensions.iter().try_fold(width, |size: u64, &n| size.checked_mul(n as u64));
        if expected != Some(self.size) {
            return Err(format!("{self} of {width} bytes each, but its data are {} bytes", self.size));
        }
        Ok(())
    }

    /// Its dimensions, the fastest one first.
    pub(in crate::import) fn dimensions(&self) -> &[usize] {
        &self.header.dimensions
    }

    /// Whether its values are unsigned bytes, and stored as such.
    pub(in crate::import) fn is_bytes(&self) -> bool {
        self.class_name() == "uint8" && self.stored == UINT8
    }

    /// Reads the next bytes of the data.
    pub(in crate::import) fn read(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.data.read_exact(bytes).map_err(|error| self.broken(&describe_unreadable(error)))
    }

    /// Checks that only padding follows the data, and the checksum of a compressed array.
    pub(in crate::import) fn check_end(mut self) -> Result<()> {
        let mut rest = Vec::new();
        let read = self.data.by_ref().take(8).read_to_end(&mut rest);
        match read.map_err(|error| self.broken(&describe_unreadable(error)))? {
            0..8 => Ok(()),
            _ => Err(self.broken("more data than the dimensions make")),
        }
    }

    /// Reads all values as numbers.
    pub(in crate::import) fn read_numbers(mut self) -> Result<Vec<f64>> {
        let mut bytes = Vec::new(); // grows with the data, not with the header's claim
        let read = self.data.by_ref().take(self.size).read_to_end(&mut bytes);
        if read.map_err(|error| self.broken(&describe_unreadable(error)))? as u64 != self.size {
            return Err(self.broken(&format!("cut short: {} of {} bytes", bytes.len(), self.size)));
        }
        let numbers = parse_numbers(self.stored, &bytes);
        self.check_end()?;
        Ok(numbers)
    }

    fn class_name(&self) -> &'static str {
        CLASSES.get(usize::from(self.header.class)).unwrap_or(&"unknown")
    }

    fn broken(&self, what: &str) -> Error {
        broken_source(&self.path, &format!("array {}: {what}", self.header.name))
    }
}

impl fmt::Display for Array {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Header { name, dimensions, complex, .. } = &self.header;
        let dimensions: Vec<String> = dimensions.iter().map(usize::to_string).collect();
        let complex = if *complex { "complex " } else { "" };
        write!(f, "array {name} is {} {complex}{}", dimensions.join("x"), self.class_name())
    }
}

/// Parses numbers of the type `stored`, one of the number types.
fn parse_numbers(stored: u32, bytes: &[u8]) -> Vec<f64> {
    match stored {
        INT8 => parse_each(bytes, |number| i8::from_le_bytes(number).into()),
        INT16 => parse_each(bytes, |number| i16::from_le_bytes(number).into()),
        UINT16 => parse_each(bytes, |number| u16::from_le_bytes(number).into()),
        INT32 => parse_each(bytes, |number| i32::from_le_bytes(number).into()),
        UINT32 => parse_each(bytes, |number| u32::from_le_bytes(number).into()),
        SINGLE => parse_each(bytes, |number| f32::from_le_bytes(number).into()),
        DOUBLE => parse_each(bytes, f64::from_le_bytes),
        _ => parse_each(bytes, |number| u8::from_le_bytes(number).into()),
    }
}

fn parse_each<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    bytes.as_chunks().0.iter().map(|&bytes| number(bytes)).collect()
}

/// Finds the array of this name; returns its header and a reader of the rest of its element.
fn find_array(file: &Arc<File>, name: &str) -> Result<(Header, Box<dyn Read>), String> {
    let mut at = file.as_ref();
    let length = at.metadata().map_err(describe_unreadable)?.len();
    let mut next = check_start(&mut at)?;
    let mut others = Vec::new();
    while next < length {
        at.seek(SeekFrom::Start(next)).map_err(describe_unreadable)?;
        let Tag { kind, size, inline } = Tag::read(&mut at)?;
        next += if inline.is_some() { 8 } else { 8 + u64::from(size) };
        if next > length {
            return Err(format!("cut short: {length} of {next} bytes at least"));
        }
        let mut element = open_element(BufReader::new(Arc::clone(file)).take(size.into()), kind)?;
        let header = Header::read(&mut element)?;
        if header.name == name {
            return Ok((header, element));
        }
        others.push(header.name);
    }
    Err(format!("no array {name} among the arrays {others:?}"))
}

/// Checks a file's first bytes, and returns their number.
fn check_start(file: &mut impl Read) -> Result<u64, String> {
    let mut start = [0; 128];
    file.read_exact(&mut start).map_err(describe_unreadable)?;
    if start[124..] != [0, 1, b'I', b'M'] {
        let text = String::from_utf8_lossy(&start[..20]);
        return Err(format!("not a MAT-file of version 5, little-endian: it starts with {text:?}"));
    }
    Ok(start.len() as u64)
}

/// A reader of the array in a top-level element of type `kind`, decompressed.
fn open_element<'a>(body: impl BufRead + 'a, kind: u32) -> Result<Box<dyn Read + 'a>, String> {
    match kind {
        MATRIX => Ok(Box::new(body)),
        COMPRESSED => {
            let mut body = ZlibDecoder::new(body);
            match Tag::read(&mut body)?.kind {
                MATRIX => Ok(Box::new(body)),
                kind => Err(format!("an element of type {kind}, compressed; expected an array")),
            }
        }
        _ => Err(format!("an element of type {kind}; expected an array")),
    }
}

impl Header {
    fn read(element: &mut impl Read) -> Result<Header, String> {
        let flags = read_element(element, UINT32)?;
        let [class, flags, ..] = flags[..] else { return Err("an array without flags".into()) };
        let dimensions = read_element(element, INT32)?;
        let (dimensions, _) = dimensions.as_chunks();
        Ok(Header {
            class,
            complex: flags & 8 != 0,
            dimensions: dimensions.iter().map(|&n| u32::from_le_bytes(n) as usize).collect(),
            name: String::from_utf8_lossy(&read_element(element, INT8)?).into_owned(),
        })
    }
}

/// Reads a small element of type `kind`, with its padding.
fn read_element(reader: &mut impl Read, kind: u32) -> Result<Vec<u8>, String> {
    let tag = Tag::read(reader)?;
    if tag.kind != kind || tag.size > MAX_HEADER_BYTES {
        return Err(format!("{} bytes of type {} where type {kind} is due", tag.size, tag.kind));
    }
    let size = tag.size as usize;
    let mut bytes = match tag.inline {
        Some(bytes) => bytes.to_vec(),
        None => {
            let mut bytes = vec![0; size.next_multiple_of(8)];
            reader.read_exact(&mut bytes).map_err(describe_unreadable)?;
            bytes
        }
    };
    bytes.truncate(size);
    Ok(bytes)
}

/// The tag before each element.
struct Tag {
    kind: u32,
    size: u32,
    /// A small element lies in the tag itself, padded.
    inline: Option<[u8; 4]>,
}

impl Tag {
    fn read(reader: &mut impl Read) -> Result<Tag, String> {
        let mut words = [[0; 4]; 2];
        reader.read_exact(words.as_flattened_mut()).map_err(describe_unreadable)?;
        let [first, second] = words.map(u32::from_le_bytes);
        match first >> 16 {
            0 => Ok(Tag { kind: first, size: second, inline: None }),
            size @ 1..=4 => Ok(Tag { kind: first & 0xFFFF, size, inline: Some(words[1]) }),
            _ => Err(format!("an impossible tag {words:02x?}")),
        }
    }
}

/// The value of a record's field.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::import) enum Value {
    /// One real number.
    Number(f64),
    Text(String),
    /// Anything else.
    Other,
}

/// Reads the array of records of this name from a whole file; returns the values of `fields` of each record.
///
/// # Errors
/// Another format, no such array, an array of other values or without a field, a cut file.
pub(in crate::import) fn read_records(
    file: &[u8],
    name: &str,
    fields: &[&str],
) -> Result<Vec<Vec<Value>>, String> {
    let mut rest = file;
    check_start(&mut rest)?;
    while !rest.is_empty() {
        let Tag { kind, size, inline } = Tag::read(&mut rest)?;
        let size = if inline.is_some() { 0 } else { size as usize };
        let (body, after) = rest.split_at_checked(size).ok_or("cut short")?;
        rest = after;
        let mut element = open_element(body, kind)?;
        let header = Header::read(&mut element)?;
        if header.name == name {
            return header.read_records(&mut element, fields);
        }
    }
    Err(format!("no array {name}"))
}

impl Header {
    fn read_records(&self, element: &mut impl Read, fields: &[&str]) -> Result<Vec<Vec<Value>>, String> {
        let count = self.dimensions.iter().try_fold(1, |count: usize, &n| count.checked_mul(n));
        let count = count.filter(|&count| self.class == STRUCT && count <= MAX_RECORDS);
        let count =
            count.ok_or_else(|| format!("array {} isn't of at most {MAX_RECORDS} records", self.name))?;
        let width = read_element(element, INT32)?;
        let width = <[u8; 4]>::try_from(width).map_or(0, u32::from_le_bytes).max(1) as usize;
        let names = read_element(element, INT8)?;
        let names: Vec<&[u8]> =
            names.chunks(width).map(|name| name.split(|&b| b == 0).next().unwrap_or(name)).collect();
        let place = |field: &&str| {
            let place = names.iter().position(|name| *name == field.as_bytes());
            place.ok_or_else(|| format!("array {} has no field {field}", self.name))
        };
        let places: Vec<usize> = fields.iter().map(place).collect::<Result<_, _>>()?;
        if names.len() > MAX_FIELDS {
            return Err(format!("array {} has {} fields", self.name, names.len()));
        }
        let mut records = Vec::new();
        for _ in 0..count {
            let values: Vec<Value> = names.iter().map(|_| read_value(element)).collect::<Result<_, _>>()?;
            records.push(places.iter().map(|&place| values[place].clone()).collect());
        }
        Ok(records)
    }
}

/// Reads an array within a record.
fn read_value(reader: &mut impl Read) -> Result<Value, String> {
    let Tag { kind, size, .. } = Tag::read(reader)?;
    if kind != MATRIX {
        return Err(format!("an element of type {kind} in a record; expected an array"));
    }
    let mut body = reader.take(size.into());
    let value = if size == 0 { Value::Other } else { read_small_value(&mut body)? };
    let left = body.limit();
    match io::copy(&mut body, &mut io::sink()).map_err(describe_unreadable)? {
        skipped if skipped == left => Ok(value),
        _ => Err("cut short inside a record".into()),
    }
}

fn read_small_value(body: &mut impl Read) -> Result<Value, String> {
    let header = Header::read(body)?;
    if header.class != CHAR && !NUMBERS.contains(&header.class) || header.complex {
        return Ok(Value::Other);
    }
    let Tag { kind, size, inline } = Tag::read(body)?;
    if size > MAX_HEADER_BYTES {
        return Ok(Value::Other);
    }
    let mut bytes = inline.map_or_else(|| vec![0; size as usize], |bytes| bytes.to_vec());
    if inline.is_none() {
        body.read_exact(&mut bytes).map_err(describe_unreadable)?;
    }
    bytes.truncate(size as usize);
    Ok(match (header.class, kind) {
        (CHAR, UINT16) => {
            let units: Vec<u16> = bytes.as_chunks().0.iter().map(|&unit| u16::from_le_bytes(unit)).collect();
            Value::Text(String::from_utf16_lossy(&units))
        }
        (CHAR, INT8 | UINT8 | UTF8) => Value::Text(String::from_utf8_lossy(&bytes).into_owned()),
        (CHAR, _) => Value::Other,
        (_, INT8..=DOUBLE) => match parse_numbers(kind, &bytes)[..] {
            [number] => Value::Number(number),
            _ => Value::Other,
        },
        _ => Value::Other,
    })
}
