//! The stages of training, and the learning rate over each.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// One stage of training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Stage {
    /// Its name in logs and in `summary.json`.
    pub name: String,
    /// Its number of epochs.
    #[schemars(range(min = 1, max = 1000000))]
    pub epochs: u64,
    /// Highest learning rate.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub lr: f64,
    /// How the learning rate falls.
    pub schedule: Schedule,
    /// Epochs of linear warm-up from 0, at the start.
    pub warmup_epochs: f64,
    /// Whether routers train, and how gates decide.
    pub routers: Routers,
    /// Whether gates decide with Gumbel noise; null: while routers train. In the authors' code frozen routers do, too.
    pub noise: Option<bool>,
    /// Which branches of a gated block are computed where decisions are hard.
    pub skip: Skip,
    /// α in this stage; null: `consistency.weight` if routers train, 0 if they are frozen. Hard decisions have no gradient: with
    /// frozen routers a weight only changes the reported loss.
    pub alpha: Option<f64>,
    /// β in this stage, likewise.
    pub beta: Option<f64>,
    /// γ in this stage, likewise.
    pub gamma: Option<f64>,
    /// Height and width of training views in this stage, a number or a schedule; null: `data.image_size`.
    pub image_size: Option<ImageSize>,
}

/// Height and width of a stage's views, in pixels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum ImageSize {
    /// The same in all epochs.
    Fixed(#[schemars(range(min = 8, max = 2048))] u32),
    /// Progressive resizing: it changes with the epoch.
    Progressive(ProgressiveSize),
}

/// Progressive resizing, as FFCV's `get_resolution` has it: `from` until `from_epoch`, in a straight line to `to` at
/// `to_epoch`, and rounded to a multiple.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProgressiveSize {
    /// The first size.
    #[schemars(range(min = 8, max = 2048))]
    pub from: u32,
    /// The last size.
    #[schemars(range(min = 8, max = 2048))]
    pub to: u32,
    /// The last epoch of the stage with the first size, counted from 0.
    #[serde(default)]
    pub from_epoch: u64,
    /// The first epoch of the stage with the last size; null: its last epoch.
    #[serde(default)]
    pub to_epoch: Option<u64>,
    /// The size is a multiple of this many pixels.
    #[serde(default = "multiple_of_a_resnet")]
    #[schemars(range(min = 1, max = 2048))]
    pub multiple: u32,
}

/// The stride of a ResNet's last stage.
fn multiple_of_a_resnet() -> u32 {
    32
}

impl ProgressiveSize {
    /// The size in an epoch of a stage of `epochs` epochs, counted from 0. Halfway between two multiples, the even one, as in NumPy.
    fn size_at(&self, epoch: u64, epochs: u64) -> u32 {
        let last = self.to_epoch.unwrap_or(epochs - 1);
        let share = if epoch >= last {
            1.0
        } else {
            epoch.saturating_sub(self.from_epoch) as f64 / (last - self.from_epoch) as f64
        };
        let exact = f64::from(self.from) + share * (f64::from(self.to) - f64::from(self.from));
        (exact / f64::from(self.multiple)).round_ties_even() as u32 * self.multiple
    }
}

/// Whether routers train in a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Routers {
    /// They train, with relaxed decisions: the paper's first stage.
    Train,
    /// They are frozen and decide hard; the rest is fine-tuned: the paper's second stage.
    Freeze,
}

/// Which branches of a gated block are computed where decisions are hard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Skip {
    /// Both, for all inputs; the decision masks one.
    Masked,
    /// For each input the one that it takes, as in inference. Batch norm has the statistics of the inputs that take its branch.
    Real,
}

/// How the learning rate falls over a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// Not at all.
    Constant,
    /// Multiplied by `factor` at each milestone.
    MultiStep {
        /// Epochs of the stage after which the rate falls.
        milestones: Vec<u64>,
        /// The factor.
        #[schemars(extend("exclusiveMinimum" = 0))]
        factor: f64,
    },
    /// Along half a cosine, to 0.
    Cosine,
    /// In a straight line from the end of the warm-up, to 0.
    Linear,
    /// Up from 1/25 along a cosine, then down to almost 0 (arXiv 1708.07120), as PyTorch's OneCycleLR.
    OneCycle {
        /// Share of the stage in which it rises.
        #[schemars(extend("exclusiveMinimum" = 0, "exclusiveMaximum" = 1))]
        rise: f64,
    },
}

impl Default for Stage {
    fn default() -> Self {
        Self {
            name: "train".into(),
            epochs: 1,
            lr: 0.1,
            schedule: Schedule::Constant,
            warmup_epochs: 0.0,
            routers: Routers::Train,
            noise: None,
            skip: Skip::Masked,
            alpha: None,
            beta: None,
            gamma: None,
            image_size: None,
        }
    }
}

impl Stage {
    /// Height and width of views in an epoch of the stage, counted from 0, where other stages have `default`.
    pub fn image_size_at(&self, epoch: u64, default: u32) -> u32 {
        match &self.image_size {
            None => default,
            &Some(ImageSize::Fixed(size)) => size,
            Some(ImageSize::Progressive(progressive)) => progressive.size_at(epoch, self.epochs),
        }
    }

    /// All sizes of its views, the largest last.
    pub fn image_sizes(&self, default: u32) -> Vec<u32> {
        let ends = match &self.image_size {
            Some(ImageSize::Progressive(progressive)) => {
                let changes = progressive.to_epoch.unwrap_or(self.epochs).min(self.epochs);
                (0..=changes.min(self.epochs - 1)).collect()
            }
            _ => vec![0],
        };
        let sizes: BTreeSet<u32> = ends.into_iter().map(|epoch| self.image_size_at(epoch, default)).collect();
        sizes.into_iter().collect()
    }

    /// Whether gates decide with Gumbel noise.
    pub fn is_noisy(&self) -> bool {
        self.noise.unwrap_or(self.routers == Routers::Train)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(size: ProgressiveSize, epochs: u64) -> Vec<u32> {
        let stage = Stage { epochs, image_size: Some(ImageSize::Progressive(size)), ..Stage::default() };
        let sizes: Vec<u32> = (0..epochs).map(|epoch| stage.image_size_at(epoch, 8)).collect();
        let distinct: BTreeSet<u32> = sizes.iter().copied().collect();
        assert_eq!(stage.image_sizes(8), distinct.into_iter().collect::<Vec<_>>());
        sizes
    }

    /// What `get_resolution` of ffcv-imagenet's train_imagenet.py returns.
    #[test]
    fn progressive_sizes_are_ffcvs() {
        let ffcv = |from_epoch, to_epoch| ProgressiveSize {
            from: 160,
            to: 192,
            from_epoch,
            to_epoch: Some(to_epoch),
            multiple: 32,
        };
        // 176 at epoch 12 is halfway, and goes to the even multiple, 6 · 32.
        assert_eq!(sizes(ffcv(11, 13), 16), [[160; 12].as_slice(), &[192; 4]].concat());
        // Epoch 31 has 172.8, epoch 32 has 179.2.
        assert_eq!(sizes(ffcv(29, 34), 40), [[160; 32].as_slice(), &[192; 8]].concat());
        // Epoch 70 has 174.5, epoch 71 has 177.5.
        assert_eq!(sizes(ffcv(65, 76), 88), [[160; 71].as_slice(), &[192; 17]].concat());
    }

    #[test]
    fn progressive_sizes_end_with_the_stage_and_may_fall() {
        let size = |from, to, multiple| ProgressiveSize { from, to, from_epoch: 0, to_epoch: None, multiple };
        assert_eq!(sizes(size(128, 224, 32), 4), [128, 160, 192, 224]);
        assert_eq!(sizes(size(32, 24, 4), 5), [32, 32, 28, 24, 24]); // 30 and 26 go to the even multiples
    }

    #[test]
    fn stages_without_a_size_have_the_datas() {
        let stage = Stage { epochs: 3, ..Stage::default() };
        assert_eq!((stage.image_size_at(2, 32), stage.image_sizes(32)), (32, vec![32]));
        let fixed = Stage { image_size: Some(ImageSize::Fixed(48)), ..stage };
        assert_eq!((fixed.image_size_at(0, 32), fixed.image_sizes(32)), (48, vec![48]));
    }
}
