//! Rows of Parquet files: a column `image` of `bytes` (and `path`), and a column `label` of class numbers. The files'
//! metadata names the classes.
//!
//! Such a file is read by row groups, which are far larger than an image. So samples aren't shuffled one by one: first
//! the row groups of all files are shuffled, then the samples within each gigabyte of row groups. A shard holds a part
//! of one or two such gigabytes, and no row group is read twice.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use parquet::basic::Type;
use parquet::column::reader::get_typed_column_reader;
use parquet::data_type::{ByteArray, ByteArrayType, DataType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, FileReader, Length, SerializedFileReader};

use crate::dataset::expand_glob;
use crate::error::{Error, IoContext, Result};
use crate::import::broken_source;
use crate::import::entry::ImageRequest;
use crate::import::image_set::{ImageReader, ImageSet, UniqueKeys};
use crate::left_out::LeftOut;
use crate::random::{self, Domain};
use crate::shard::MAX_IMAGE_BYTES;

/// Samples are shuffled within so many bytes of row groups.
const BLOCK_BYTES: i64 = 1 << 30;

const BYTES: &str = "image.bytes";
const LABEL: &str = "label";

/// The images of all files, folders and globs after `--src`.
pub(super) fn find_images(request: &ImageRequest) -> Result<Vec<ImageSet>> {
    let paths = list_files(&request.sources)?;
    let mut table = Table { files: Vec::new(), groups: Vec::new(), starts: Vec::new() };
    let mut samples = Vec::new();
    let mut class_names = None;
    let mut keys = UniqueKeys::default();
    for path in paths {
        let file = File::open(&path).context("open", &path)?;
        let length = file.metadata().context("read", &path)?.len();
        let file = Positional { file: Arc::new(file), length, at: 0 };
        let reader = SerializedFileReader::new(file).map_err(|error| unreadable_file(&path, &error))?;
        let metadata = reader.metadata().file_metadata();
        if table.files.is_empty() {
            let entries = metadata.key_value_metadata().map_or(&[][..], Vec::as_slice);
            let entry = entries.iter().find(|entry| entry.key == "huggingface");
            class_names = entry.and_then(|entry| parse_class_names(entry.value.as_deref()?));
        }
        let prefix = keys.make(&path.file_name().unwrap_or_default().to_string_lossy());
        let bytes = find_column(&path, &reader, BYTES, Type::BYTE_ARRAY)?;
        let label = find_column(&path, &reader, LABEL, Type::INT64)?;
        let mut row = 0;
        for (number, group) in reader.metadata().row_groups().iter().enumerate() {
            let labels = read_values::<Int64Type>(&reader, number, label)
                .map_err(|error| unreadable_file(&path, &error))?;
            let labels: Vec<i64> = labels.into_iter().flatten().collect();
            if labels.len() as i64 != group.num_rows() {
                let what =
                    format!("row group {number} has {} labels for {} rows", labels.len(), group.num_rows());
                return Err(broken_source(
                    &path,
                    &format!("{what}; rows without a label can't be trained on"),
                ));
            }
            table.starts.push(samples.len());
            for label in labels {
                let label = u32::try_from(label).map_err(|_| {
                    let what = format!("row {row} has label {label}: no class (test splits have no labels)");
                    Error::malformed(&path, what)
                })?;
                samples.push((format!("{prefix}/{row:06}").into(), label));
                row += 1;
            }
            table.groups.push(Group {
                file: table.files.len(),
                number,
                column: bytes,
                size: group.column(bytes).uncompressed_size(),
                state: Mutex::new(GroupState {
                    images: None,
                    unread: samples.len() - table.starts[table.groups.len()],
                }),
            });
        }
        table.files.push((path, reader));
    }
    let most = samples.iter().map(|sample: &(Box<str>, u32)| sample.1).max();
    let Some(most) = most else {
        return Err(Error::malformed(
            &table.files[0].0,
            "no rows in it; give the files that hold the images",
        ));
    };
    let classes = class_names.as_ref().map_or(most as usize + 1, Vec::len);
    if most as usize >= classes {
        let what = format!("label {most} is outside the {classes} classes that its metadata names");
        return Err(broken_source(&table.files[0].0, &what));
    }
    let split = request.split_name();
    Ok(vec![ImageSet {
        name: split.clone(),
        split,
        classes,
        class_names,
        samples,
        images: Box::new(table),
        left_out: LeftOut::default(),
    }])
}

/// The files of one split, sorted by path.
fn list_files(sources: &[String]) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for source in sources {
        let folder = Path::new(source);
        let pattern = if folder.is_dir() {
            format!("{}/*.parquet", glob::Pattern::escape(source))
        } else if folder.exists() {
            glob::Pattern::escape(source)
        } else {
            source.clone()
        };
        let matches = expand_glob(&pattern)?;
        if matches.is_empty() {
            return Err(Error::malformed(
                folder,
                "no .parquet files here; give such files, a folder or a glob",
            ));
        }
        paths.extend(matches);
    }
    paths.sort();
    paths.dedup();
    // Hugging Face's names are SPLIT-00000-of-00294.parquet, often with a checksum.
    let split = |path: &PathBuf| {
        let (split, rest) = path.file_name()?.to_str()?.split_once('-')?;
        rest.contains("-of-").then(|| split.to_owned())
    };
    let splits: BTreeSet<String> = paths.iter().filter_map(split).collect();
    if splits.len() > 1 {
        let what = format!(
            "files of the splits {splits:?}; import each by itself, by a glob such as 'train-*.parquet'"
        );
        return Err(Error::malformed(Path::new(&sources[0]), what));
    }
    Ok(paths)
}

fn unreadable_file(path: &Path, error: &ParquetError) -> Error {
    broken_source(path, &format!("not a readable Parquet file ({error})"))
}

/// The class names, by the metadata that the `datasets` library writes.
fn parse_class_names(metadata: &str) -> Option<Vec<String>> {
    let metadata: serde_json::Value = serde_json::from_str(metadata).ok()?;
    let names = metadata.pointer("/info/features/label/names")?.as_array()?;
    names.iter().map(|name| name.as_str().map(str::to_owned)).collect()
}

type Reader = SerializedFileReader<Positional>;

/// A file that is read by position. The crate moves the cursor of a plain `File`, so threads would disturb each other.
#[derive(Clone)]
struct Positional {
    file: Arc<File>,
    length: u64,
    at: u64,
}

impl Read for Positional {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(bytes, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Length for Positional {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for Positional {
    type T = BufReader<Positional>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(BufReader::new(Positional { at: start, ..self.clone() }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.length) {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} of {}", self.length)));
        }
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, start)?;
        Ok(bytes.into())
    }
}

/// The number of the column of this name and type.
fn find_column(path: &Path, reader: &Reader, name: &str, kind: Type) -> Result<usize> {
    let schema = reader.metadata().file_metadata().schema_descr();
    let found = schema.columns().iter().position(|column| column.path().string() == name);
    match found.filter(|&found| {
        let column = schema.column(found);
        column.physical_type() == kind && column.max_rep_level() == 0
    }) {
        Some(found) => Ok(found),
        None => {
            let columns: Vec<String> = schema.columns().iter().map(|column| column.path().string()).collect();
            let what =
                format!("no column {name} of type {kind} among {columns:?}; it isn't a data set of images");
            Err(Error::malformed(path, what))
        }
    }
}

/// The values of a column in a row group, in the order of the rows; `None` in a row without a value.
fn read_values<T: DataType>(
    reader: &Reader,
    group: usize,
    column: usize,
) -> Result<Vec<Option<T::T>>, ParquetError> {
    let group = reader.get_row_group(group)?;
    let rows = group.metadata().num_rows() as usize;
    let defined = group.metadata().column(column).column_descr().max_def_level();
    let mut column = get_typed_column_reader::<T>(group.get_column_reader(column)?);
    let mut levels = Vec::new();
    let mut values = Vec::new();
    let mut read = 0;
    while read < rows {
        match column.read_records(rows - read, Some(&mut levels), None, &mut values)? {
            (0, ..) => break,
            (records, ..) => read += records,
        }
    }
    let mut values = values.into_iter();
    if defined == 0 {
        return Ok(values.map(Some).collect());
    }
    Ok(levels.into_iter().map(|level| if level == defined { values.next() } else { None }).collect())
}

/// All row groups of all files.
struct Table {
    files: Vec<(PathBuf, Reader)>,
    groups: Vec<Group>,
    /// The number of each group's first sample.
    starts: Vec<usize>,
}

struct Group {
    file: usize,
    number: usize,
    column: usize,
    /// Bytes of its images.
    size: i64,
    state: Mutex<GroupState>,
}

/// The images of a row group, in memory from the first read to the last.
struct GroupState {
    images: Option<Vec<Option<ByteArray>>>,
    /// Samples that are still to be read.
    unread: usize,
}

impl Table {
    fn locate(&self, sample: usize) -> (&Group, usize) {
        // Empty groups start where the next one does: the last to start there is the one that isn't empty.
        let group = self.starts.partition_point(|&start| start <= sample) - 1;
        (&self.groups[group], sample - self.starts[group])
    }
}

impl ImageReader for Table {
    fn read(&self, sample: usize, bytes: &mut Vec<u8>) -> Result<()> {
        let (group, row) = self.locate(sample);
        let (path, reader) = &self.files[group.file];
        let mut state = group.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.images.is_none() {
            let images = read_values::<ByteArrayType>(reader, group.number, group.column);
            state.images = Some(images.map_err(|error| unreadable_file(path, &error))?);
        }
        let image = state.images.as_ref().and_then(|images| images.get(row)?.as_ref());
        let image = image.map_or(&[][..], ByteArray::data); // a missing image is as bad as an empty one
        bytes.clear();
        bytes.extend_from_slice(&image[..image.len().min(MAX_IMAGE_BYTES as usize + 1)]);
        state.unread = state.unread.saturating_sub(1);
        if state.unread == 0 {
            state.images = None;
        }
        Ok(())
    }

    fn path(&self, sample: usize) -> &Path {
        &self.files[self.locate(sample).0.file].0
    }

    fn skip(&self, sample: usize) {
        let mut state = self.locate(sample).0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.unread = state.unread.saturating_sub(1);
    }

    fn shuffle_samples(&self, count: usize, seed: u64) -> Vec<u32> {
        let mut rng = random::stream(Domain::Import, seed, 0, 0, 0);
        let mut groups: Vec<usize> = (0..self.groups.len()).collect();
        random::shuffle(&mut rng, &mut groups);
        let mut order = Vec::with_capacity(count);
        let mut block = 0;
        let mut size = 0_i64;
        for group in groups {
            if size.saturating_add(self.groups[group].size) > BLOCK_BYTES {
                random::shuffle(&mut rng, &mut order[block..]);
                (block, size) = (order.len(), 0);
            }
            let end = self.starts.get(group + 1).copied().unwrap_or(count);
            order.extend(self.starts[group] as u32..end as u32);
            size = size.saturating_add(self.groups[group].size);
        }
        random::shuffle(&mut rng, &mut order[block..]);
        order
    }
}
