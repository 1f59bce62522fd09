//! The numbers of an analysis.

use super::cli::{Args, What};
use super::collect::{Observations, VIEWS};
use super::features;
use super::measures::{self, Consistency};
use super::similarity::{Correlation, correlate};
use crate::trained::TrainedNet;
use codinet_trainer::dist::{World, agree};
use codinet_trainer::metrics::classes::Confusion;
use codinet_trainer::metrics::routing::Histogram;
use codinet_trainer::run::ClassSummary;
use codinet_trainer::sys::error::Result;
use serde::Serialize;
use tch::{Kind, Tensor};

/// The contents of `analysis.json`.
#[derive(Debug, Serialize)]
pub struct Study {
    pub version: &'static str,
    /// The file of the weights.
    pub checkpoint: String,
    /// As in `data.val`.
    pub data: String,
    /// The number of images that count.
    pub images: usize,
    /// The number of images that cannot be read or decoded.
    pub bad_images: usize,
    /// The share of images with the right prediction.
    pub top1: f64,
    /// Accuracy by class.
    #[serde(flatten)]
    pub classes: ClassSummary,
    /// Mean GMACs per image.
    pub gmacs: f64,
    /// GMACs of the static backbone.
    pub gmacs_static: f64,
    /// The gated blocks' names, in the order of a path.
    pub blocks: Vec<String>,
    /// The number of distinct hard paths.
    pub distinct_paths: usize,
    /// The entropy of their frequencies, in bits.
    pub path_entropy: f64,
    /// The share of images that run each block, `[n]`.
    pub rates: Vec<f64>,
    /// The mean of Σ_k v_k.
    pub expected_blocks: f64,
    /// What each augmentation changes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub consistency: Vec<Consistency>,
    /// The share of images that keep their path under all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub same_path_under_all: Option<f64>,
    /// The mean distance of an augmentation's relaxed path from its group's centre, ‖r − r̄‖.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<f64>,
    /// The mean distance between two groups' centres.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub centre_distance: Option<f64>,
    /// The similarities of features and of paths.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub similarity: Option<Similarity>,
}

/// The correlation between the similarities of images' features and of their paths.
#[derive(Debug, Serialize)]
pub struct Similarity {
    /// The source of the features.
    pub features: String,
    /// The number of images; all pairs are compared.
    pub images: usize,
    /// With relaxed paths.
    pub relaxed: Correlation,
    /// With hard paths.
    pub hard: Correlation,
}

impl Study {
    /// All ranks: computes the parts that `args` includes. `images` is the number of images in the set, good and bad.
    pub fn new(
        world: &World,
        args: &Args,
        observations: &Observations,
        network: &TrainedNet,
        images: usize,
    ) -> Result<Self> {
        let gates = observations.gates;
        let good = observations.labels.len();
        let costs = &network.net.costs;
        let histogram = Histogram::new(&observations.paths, gates, good);
        let names = network.names();
        let confusion = Confusion::new(&observations.by_image(), names.len());
        let rates = measures::rates(&observations.paths, gates);
        let expected_blocks = measures::expected_blocks(&observations.relaxed, gates, good);
        let mut consistency = Vec::new();
        let mut same_path_under_all = None;
        if !observations.augmented.is_empty() {
            let (parts, share) = measures::consistency(observations);
            consistency = parts;
            same_path_under_all = Some(share);
        }
        let distances = (gates > 0 && observations.groups.len() >= 2 * VIEWS * gates)
            .then(|| measures::group_distances(&observations.groups, VIEWS, gates));
        let mut similarity = None;
        if args.includes(What::Similarity) && observations.with_features.len() > 1 {
            similarity = Some(compare(world, args, observations, images)?);
        }
        Ok(Self {
            version: env!("CARGO_PKG_VERSION"),
            checkpoint: network.file.display().to_string(),
            data: network.config.data.val.clone(),
            images: good,
            bad_images: observations.bad,
            top1: measures::accuracy(&observations.predictions, &observations.labels),
            classes: ClassSummary::new(&confusion, &names),
            gmacs: costs.mean_macs(&rates) / 1e9,
            gmacs_static: costs.static_macs() as f64 / 1e9,
            blocks: costs.gated().map(|block| block.name.clone()).collect(),
            distinct_paths: histogram.distinct(),
            path_entropy: histogram.entropy(),
            rates,
            expected_blocks: expected_blocks.iter().sum::<f64>() / good as f64,
            consistency,
            same_path_under_all,
            spread: distances.map(|(spread, _)| spread),
            centre_distance: distances.map(|(_, between)| between),
            similarity,
        })
    }
}

/// All ranks: compares features, the network's own or a file's, with paths.
fn compare(world: &World, args: &Args, observations: &Observations, images: usize) -> Result<Similarity> {
    let selected: Vec<i64> = observations.with_features.iter().map(|&i| i as i64).collect();
    let features = match &args.features {
        None => Ok(Tensor::from_slice(&observations.features).view([selected.len() as i64, -1])),
        Some(file) => features::read(file, images).map(|all| {
            let samples = observations.with_features.iter().map(|&i| observations.samples[i].into());
            all.index_select(0, &Tensor::from_slice(&samples.collect::<Vec<i64>>()))
        }),
    };
    let features = agree(world, features)?;
    let rows = Tensor::from_slice(&selected);
    let select = |paths: Tensor| paths.view([-1, observations.gates as i64]).index_select(0, &rows);
    let relaxed = select(Tensor::from_slice(&observations.relaxed));
    let hard = select(Tensor::from_slice(&observations.paths).to_kind(Kind::Float));
    Ok(Similarity {
        features: args.features.clone().unwrap_or_else(|| "the network's own".into()),
        images: selected.len(),
        relaxed: correlate(world, &features, &relaxed)?,
        hard: correlate(world, &features, &hard)?,
    })
}
