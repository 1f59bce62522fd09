//! From what a user names to a list of shards.

use std::path::{Path, PathBuf};

use super::shard_list::{self, ShardList};
use crate::error::{Error, IoContext, Result};
use crate::source::{Location, Storage, is_url, join};

/// More shards than this in one range is taken for a slip of the keyboard.
const MOST_SHARDS: u64 = 1_000_000;

/// The shards a pattern names, and what is known of them beforehand.
#[derive(Debug)]
pub(crate) struct Named {
    /// Sorted, or in the order of the list or range that names them; at least one.
    pub(crate) shards: Vec<Location>,
    /// Whether the pattern lists them one by one (so that a missing one is noticed when it is opened) or takes
    /// what is there.
    pub(crate) listed: bool,
    /// Whether it takes all that a folder holds.
    pub(crate) whole_folder: bool,
    /// The list that the pattern is, if it is one.
    pub(crate) list: Option<ShardList>,
}

/// The shards that `pattern` names.
pub(crate) fn shards(pattern: &str, storage: &Storage) -> Result<Named> {
    if let Some((path, split)) = as_list(pattern) {
        let text = storage.read_small(path, false)?.ok_or_else(|| nothing(pattern))?;
        let list = ShardList::parse(path, &text)?.ok_or_else(|| {
            let what = "not a list of shards: it has neither timm's 'splits' nor wids' 'shardlist'";
            Error::malformed(Path::new(path), what)
        })?;
        let shards = list.split(split)?.iter().map(|shard| Location::new(&shard.location)).collect();
        return Named { shards, listed: true, whole_folder: false, list: Some(list) }.checked(pattern);
    }
    let folder = Path::new(pattern);
    let mut whole_folder = false;
    let (shards, listed) = if pattern.contains("..") && pattern.contains('{') {
        (range(pattern)?, true)
    } else if is_url(pattern) {
        if pattern.ends_with(".tar") && !is_glob(pattern) {
            (vec![Location::new(pattern)], true)
        } else {
            whole_folder = !is_glob(pattern);
            (storage.list(pattern)?, false)
        }
    } else if folder.is_dir() {
        whole_folder = true;
        (local(tars_in(folder)?)?, false)
    } else if is_glob(pattern) {
        (local(globbed(pattern)?)?, false)
    } else {
        (folder.exists().then(|| Location::new(pattern)).into_iter().collect(), true)
    };
    Named { shards, listed, whole_folder, list: None }.checked(pattern)
}

impl Named {
    fn checked(self, pattern: &str) -> Result<Named> {
        if self.shards.is_empty() { Err(nothing(pattern)) } else { Ok(self) }
    }
}

fn nothing(pattern: &str) -> Error {
    Error::Empty { what: "no shards", pattern: pattern.to_owned() }
}

/// Whether `pattern` can only name shards: a tar, a list of them, a pattern, a store's, a folder with tars in it.
pub(crate) fn names_shards(pattern: &str) -> Result<bool> {
    let path = Path::new(pattern);
    if path.is_dir() {
        return Ok(!tars_in(path)?.is_empty());
    }
    let tar = path.extension().is_some_and(|extension| extension == "tar");
    let spelled = is_url(pattern) || is_glob(pattern) || pattern.contains('{');
    Ok(tar || as_list(pattern).is_some() || (spelled && !path.exists()))
}

/// Another tool's list of shards in `folder`.
pub(crate) fn list_in(folder: &str, storage: &Storage) -> Result<Option<ShardList>> {
    for name in shard_list::FILES {
        let path = join(folder, name);
        if let Some(text) = storage.read_small(&path, true)?
            && let Some(list) = ShardList::parse(&path, &text)?
        {
            return Ok(Some(list));
        }
    }
    Ok(None)
}

/// `x.json` or `x.json#split`: the list's path, and the split.
fn as_list(pattern: &str) -> Option<(&str, Option<&str>)> {
    if pattern.ends_with(".json") {
        return Some((pattern, None));
    }
    let (path, split) = pattern.rsplit_once('#')?;
    path.ends_with(".json").then_some((path, Some(split)))
}

fn is_glob(pattern: &str) -> bool {
    pattern.contains(['*', '?', '['])
}

/// Paths as patterns and lists spell them.
fn local(paths: Vec<PathBuf>) -> Result<Vec<Location>> {
    let spell = |path: PathBuf| {
        let name = path.to_str().map(Location::new);
        name.ok_or_else(|| Error::malformed(&path, "its name isn't UTF-8; rename it"))
    };
    paths.into_iter().map(spell).collect()
}

fn tars_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut shards = Vec::new();
    for entry in folder.read_dir().context("list", folder)? {
        let path = entry.context("list", folder)?.path();
        if path.extension().is_some_and(|extension| extension == "tar") {
            shards.push(path);
        }
    }
    shards.sort();
    Ok(shards)
}

/// The paths that a glob takes, sorted; a folder in its way that can't be listed is an error.
pub(crate) fn globbed(pattern: &str) -> Result<Vec<PathBuf>> {
    let paths = glob::glob(pattern).map_err(|error| {
        Error::InvalidArgument(format!("'{pattern}' isn't a glob: {error}; mend the pattern"))
    })?;
    let found = paths.map(|path| {
        path.map_err(|error| Error::Io { action: "list", path: error.path().to_owned(), cause: error.into() })
    });
    let mut found: Vec<PathBuf> = found.collect::<Result<_>>()?;
    found.sort();
    Ok(found)
}

/// `x-{000000..000012}.tar`: 13 paths. The numbers are as wide as the first one is written.
fn range(pattern: &str) -> Result<Vec<Location>> {
    let parsed = || {
        let (prefix, rest) = pattern.split_once('{')?;
        let (numbers, suffix) = rest.split_once('}')?;
        let (first, last) = numbers.split_once("..")?;
        let (low, high): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        let plain = !suffix.contains('{') && low <= high && high - low < MOST_SHARDS;
        plain.then(|| {
            let name = |n| format!("{prefix}{n:0width$}{suffix}", width = first.len());
            (low..=high).map(|n| Location::new(name(n))).collect()
        })
    };
    parsed().ok_or_else(|| {
        let form = "x-{000000..000012}.tar, one range, lower number first";
        Error::InvalidArgument(format!("'{pattern}' isn't a range of shards; write it like {form}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_keep_their_width() {
        let names = |pattern| range(pattern).unwrap().into_iter().map(|shard| shard.name).collect::<Vec<_>>();
        assert_eq!(names("d/x-{008..010}.tar"), ["d/x-008.tar", "d/x-009.tar", "d/x-010.tar"]);
        assert_eq!(names("s3://b/{9..10}"), ["s3://b/9", "s3://b/10"]);
        for bad in ["x-{3..1}", "x-{a..b}", "x-{1..2}{1..2}", "x-{1..", "x-{0..99999999999}"] {
            assert!(matches!(range(bad), Err(Error::InvalidArgument(_))), "{bad}");
        }
    }
}
