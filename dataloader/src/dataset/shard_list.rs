//! Lists of shards that other tools write: `_info.json` of timm, the JSON of wids.
//!
//! timm's `_info.json` (or `info.json`) lies in the shards' folder and has
//! `{"splits": {"train": {"filenames": ["x-000.tar", …], "shard_lengths": [1000, …], "num_samples": …}, …}}`.
//! wids' (`widsindex create` calls it `shardindex.json`) has
//! `{"wids_version": 1, "shardlist": [{"url": "x-000.tar", "nsamples": 1000}, …]}`, or the same by parts under
//! `datasets`. Names are relative to the list's folder.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::source::{folder_of, join};

/// The names of these files in a folder of shards.
pub(crate) const FILES: [&str; 3] = ["_info.json", "info.json", "shardindex.json"];

/// A list of shards.
#[derive(Debug)]
pub(crate) struct ShardList {
    /// Its path or URL.
    pub(crate) path: String,
    /// Its splits by name; a wids list has one without a name.
    splits: BTreeMap<String, Vec<ListedShard>>,
}

/// One shard of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListedShard {
    /// Its path or URL.
    pub(crate) location: String,
    /// Samples in it.
    pub(crate) samples: u64,
}

#[derive(Deserialize)]
struct Timm {
    splits: BTreeMap<String, TimmSplit>,
}

#[derive(Deserialize)]
struct TimmSplit {
    filenames: Vec<String>,
    shard_lengths: Vec<u64>,
    num_samples: u64,
}

#[derive(Deserialize)]
struct Wids {
    wids_version: Option<u32>,
    #[serde(default)]
    shardlist: Vec<WidsShard>,
    #[serde(default)]
    datasets: Vec<WidsPart>,
}

#[derive(Deserialize)]
struct WidsPart {
    source_url: Option<String>,
    base: Option<String>,
    #[serde(default)]
    shardlist: Vec<WidsShard>,
}

#[derive(Deserialize)]
struct WidsShard {
    url: String,
    nsamples: u64,
}

impl ShardList {
    /// Parses the list at `path`. `None` if it is neither kind of list: other programs name files `info.json`, too.
    ///
    /// # Errors
    /// A list that contradicts itself, or that points to another one.
    pub(crate) fn parse(path: &str, text: &[u8]) -> Result<Option<ShardList>> {
        #[derive(Deserialize)]
        struct Kind {
            splits: Option<serde::de::IgnoredAny>,
            shardlist: Option<serde::de::IgnoredAny>,
            datasets: Option<serde::de::IgnoredAny>,
        }
        let broken = |what: String| Error::malformed(Path::new(path), what);
        let json = |error: serde_json::Error| broken(format!("{error}; correct the list or write it again"));
        let Ok(kind) = serde_json::from_slice::<Kind>(text) else { return Ok(None) };
        let folder = folder_of(path);
        let mut splits = BTreeMap::new();
        if kind.splits.is_some() {
            let timm: Timm = serde_json::from_slice(text).map_err(json)?;
            for (name, split) in timm.splits {
                let TimmSplit { filenames, shard_lengths, num_samples } = split;
                let sum = shard_lengths.iter().try_fold(0_u64, |sum, &samples| sum.checked_add(samples));
                if filenames.len() != shard_lengths.len() || sum != Some(num_samples) {
                    let what = format!(
                        "split '{name}' has {} files, {} lengths and {num_samples} samples, which contradict each other; write the list again",
                        filenames.len(),
                        shard_lengths.len()
                    );
                    return Err(broken(what));
                }
                let shards = filenames.iter().zip(shard_lengths);
                let shard =
                    |(name, samples): (&String, u64)| ListedShard { location: join(folder, name), samples };
                splits.insert(name, shards.map(shard).collect());
            }
        } else if kind.shardlist.is_some() || kind.datasets.is_some() {
            let wids: Wids = serde_json::from_slice(text).map_err(json)?;
            if let Some(version) = wids.wids_version.filter(|&version| version != 1) {
                return Err(broken(format!("wids_version {version}; only version 1 is known")));
            }
            let mut shards = Vec::new();
            let whole = WidsPart { source_url: None, base: None, shardlist: wids.shardlist };
            for part in std::iter::once(whole).chain(wids.datasets) {
                if let Some(url) = part.source_url {
                    return Err(broken(format!("points to another list; open '{url}' instead")));
                }
                let base = part.base.map_or(folder.to_owned(), |base| join(folder, &base));
                shards.extend(
                    part.shardlist.into_iter().map(|shard| ListedShard {
                        location: join(&base, &shard.url),
                        samples: shard.nsamples,
                    }),
                );
            }
            splits.insert(String::new(), shards);
        } else {
            return Ok(None);
        }
        Ok(Some(ShardList { path: path.to_owned(), splits }))
    }

    /// The shards of one split, or of the only one.
    ///
    /// # Errors
    /// No such split; several, and none was named.
    pub(crate) fn split(&self, name: Option<&str>) -> Result<&[ListedShard]> {
        let found = match name {
            Some(name) => self.splits.get(name),
            None if self.splits.len() == 1 => self.splits.values().next(),
            None => None,
        };
        found.map(Vec::as_slice).ok_or_else(|| {
            let known: Vec<_> = self.splits.keys().map(|name| format!("{}#{name}", self.path)).collect();
            let asked = name.map_or("it has several splits".to_owned(), |name| format!("no split '{name}'"));
            Error::InvalidArgument(format!("{}: {asked}; give one of: {}", self.path, known.join(", ")))
        })
    }

    /// The list's number of samples in the shard at `location`.
    pub(crate) fn samples(&self, location: &str) -> Option<u64> {
        let shards = self.splits.values().flatten();
        shards.into_iter().find(|shard| shard.location == location).map(|shard| shard.samples)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(location: &str, samples: u64) -> ListedShard {
        ListedShard { location: location.into(), samples }
    }

    #[test]
    fn timms_info_is_read() {
        let text = br#"{"name": "in", "splits": {
            "train": {"name": "train", "filenames": ["t-0.tar", "t-1.tar"], "shard_lengths": [3, 2], "num_samples": 5},
            "val": {"name": "val", "filenames": ["v.tar"], "shard_lengths": [1], "num_samples": 1, "alt_label": ""}}}"#;
        let list = ShardList::parse("s3://b/d/_info.json", text).unwrap().unwrap();
        let train = [shard("s3://b/d/t-0.tar", 3), shard("s3://b/d/t-1.tar", 2)];
        assert_eq!(list.split(Some("train")).unwrap(), train);
        assert_eq!(list.samples("s3://b/d/v.tar"), Some(1));
        for name in [None, Some("test")] {
            let message = list.split(name).unwrap_err().to_string();
            assert!(message.contains("_info.json#train, s3://b/d/_info.json#val"), "{message}");
        }
        let contradiction = String::from_utf8_lossy(text).replace("[3, 2]", "[3, 3]");
        let error = ShardList::parse("_info.json", contradiction.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("split 'train'"), "{error}");
    }

    #[test]
    fn wids_lists_are_read() {
        let text = br#"{"wids_version": 1, "name": "n", "shardlist": [
            {"url": "a.tar", "nsamples": 3, "filesize": 9}, {"url": "https://h/b.tar", "nsamples": 4}],
            "datasets": [{"base": "sub", "shardlist": [{"url": "/c.tar", "nsamples": 5}, {"url": "d.tar", "nsamples": 1}]}]}"#;
        let list = ShardList::parse("x/i.json", text).unwrap().unwrap();
        let shards = [("x/a.tar", 3), ("https://h/b.tar", 4), ("/c.tar", 5), ("x/sub/d.tar", 1)];
        assert_eq!(list.split(None).unwrap(), shards.map(|(location, samples)| shard(location, samples)));
        for (text, reason) in [
            (&br#"{"wids_version": 2, "shardlist": []}"#[..], "wids_version 2"),
            (br#"{"datasets": [{"source_url": "https://h/o.json"}]}"#, "open 'https://h/o.json'"),
            (br#"{"shardlist": [{"url": "a.tar"}]}"#, "nsamples"),
        ] {
            let message = ShardList::parse("i.json", text).unwrap_err().to_string();
            assert!(message.contains(reason) && message.contains("i.json"), "{message}");
        }
        for other in [&b"[1, 2]"[..], b"{\"a\": 1}", b"no"] {
            assert!(ShardList::parse("info.json", other).unwrap().is_none());
        }
    }
}
