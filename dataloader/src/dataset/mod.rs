//! A dataset: shards opened together, their samples numbered from 0 in the order of the shards. A folder of image
//! files is one shard.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, IoContext, Result};
use crate::left_out::LeftOut;
use crate::shard::{HEADER, IndexState, IndexedSample, MAX_IMAGE_BYTES, ShardIndex, header_crc, split_key};
use crate::source::{Options, Source, Storage, folder_of, is_url, join, reserve_open_files};
use crate::{buffer, files, parallel};

mod class_folders;
mod info;
mod pattern;
mod shard_list;

pub(crate) use class_folders::{ClassFolders, FolderImages, list_class};
pub use info::DatasetInfo;
#[cfg(feature = "parquet")]
pub(crate) use pattern::expand_glob;
pub(crate) use shard_list::ShardList;

use pattern::ResolvedShards;

/// Shards opened for reading. Every method takes `&self` and may be called from many threads.
#[derive(Debug)]
pub struct Dataset {
    shards: Vec<Shard>,
    len: usize,
    info: Option<DatasetInfo>,
    /// Samples of each set that was joined.
    set_sizes: Vec<usize>,
}

#[derive(Debug)]
struct Shard {
    contents: Contents,
    /// Number of its first sample.
    start: usize,
    index: ShardIndex,
    index_state: IndexState,
}

#[derive(Debug)]
enum Contents {
    Tar(Source),
    /// Samples are files in this folder; with an empty path, files anywhere.
    Folder(PathBuf),
}

/// The origin of a sample, and its label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleInfo<'a> {
    /// The shard that holds it: a tar's path or URL, or the folder of images.
    pub shard: &'a Path,
    /// Its image member in the shard, or its file in the folder: the key and the extension.
    pub name: &'a str,
    /// Its key in the shard.
    pub key: &'a str,
    /// Its class number.
    pub label: u32,
    /// Bytes of the encoded image; 0 for an image file that hasn't been read.
    pub length: u32,
}

/// One opened shard, as [`Dataset::shards`] lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardInfo<'a> {
    /// The tar's path or URL, or the folder of images.
    pub path: &'a Path,
    /// Samples in it.
    pub samples: usize,
    /// Bytes of the tar; 0 for a folder of images.
    pub bytes: u64,
    /// The origin of its index.
    pub index: IndexState,
}

impl Dataset {
    /// Opens the data set that `pattern` names:
    ///
    /// - a folder (every `.tar` in it), a glob (`x-*.tar`), a range (`x-{000000..000012}.tar`) or one file;
    /// - the same in a store, after `s3://BUCKET/`, `gs://BUCKET/`, `https://HOST/` or `http://HOST/`. Folders and
    ///   globs need a store that can list; a web server can't. (With the feature `remote`, and not from async code.)
    /// - a list of shards by timm (`_info.json#train`) or by wids (`shardindex.json`), local or in a store;
    /// - a folder without shards whose subfolders hold images, one class each.
    ///
    /// If the first shard's folder has a `dataset.json`, a folder or glob must match its counts of shards and samples. A
    /// folder must also match another tool's list in it. A range or a single file may be a part of a data set.
    /// Credentials for stores come from the environment: `AWS_…`, `GOOGLE_…`.
    ///
    /// # Errors
    /// No shards, one that is missing or broken (see [`ShardIndex::rebuild`]), other counts than `dataset.json`'s,
    /// folders of splits instead of classes, a store that doesn't answer.
    pub fn open(pattern: &str) -> Result<Dataset> {
        Dataset::open_with(pattern, &Options::default())
    }

    /// As [`open`](Self::open), with a cache, another time-out, or rebuilt indices.
    pub fn open_with(pattern: &str, options: &Options) -> Result<Dataset> {
        let (shards, info) =
            if Path::new(pattern).is_dir() && class_folders::is_image_folder(Path::new(pattern))? {
                open_folder(Path::new(pattern))?
            } else {
                open_shards(pattern, options)?
            };
        let len = shards.iter().map(|shard| shard.index.len()).sum();
        if len == 0 {
            let what = "no samples in the shards";
            let left_out = merge_left_out(&shards);
            if left_out.is_empty() {
                return Err(Error::Empty { what, pattern: pattern.to_owned() });
            }
            return Err(Error::malformed(Path::new(pattern), format!("{what}; left out {left_out}")));
        }
        if u32::try_from(len).is_err() {
            return Err(Error::InvalidArgument(format!(
                "'{pattern}' holds {len} samples; use fewer than 2³²"
            )));
        }
        Ok(Dataset { shards, len, info, set_sizes: vec![len] })
    }

    /// One data set of the shards of several, whose samples are numbered one set after another. Facts that are known of only
    /// some of them, as class names, hold for all.
    ///
    /// # Errors
    /// Sets that number their classes differently, no set, or 2³² samples.
    pub fn join(sets: Vec<Dataset>) -> Result<Dataset> {
        let mut sets = sets.into_iter();
        let no_set = || Error::InvalidArgument("no data set to read; name one".into());
        let mut joined = sets.next().ok_or_else(no_set)?;
        for set in sets {
            if let (Some(first), Some(info)) = (&joined.info, &set.info)
                && let Some(difference) = info.class_difference(first)
            {
                let first = joined.shards[0].path().display();
                let what = format!(
                    "{difference} in {first}; sets that are trained together must have the same classes"
                );
                return Err(Error::malformed(set.shards[0].path(), what));
            }
            let start = joined.len;
            joined.len += set.len;
            joined
                .shards
                .extend(set.shards.into_iter().map(|shard| Shard { start: start + shard.start, ..shard }));
            joined.set_sizes.extend(set.set_sizes);
            joined.info = match (joined.info, set.info) {
                (Some(info), Some(other)) => Some(info.join(other)),
                (info, other) => info.or(other),
            };
        }
        if u32::try_from(joined.len).is_err() {
            return Err(Error::InvalidArgument(format!(
                "the sets hold {} samples; use fewer than 2³²",
                joined.len
            )));
        }
        Ok(joined)
    }

    /// Samples of each set that was [joined](Self::join), in their order; of one set, all samples.
    pub fn set_sizes(&self) -> &[usize] {
        &self.set_sizes
    }

    /// Opens images without labels (their label is 0): JPEG and PNG files, and those in folders at any depth, in the
    /// order of their names.
    ///
    /// # Errors
    /// A missing path, a file that isn't named as a JPEG or PNG, a folder without images.
    pub fn from_images(paths: &[PathBuf]) -> Result<Dataset> {
        let index = class_folders::list_unlabelled(paths)?;
        let len = index.len();
        let contents = Contents::Folder(PathBuf::new());
        let shards = vec![Shard { contents, start: 0, index, index_state: IndexState::NotNeeded }];
        Ok(Dataset { shards, len, info: None, set_sizes: vec![len] })
    }

    /// Whether [`open`](Self::open) would open `pattern` as shards, not as images: a tar, a list of shards, a range or
    /// glob, a URL, a folder with tars in it.
    ///
    /// # Errors
    /// A folder that can't be listed.
    pub fn names_shards(pattern: &str) -> Result<bool> {
        pattern::names_shards(pattern)
    }

    /// Number of samples; at least 1, at most `u32::MAX`.
    #[expect(clippy::len_without_is_empty, reason = "a dataset without samples doesn't open")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The contents of `dataset.json`, if there is one; for a folder of images, the same facts about it.
    pub fn info(&self) -> Option<&DatasetInfo> {
        self.info.as_ref()
    }

    /// The names of the class folders in `folder`, sorted: the classes that [`open`](Self::open) would find.
    ///
    /// # Errors
    /// A folder that can't be listed, folders of splits instead of classes.
    pub fn class_folders(folder: &Path) -> Result<Vec<String>> {
        ClassFolders::list(folder).map(|classes| classes.names)
    }

    /// Counts of the files and members that were found and not read.
    pub fn left_out(&self) -> LeftOut {
        merge_left_out(&self.shards)
    }

    /// Number of classes by `dataset.json`.
    pub fn classes(&self) -> Option<usize> {
        self.info.as_ref().map(|info| info.classes)
    }

    /// The shards in order.
    pub fn shards(&self) -> impl ExactSizeIterator<Item = ShardInfo<'_>> {
        self.shards.iter().map(|shard| ShardInfo {
            path: shard.path(),
            samples: shard.index.len(),
            bytes: shard.index.tar_size(),
            index: shard.index_state,
        })
    }

    /// The origin and label of sample `sample`; `None` from [`len`](Self::len) on.
    pub fn sample_info(&self, sample: usize) -> Option<SampleInfo<'_>> {
        self.locate(sample).map(|(shard, found)| shard.meta(found))
    }

    /// A sample's name for people: its file, or its shard and key.
    ///
    /// # Panics
    /// From [`len`](Self::len) on.
    pub fn sample_name(&self, sample: usize) -> String {
        let (shard, found) = self.locate(sample).expect("a sample of the set");
        match &shard.contents {
            Contents::Tar(source) => format!("{}:{}", source.path().display(), shard.key(found.name)),
            Contents::Folder(folder) => folder.join(found.name).display().to_string(),
        }
    }

    /// Checks that every label is below `classes`, and that so many classes have names if any have.
    ///
    /// # Errors
    /// Another number of names; the first sample, in dataset order, with a larger label.
    pub fn check_labels(&self, classes: usize) -> Result<()> {
        if let Some(names) = self.info.as_ref().and_then(|info| info.class_names.as_deref())
            && names.len() != classes
        {
            return Err(Error::InvalidArgument(format!(
                "{} names {} classes, not {classes}; set the number of classes (data.classes) to {}",
                self.shards[0].path().display(),
                names.len(),
                names.len()
            )));
        }
        for shard in &self.shards {
            if let Some(bad) = shard.index.iter().find(|sample| sample.label as usize >= classes) {
                let reason = format!(
                    "label {} is outside the {classes} classes (0 to {}); correct the .cls member or the number of classes",
                    bad.label,
                    classes.saturating_sub(1)
                );
                return Err(Error::Label {
                    shard: shard.path().to_owned(),
                    key: shard.key(bad.name).to_owned(),
                    reason,
                });
            }
        }
        Ok(())
    }

    /// Replaces the contents of `encoded` by the encoded image of `sample`, in one positional read, and returns
    /// the sample's origin.
    ///
    /// # Errors
    /// A sample from [`len`](Self::len) on, a shard that can't be read, an index that belongs to another shard.
    pub fn read(&self, sample: usize, encoded: &mut Vec<u8>) -> Result<SampleInfo<'_>> {
        let (shard, found) = self.locate(sample).ok_or_else(|| {
            Error::InvalidArgument(format!("sample {sample} was asked of a dataset of {}", self.len))
        })?;
        let length = shard.read(&found, encoded)?;
        Ok(shard.meta(IndexedSample { length, ..found }))
    }

    /// SHA-256, in hex, over the shards' file names and sizes and every sample's name and label. It is equal if two ranks,
    /// or a run and its resumption, open the same dataset. It doesn't cover pixels, nor the folder or store. For a folder
    /// of images it covers neither the folder's name nor the files' sizes.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for shard in &self.shards {
            // Lengths before contents, so that no two datasets write the same bytes.
            let name = match &shard.contents {
                Contents::Tar(source) => files::file_name(source.path()),
                Contents::Folder(_) => String::new(),
            };
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
            hash.update(shard.index.tar_size().to_le_bytes());
            hash.update((shard.index.len() as u64).to_le_bytes());
            for sample in shard.index.iter() {
                hash.update((sample.name.len() as u64).to_le_bytes());
                hash.update(sample.name.as_bytes());
                hash.update(sample.label.to_le_bytes());
            }
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn locate(&self, sample: usize) -> Option<(&Shard, IndexedSample<'_>)> {
        let after = self.shards.partition_point(|shard| shard.start <= sample);
        let shard = &self.shards[after.checked_sub(1)?];
        Some((shard, shard.index.get(sample - shard.start)?))
    }
}

fn open_folder(path: &Path) -> Result<(Vec<Shard>, Option<DatasetInfo>)> {
    let (index, listed) = class_folders::list_images_by_class(path)?;
    let info = DatasetInfo::load(path)?.unwrap_or(listed);
    let contents = Contents::Folder(path.to_owned());
    Ok((vec![Shard { contents, start: 0, index, index_state: IndexState::NotNeeded }], Some(info)))
}

fn open_shards(pattern: &str, options: &Options) -> Result<(Vec<Shard>, Option<DatasetInfo>)> {
    let storage = Storage::new(options);
    let ResolvedShards { shards: locations, listed, whole_folder, list } =
        pattern::resolve(pattern, &storage)?;
    let folder = folder_of(&locations[0].name);
    let info_path = join(folder, DatasetInfo::FILE);
    let info = match storage.read_small(&info_path, true)? {
        Some(text) => Some(DatasetInfo::parse(Path::new(&info_path), &text)?),
        None => None,
    };
    let list = match list {
        None if info.is_none() => pattern::find_list(folder, &storage)?,
        list => list,
    };
    let check_count = |manifest: &str, unit, expected: u64, found: u64| {
        let manifest = PathBuf::from(manifest);
        if expected == found { Ok(()) } else { Err(Error::Incomplete { manifest, unit, expected, found }) }
    };
    if let Some(info) = info.as_ref().filter(|_| !listed) {
        check_count(&info_path, "shards", info.shards, locations.len() as u64)?;
    }
    if let Some(list) = list.as_ref().filter(|_| whole_folder) {
        check_count(&list.path, "shards", list.split(None)?.len() as u64, locations.len() as u64)?;
    }
    if !is_url(&locations[0].name) {
        reserve_open_files(locations.len());
    }
    // Requests to a store wait, and don't compute.
    let threads = if is_url(&locations[0].name) { 32 } else { parallel::count_cores() };
    let mut shards = parallel::map(&locations, threads, |_, location| {
        let source = storage.open(location)?;
        let (index, index_state) = ShardIndex::open_source(&source, options.rebuild_indices)?;
        if let Some((path, samples)) = listed_samples(list.as_ref(), &location.name) {
            check_count(&format!("{path} of {}", location.name), "samples", samples, index.len() as u64)?;
        }
        Ok(Shard { contents: Contents::Tar(source), start: 0, index, index_state })
    })?;
    let mut start = 0;
    for shard in &mut shards {
        shard.start = start;
        start += shard.index.len();
    }
    if let Some(info) = info.as_ref().filter(|_| !listed) {
        check_count(&info_path, "samples", info.samples, start as u64)?;
    }
    Ok((shards, info))
}

/// The path of a list, and its number of samples in the shard at `location`.
fn listed_samples<'a>(list: Option<&'a ShardList>, location: &str) -> Option<(&'a str, u64)> {
    let list = list?;
    Some((&list.path, list.samples(location)?))
}

fn merge_left_out(shards: &[Shard]) -> LeftOut {
    let mut left_out = LeftOut::default();
    shards.iter().for_each(|shard| left_out.merge(shard.index.left_out()));
    left_out
}

impl Shard {
    fn path(&self) -> &Path {
        match &self.contents {
            Contents::Tar(source) => source.path(),
            Contents::Folder(folder) => folder,
        }
    }

    /// The key of the sample `name`. A file's key ends at its extension, because two files may differ only after the
    /// first dot.
    fn key<'a>(&self, name: &'a str) -> &'a str {
        match self.contents {
            Contents::Tar(_) => split_key(name).0,
            Contents::Folder(ref folder) if folder.as_os_str().is_empty() => name, // a path
            Contents::Folder(_) => name.rsplit_once('.').map_or(name, |(key, _)| key),
        }
    }

    fn meta<'a>(&'a self, sample: IndexedSample<'a>) -> SampleInfo<'a> {
        let IndexedSample { name, length, label, .. } = sample;
        SampleInfo { shard: self.path(), name, key: self.key(name), label, length }
    }

    /// Replaces the contents of `encoded` by the sample's image, and returns its length.
    fn read(&self, sample: &IndexedSample<'_>, encoded: &mut Vec<u8>) -> Result<u32> {
        match &self.contents {
            Contents::Tar(source) => {
                let mut header = [0; HEADER];
                buffer::resize(encoded, sample.length as usize);
                source.read_exact_at(&mut header, encoded, sample.offset - HEADER as u64)?;
                if header_crc(&header) != sample.header {
                    let what = format!(
                        "'{}' isn't where the index says: the shard or its index was replaced; run codinet-data index --force",
                        sample.name
                    );
                    return Err(Error::malformed(source.path(), what));
                }
            }
            Contents::Folder(folder) => {
                let path = folder.join(sample.name);
                buffer::clear(encoded, 0);
                let read = File::open(&path)
                    .and_then(|file| file.take(MAX_IMAGE_BYTES + 1).read_to_end(encoded))
                    .context("read", &path)?;
                if read as u64 > MAX_IMAGE_BYTES {
                    let what = format!("over {} MiB, the most for an image", MAX_IMAGE_BYTES >> 20);
                    return Err(Error::malformed(&path, what));
                }
            }
        }
        Ok(encoded.len() as u32)
    }
}
