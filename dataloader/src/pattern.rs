//! From what a user names to a list of shards.

use std::path::{Path, PathBuf};

use crate::error::{Error, IoContext, Result};

/// More shards than this in one range is taken for a slip of the keyboard.
const MOST_SHARDS: u64 = 1_000_000;

/// The shards a pattern names, sorted, and whether the pattern lists them one by one (so that a missing one is
/// noticed when it is opened) or takes what is there.
pub(crate) fn shards(pattern: &str) -> Result<(Vec<PathBuf>, bool)> {
    let folder = Path::new(pattern);
    let (shards, listed) = if folder.is_dir() {
        (tars_in(folder)?, false)
    } else if pattern.contains("..") && pattern.contains('{') {
        (range(pattern)?, true)
    } else if pattern.contains(['*', '?', '[']) {
        (globbed(pattern)?, false)
    } else {
        (folder.exists().then(|| folder.to_owned()).into_iter().collect(), true)
    };
    if shards.is_empty() {
        return Err(Error::Empty { what: "no shards", pattern: pattern.to_owned() });
    }
    Ok((shards, listed))
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

fn globbed(pattern: &str) -> Result<Vec<PathBuf>> {
    let paths = glob::glob(pattern).map_err(|error| {
        Error::InvalidArgument(format!("'{pattern}' isn't a glob: {error}; mend the pattern"))
    })?;
    let mut shards = Vec::new();
    for path in paths {
        shards.push(path.map_err(|error| {
            let path = error.path().to_owned();
            Error::Io { action: "list", path, cause: error.into() }
        })?);
    }
    shards.sort();
    Ok(shards)
}

/// `x-{000000..000012}.tar`: 13 paths. The numbers are as wide as the first one is written.
fn range(pattern: &str) -> Result<Vec<PathBuf>> {
    let parsed = || {
        let (prefix, rest) = pattern.split_once('{')?;
        let (numbers, suffix) = rest.split_once('}')?;
        let (first, last) = numbers.split_once("..")?;
        let (low, high): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        let plain = !suffix.contains('{') && low <= high && high - low < MOST_SHARDS;
        plain.then(|| {
            (low..=high).map(|n| format!("{prefix}{n:0width$}{suffix}", width = first.len()).into()).collect()
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
        let names = range("d/x-{008..010}.tar").unwrap();
        assert_eq!(names, ["d/x-008.tar", "d/x-009.tar", "d/x-010.tar"].map(PathBuf::from));
        assert_eq!(range("{9..10}").unwrap(), ["9", "10"].map(PathBuf::from));
        for bad in ["x-{3..1}", "x-{a..b}", "x-{1..2}{1..2}", "x-{1..", "x-{0..99999999999}"] {
            assert!(matches!(range(bad), Err(Error::InvalidArgument(_))), "{bad}");
        }
    }
}
