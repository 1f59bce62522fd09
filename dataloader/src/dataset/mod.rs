//! A dataset: shards opened together, their samples numbered from 0 in the order of the shards. A folder of image
//! files is one shard.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit, setrlimit};
use sha2::{Digest, Sha256};

use crate::error::{Error, IoContext, Result};
use crate::shard::{
    HEADER, IndexState, IndexedSample, MOST_IMAGE_BYTES, ShardIndex, header_crc, key_and_extension,
};
use crate::source::{Options, Source, Storage, folder_of, is_url, join};
use crate::{buffer, files, parallel};

mod class_folders;
mod info;
mod pattern;
mod shard_list;

pub use info::DatasetInfo;
#[cfg(feature = "parquet")]
pub(crate) use pattern::globbed;
pub(crate) use shard_list::ShardList;

use pattern::Named;

/// Shards opened for reading. Every method takes `&self` and may be called from many threads.
#[derive(Debug)]
pub struct Dataset {
    shards: Vec<Shard>,
    len: usize,
    info: Option<DatasetInfo>,
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
    /// Samples are files below this folder; with an empty one, files wherever they lie.
    Folder(PathBuf),
}

/// Where a sample comes from, and what it shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleInfo<'a> {
    /// The shard that holds it: a tar's path or URL, or the folder of images.
    pub shard: &'a Path,
    /// Its image member in the shard, or its file below the folder: the key and the extension.
    pub name: &'a str,
    /// Its key in the shard.
    pub key: &'a str,
    /// Its class number.
    pub label: u32,
    /// Bytes of the encoded image; 0 of an image file that hasn't been read.
    pub length: u32,
}

/// One opened shard, as [`Dataset::shards`] lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardInfo<'a> {
    /// The tar's path or URL, or the folder of images.
    pub path: &'a Path,
    /// Samples in it.
    pub samples: usize,
    /// Bytes of the tar; 0 of a folder of images.
    pub bytes: u64,
    /// Where its index came from.
    pub index: IndexState,
}

impl Dataset {
    /// Opens what `pattern` names:
    ///
    /// - a folder (every `.tar` in it), a glob (`x-*.tar`), a range (`x-{000000..000012}.tar`) or one file;
    /// - the same in a store, after `s3://BUCKET/`, `gs://BUCKET/`, `https://HOST/` or `http://HOST/`; folders and
    ///   globs where the store can list, which a web server can't (with the feature `remote`, and not from async code);
    /// - a list of shards by timm (`_info.json#train`) or by wids (`shardindex.json`), local or in a store;
    /// - a folder without shards whose subfolders hold images, a class each.
    ///
    /// Where a `dataset.json` lies beside the first shard, a folder or glob must find the shards and samples it
    /// counts; so must a folder beside which another tool's list lies, and every shard that the list counts. A
    /// range or single file is taken at its word, to train on a part. Credentials for stores are taken from the
    /// environment: `AWS_…`, `GOOGLE_…`.
    ///
    /// # Errors
    /// No shards, one that is missing or broken (see [`ShardIndex::rebuild`]), other counts than
    /// `dataset.json`'s; a store that doesn't answer.
    pub fn open(pattern: &str) -> Result<Dataset> {
        Dataset::open_with(pattern, &Options::default())
    }

    /// As [`open`](Self::open), with a cache, another time-out, or indices made anew.
    pub fn open_with(pattern: &str, options: &Options) -> Result<Dataset> {
        let (shards, info) =
            if Path::new(pattern).is_dir() && class_folders::is_image_folder(Path::new(pattern))? {
                open_folder(Path::new(pattern))?
            } else {
                open_shards(pattern, options)?
            };
        let len = shards.iter().map(|shard| shard.index.len()).sum();
        if len == 0 {
            return Err(Error::Empty { what: "no samples in the shards", pattern: pattern.to_owned() });
        }
        if u32::try_from(len).is_err() {
            return Err(Error::InvalidArgument(format!(
                "'{pattern}' holds {len} samples; use fewer than 2³²"
            )));
        }
        Ok(Dataset { shards, len, info })
    }

    /// Images that lie in no shard and have no label (0 stands for it): JPEG and PNG files, and those in folders at any
    /// depth, in the order of their names.
    ///
    /// # Errors
    /// A path that isn't there, a file that by its name is no JPEG or PNG, a folder without any.
    pub fn from_images(paths: &[PathBuf]) -> Result<Dataset> {
        let index = class_folders::list_images(paths)?;
        let (len, contents) = (index.len(), Contents::Folder(PathBuf::new()));
        let shards = vec![Shard { contents, start: 0, index, index_state: IndexState::NotNeeded }];
        Ok(Dataset { shards, len, info: None })
    }

    /// Whether [`open`](Self::open) would take `pattern` for shards, rather than for a folder of images or an image: a tar,
    /// a list of shards, a range or glob, anything in a store, a folder with tars in it.
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

    /// What `dataset.json` says, if there is one.
    pub fn info(&self) -> Option<&DatasetInfo> {
        self.info.as_ref()
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

    /// Where sample `sample` comes from, and its label; `None` from [`len`](Self::len) on.
    pub fn sample_info(&self, sample: usize) -> Option<SampleInfo<'_>> {
        self.locate(sample).map(|(shard, found)| shard.meta(found))
    }

    /// Checks that every label is below `classes`.
    ///
    /// # Errors
    /// The first sample, in dataset order, whose label isn't.
    pub fn check_labels(&self, classes: usize) -> Result<()> {
        for shard in &self.shards {
            if let Some(bad) = shard.index.iter().find(|sample| sample.label as usize >= classes) {
                let reason = format!(
                    "label {} is outside the {classes} classes (0 to {}); mend the .cls member or the number of classes",
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
    /// A sample from [`len`](Self::len) on, a shard that can't be read, or whose index is another shard's.
    pub fn read(&self, sample: usize, encoded: &mut Vec<u8>) -> Result<SampleInfo<'_>> {
        let (shard, found) = self.locate(sample).ok_or_else(|| {
            Error::InvalidArgument(format!("sample {sample} was asked of a dataset of {}", self.len))
        })?;
        let length = shard.read(&found, encoded)?;
        Ok(shard.meta(IndexedSample { length, ..found }))
    }

    /// SHA-256, in hex, over the shards' file names and sizes and every sample's name and label: equal where two
    /// ranks, or a run and its resumption, see the same dataset. The folder or store and the pixels have no part
    /// in it; of a folder of images neither have its name and the files' sizes.
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
    let (index, listed) = class_folders::list(path)?;
    let info = DatasetInfo::load(path)?.unwrap_or(listed);
    let contents = Contents::Folder(path.to_owned());
    Ok((vec![Shard { contents, start: 0, index, index_state: IndexState::NotNeeded }], Some(info)))
}

fn open_shards(pattern: &str, options: &Options) -> Result<(Vec<Shard>, Option<DatasetInfo>)> {
    let storage = Storage::new(options);
    let Named { shards: locations, listed, whole_folder, list } = pattern::shards(pattern, &storage)?;
    let folder = folder_of(&locations[0].name);
    let info_path = join(folder, DatasetInfo::FILE);
    let info = match storage.read_small(&info_path, true)? {
        Some(text) => Some(DatasetInfo::parse(Path::new(&info_path), &text)?),
        None => None,
    };
    let list = match list {
        None if info.is_none() => pattern::list_in(folder, &storage)?,
        list => list,
    };
    let expect = |manifest: &str, unit, expected: u64, found: u64| {
        let manifest = PathBuf::from(manifest);
        if expected == found { Ok(()) } else { Err(Error::Incomplete { manifest, unit, expected, found }) }
    };
    if let Some(info) = info.as_ref().filter(|_| !listed) {
        expect(&info_path, "shards", info.shards, locations.len() as u64)?;
    }
    if let Some(list) = list.as_ref().filter(|_| whole_folder) {
        expect(&list.path, "shards", list.split(None)?.len() as u64, locations.len() as u64)?;
    }
    allow_open_files(locations.len());
    // What a store takes to answer is spent waiting, not computing.
    let threads = if is_url(&locations[0].name) { 32 } else { parallel::count_cores() };
    let mut shards = parallel::map(&locations, threads, |_, location| {
        let source = storage.open(location)?;
        let (index, index_state) = ShardIndex::of(&source, options.rebuild_indices)?;
        if let Some((path, samples)) = counted(list.as_ref(), &location.name) {
            expect(&format!("{path} of {}", location.name), "samples", samples, index.len() as u64)?;
        }
        Ok(Shard { contents: Contents::Tar(source), start: 0, index, index_state })
    })?;
    let mut start = 0;
    for shard in &mut shards {
        shard.start = start;
        start += shard.index.len();
    }
    if let Some(info) = info.as_ref().filter(|_| !listed) {
        expect(&info_path, "samples", info.samples, start as u64)?;
    }
    Ok((shards, info))
}

/// What a list says of the samples in the shard at `location`, and where the list is.
fn counted<'a>(list: Option<&'a ShardList>, location: &str) -> Option<(&'a str, u64)> {
    let list = list?;
    Some((&list.path, list.samples(location)?))
}

/// Raises the process's limit on open files where `shards` come near it, as far as it may: each stays open. Where
/// that isn't far enough, opening one fails and says so.
fn allow_open_files(shards: usize) {
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = shards as u64 + 256;
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(limit.maximum.map_or(wanted, |most| most.min(wanted)));
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

impl Shard {
    fn path(&self) -> &Path {
        match &self.contents {
            Contents::Tar(source) => source.path(),
            Contents::Folder(folder) => folder,
        }
    }

    /// The key of the sample that is called `name`. A file's ends at its extension, for others may differ from it
    /// only behind the first dot.
    fn key<'a>(&self, name: &'a str) -> &'a str {
        match self.contents {
            Contents::Tar(_) => key_and_extension(name).0,
            Contents::Folder(ref folder) if folder.as_os_str().is_empty() => name, // it is a path
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
                    .and_then(|file| file.take(MOST_IMAGE_BYTES + 1).read_to_end(encoded))
                    .context("read", &path)?;
                if read as u64 > MOST_IMAGE_BYTES {
                    let what = format!("over {} MiB, the most for an image", MOST_IMAGE_BYTES >> 20);
                    return Err(Error::malformed(&path, what));
                }
            }
        }
        Ok(encoded.len() as u32)
    }
}
