//! Resolves a user's pattern to a list of shards.

use std::path::{Path, PathBuf};

use super::shard_list::{self, ShardList};
use crate::error::{Error, IoContext, Result};
use crate::files;
use crate::left_out::is_foreign;
use crate::source::{Location, Storage, is_url, join};

/// Limit of shards in one range; more are taken for a typing error.
const MAX_SHARDS: u64 = 1_000_000;

/// The shards of a pattern.
#[derive(Debug)]
pub(crate) struct ResolvedShards {
    /// Sorted, or in the order of the list or range that names them; at least one.
    pub(crate) shards: Vec<Location>,
    /// Whether the pattern lists them one by one, so that opening a missing one fails; otherwise they were found.
    pub(crate) listed: bool,
    /// Whether they are all shards of a folder.
    pub(crate) whole_folder: bool,
    /// The list, if the pattern is one.
    pub(crate) list: Option<ShardList>,
}

/// The shards that `pattern` names.
pub(crate) fn resolve(pattern: &str, storage: &Storage) -> Result<ResolvedShards> {
    if let Some((path, split)) = parse_list_pattern(pattern) {
        let text = storage.read_small(path, false)?.ok_or_else(|| no_shards(pattern))?;
        let list = ShardList::parse(path, &text)?.ok_or_else(|| {
            let what = "not a list of shards: it has neither timm's 'splits' nor wids' 'shardlist'";
            Error::malformed(Path::new(path), what)
        })?;
        let shards = list.split(split)?.iter().map(|shard| Location::new(&shard.location)).collect();
        return ResolvedShards { shards, listed: true, whole_folder: false, list: Some(list) }
            .check_not_empty(pattern);
    }
    let folder = Path::new(pattern);
    let mut whole_folder = false;
    let (shards, listed) = if pattern.contains("..") && pattern.contains('{') {
        (expand_range(pattern)?, true)
    } else if is_url(pattern) {
        if pattern.ends_with(".tar") && !is_glob(pattern) {
            (vec![Location::new(pattern)], true)
        } else {
            whole_folder = !is_glob(pattern);
            (storage.list(pattern)?, false)
        }
    } else if folder.is_dir() {
        whole_folder = true;
        (to_locations(list_tars(folder)?)?, false)
    } else if is_glob(pattern) {
        (to_locations(expand_glob(pattern)?)?, false)
    } else {
        (folder.exists().then(|| Location::new(pattern)).into_iter().collect(), true)
    };
    ResolvedShards { shards, listed, whole_folder, list: None }.check_not_empty(pattern)
}

impl ResolvedShards {
    fn check_not_empty(self, pattern: &str) -> Result<ResolvedShards> {
        if self.shards.is_empty() { Err(no_shards(pattern)) } else { Ok(self) }
    }
}

fn no_shards(pattern: &str) -> Error {
    Error::Empty { what: "no shards", pattern: pattern.to_owned() }
}

/// Whether `pattern` can only name shards: a tar, a list of shards, a range or glob, a URL, a folder with tars in it.
pub(crate) fn names_shards(pattern: &str) -> Result<bool> {
    let path = Path::new(pattern);
    if path.is_dir() {
        return Ok(!list_tars(path)?.is_empty());
    }
    let tar = path.extension().is_some_and(|extension| extension == "tar");
    let spelled = is_url(pattern) || is_glob(pattern) || pattern.contains('{');
    Ok(tar || parse_list_pattern(pattern).is_some() || (spelled && !path.exists()))
}

/// Another tool's list of shards in `folder`.
pub(crate) fn find_list(folder: &str, storage: &Storage) -> Result<Option<ShardList>> {
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
fn parse_list_pattern(pattern: &str) -> Option<(&str, Option<&str>)> {
    if pattern.ends_with(".json") {
        return Some((pattern, None));
    }
    let (path, split) = pattern.rsplit_once('#')?;
    path.ends_with(".json").then_some((path, Some(split)))
}

fn is_glob(pattern: &str) -> bool {
    pattern.contains(['*', '?', '['])
}

/// Converts paths to the form that patterns and lists have.
fn to_locations(paths: Vec<PathBuf>) -> Result<Vec<Location>> {
    let spell = |path: PathBuf| {
        let name = path.to_str().map(Location::new);
        name.ok_or_else(|| Error::malformed(&path, "its name isn't UTF-8; rename it"))
    };
    paths.into_iter().map(spell).collect()
}

fn list_tars(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut shards = Vec::new();
    for entry in folder.read_dir().context("list", folder)? {
        let path = entry.context("list", folder)?.path();
        let is_tar = path.extension().is_some_and(|extension| extension == "tar");
        if is_tar && !is_foreign(&files::file_name(&path)) {
            shards.push(path);
        }
    }
    shards.sort();
    Ok(shards)
}

/// The paths that a glob matches, sorted, without foreign files. A folder in its way that can't be listed is an error.
pub(crate) fn expand_glob(pattern: &str) -> Result<Vec<PathBuf>> {
    let paths = glob::glob(pattern).map_err(|error| {
        Error::InvalidArgument(format!("'{pattern}' isn't a glob: {error}; correct the pattern"))
    })?;
    let found = paths.map(|path| {
        path.map_err(|error| Error::Io { action: "list", path: error.path().to_owned(), cause: error.into() })
    });
    let mut found: Vec<PathBuf> = found.collect::<Result<_>>()?;
    // A pattern that begins with a dot asks for hidden files.
    if !files::file_name(Path::new(pattern)).starts_with('.') {
        found.retain(|path| !is_foreign(&files::file_name(path)));
    }
    found.sort();
    Ok(found)
}

/// `x-{000000..000012}.tar`: 13 paths. The numbers are as wide as the first one is written.
fn expand_range(pattern: &str) -> Result<Vec<Location>> {
    let parsed = || {
        let (prefix, rest) = pattern.split_once('{')?;
        let (numbers, suffix) = rest.split_once('}')?;
        let (first, last) = numbers.split_once("..")?;
        let low: u64 = first.parse().ok()?;
        let high: u64 = last.parse().ok()?;
        let plain = !suffix.contains('{') && low <= high && high - low < MAX_SHARDS;
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
        let names =
            |pattern| expand_range(pattern).unwrap().into_iter().map(|shard| shard.name).collect::<Vec<_>>();
        assert_eq!(names("d/x-{008..010}.tar"), ["d/x-008.tar", "d/x-009.tar", "d/x-010.tar"]);
        assert_eq!(names("s3://b/{9..10}"), ["s3://b/9", "s3://b/10"]);
        for bad in ["x-{3..1}", "x-{a..b}", "x-{1..2}{1..2}", "x-{1..", "x-{0..99999999999}"] {
            assert!(matches!(expand_range(bad), Err(Error::InvalidArgument(_))), "{bad}");
        }
    }
}
