//! The shards of one split: which are complete, and how the missing ones are written.

use std::path::Path;

use super::image_set::ImageSet;
use super::prepare::Preparer;
use crate::dataset::DatasetInfo;
use crate::error::{BadImage, Error, Result};
use crate::files;
use crate::shard::{ShardIndex, ShardWriter, shard_name};

/// The file that lists the images that were left out, one a line.
const BAD_FILE: &str = "bad_imports.txt";

/// The shards of one split, complete or missing.
pub(super) struct SplitShards<'a> {
    pub(super) set: &'a ImageSet,
    pub(super) folder: &'a Path,
    /// The samples in the order of the shards.
    pub(super) order: Vec<u32>,
    /// Samples in a shard.
    pub(super) shard_size: u32,
    /// Whether images that can't be used are left out.
    pub(super) skip_bad: bool,
}

impl SplitShards<'_> {
    pub(super) fn count(&self) -> u32 {
        self.order.len().div_ceil(self.shard_size as usize) as u32 // no more than samples
    }

    /// The samples planned for shard `number`.
    pub(super) fn samples(&self, number: u32) -> &[u32] {
        let start = number as usize * self.shard_size as usize;
        &self.order[start..self.order.len().min(start + self.shard_size as usize)]
    }

    /// The bad samples that were left out of shard `number`; `None` where the shard is missing, or isn't as planned.
    fn find_bad(&self, number: u32) -> Option<Vec<u32>> {
        let path = self.folder.join(shard_name(&self.set.split, number));
        let (index, _) = ShardIndex::open(&path).ok()?;
        let mut written = index.iter().peekable();
        let mut bad = Vec::new();
        for &sample in self.samples(number) {
            let (key, label) = &self.set.samples[sample as usize];
            if written.next_if(|written| written.key() == &**key && written.label == *label).is_none() {
                bad.push(sample);
            }
        }
        written.next().is_none().then_some(bad)
    }

    pub(super) fn is_complete(&self, number: u32) -> bool {
        self.find_bad(number).is_some_and(|bad| self.skip_bad || bad.is_empty())
    }

    /// `progress` is called after each sample, with its bytes.
    pub(super) fn write_shard(
        &self,
        number: u32,
        preparer: &mut Preparer,
        progress: impl Fn(u64),
    ) -> Result<()> {
        let mut writer = ShardWriter::new_single(self.folder, &self.set.split, number)?;
        let mut bytes = Vec::new();
        for &sample in self.samples(number) {
            let (key, label) = &self.set.samples[sample as usize];
            self.set.images.read(sample as usize, &mut bytes)?;
            match preparer.prepare(&bytes) {
                Ok((extension, image)) => writer.write(key, extension, &image, *label)?,
                Err(_) if self.skip_bad => {}
                Err(BadImage(reason)) => {
                    let bad = BadImage(format!("{reason}, or leave such images out with --skip-bad"));
                    return Err(bad.in_sample(self.set.images.path(sample as usize), key));
                }
            }
            progress(bytes.len() as u64);
        }
        writer.finish().map(drop)
    }

    /// The `dataset.json` of complete shards, and the bad samples that were left out. A missing shard counts as one whose
    /// samples are all bad.
    fn summarize(&self) -> (DatasetInfo, Vec<u32>) {
        let mut shards = 0;
        let mut all_bad = Vec::new();
        for number in 0..self.count() {
            let bad = self.find_bad(number);
            shards += u64::from(bad.is_some());
            all_bad.extend(bad.unwrap_or_else(|| self.samples(number).to_vec()));
        }
        let info = DatasetInfo {
            version: 1,
            name: self.set.name.clone(),
            classes: self.set.classes,
            channels: 3,
            image_size: None,
            samples: (self.order.len() - all_bad.len()) as u64,
            shards,
            class_names: self.set.class_names.clone(),
        };
        (info, all_bad)
    }

    /// The result of an earlier import, if this one would write the same.
    pub(super) fn find_complete(&self) -> Result<Option<(DatasetInfo, u64)>> {
        let Some(saved) = DatasetInfo::load(self.folder)? else { return Ok(None) };
        let (info, bad) = self.summarize();
        let same = saved == info && (self.skip_bad || bad.is_empty());
        Ok(same.then_some((info, bad.len() as u64)))
    }

    /// Completes the split: lists its bad images, and writes `dataset.json`. `preparer` is set as for the shards.
    pub(super) fn finish(&self, mut preparer: Preparer) -> Result<(DatasetInfo, u64)> {
        let (info, mut bad) = self.summarize();
        if info.samples == 0 {
            let what = "none of the images can be used; import without --skip-bad to see what is wrong with the first";
            return Err(Error::malformed(self.set.images.path(0), what));
        }
        bad.sort_unstable();
        let mut lines = String::new();
        let mut bytes = Vec::new();
        for &sample in &bad {
            let sample = sample as usize;
            self.set.images.read(sample, &mut bytes)?;
            let reason =
                preparer.prepare(&bytes).err().map_or("the source has changed since".into(), |bad| bad.0);
            let path = self.set.images.path(sample).display();
            lines.push_str(&format!("{path}, key '{}': {reason}\n", self.set.samples[sample].0));
        }
        let list = self.folder.join(BAD_FILE);
        if lines.is_empty() {
            files::remove_if_exists(&list)?; // an earlier import may have left one
        } else {
            files::replace_file(&list, lines.as_bytes())?;
        }
        info.save(self.folder)?;
        Ok((info, bad.len() as u64))
    }
}
