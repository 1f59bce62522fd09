//! The numbers of an analysis, from what was collected.

use super::cli::{Args, What};
use super::collect::{ImageOutputs, VIEWS};
use super::features;
use super::measures::{self, Consistency};
use super::similarity::{Correlation, correlate};
use codinet_trainer::dist::{World, agree};
use codinet_trainer::metrics::routing::Histogram;
use codinet_trainer::model::Costs;
use codinet_trainer::sys::error::Result;
use serde::Serialize;
use tch::{Kind, Tensor};

/// All that was found; `analysis.json` holds it.
#[derive(Debug, Serialize)]
pub struct Study {
    /// The program's version.
    pub version: &'static str,
    /// The weights' file.
    pub checkpoint: String,
    /// The images.
    pub data: String,
    /// How many of them count.
    pub images: usize,
    /// How many can't be read or decoded, and don't.
    pub bad_images: usize,
    /// Share of images whose class came first.
    pub top1: f64,
    /// Mean multiply-accumulates an image, in billions.
    pub gmacs: f64,
    /// The static backbone's.
    pub gmacs_static: f64,
    /// The gated blocks' names, in the order of a path's elements.
    pub blocks: Vec<String>,
    /// How many different paths the images took.
    pub distinct_paths: usize,
    /// Entropy of their frequencies, in bits.
    pub path_entropy: f64,
    /// Share of images that ran each block, `[n]`.
    pub rates: Vec<f64>,
    /// Mean of Σ_k v_k.
    pub expected_blocks: f64,
    /// What each augmentation changed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub consistency: Vec<Consistency>,
    /// Share of images that keep their path under all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub same_path_under_all: Option<f64>,
    /// Mean distance of an augmented image's relaxed path from its group's centre, ‖r − r̄‖.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<f64>,
    /// Mean distance between two groups' centres.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub centre_distance: Option<f64>,
    /// Likeness of features and paths.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub similarity: Option<Similarity>,
}

/// How the likeness of images' features goes with that of their paths.
#[derive(Debug, Serialize)]
pub struct Similarity {
    /// Whose features.
    pub features: String,
    /// Images compared, each with each.
    pub images: usize,
    /// With relaxed paths.
    pub relaxed: Correlation,
    /// With hard paths.
    pub hard: Correlation,
}

/// What a study is of.
pub struct Facts<'a> {
    /// The weights' file.
    pub checkpoint: String,
    /// The images.
    pub data: &'a str,
    /// How many there are, good and bad.
    pub images: usize,
    /// The network's.
    pub costs: &'a Costs,
}

impl Study {
    /// All ranks: computes what `args` asks for.
    pub fn new(world: &World, args: &Args, outputs: &ImageOutputs, facts: Facts) -> Result<Self> {
        let gates = outputs.gates;
        let images = outputs.labels.len();
        let histogram = Histogram::new(&outputs.paths, gates, images);
        let rates = measures::rates(&outputs.paths, gates);
        let expected = measures::expected_blocks(&outputs.relaxed, gates);
        let (consistency, all) = if outputs.augmented.is_empty() {
            (Vec::new(), None)
        } else {
            let (each, all) = measures::consistency(outputs);
            (each, Some(all))
        };
        let apart = (outputs.groups.len() >= 2 * VIEWS * gates)
            .then(|| measures::group_distances(&outputs.groups, VIEWS, gates));
        let has_features = args.wants(What::Similarity) && outputs.chosen.len() > 1;
        let similarity = has_features.then(|| similarity(world, args, outputs, facts.images)).transpose()?;
        Ok(Self {
            version: env!("CARGO_PKG_VERSION"),
            checkpoint: facts.checkpoint,
            data: facts.data.into(),
            images,
            bad_images: outputs.bad,
            top1: measures::accuracy(&outputs.predictions, &outputs.labels),
            gmacs: facts.costs.mean_macs(&rates) / 1e9,
            gmacs_static: facts.costs.static_macs() as f64 / 1e9,
            blocks: facts.costs.gated().map(|block| block.name.clone()).collect(),
            distinct_paths: histogram.distinct(),
            path_entropy: histogram.entropy(),
            rates,
            expected_blocks: expected.iter().sum::<f64>() / images as f64,
            consistency,
            same_path_under_all: all,
            spread: apart.map(|apart| apart.0),
            centre_distance: apart.map(|apart| apart.1),
            similarity,
        })
    }
}

/// All ranks: features, the network's own or a file's, against paths.
fn similarity(world: &World, args: &Args, outputs: &ImageOutputs, images: usize) -> Result<Similarity> {
    let rows = outputs.chosen.len();
    let own = || Ok(Tensor::from_slice(&outputs.features).view([rows as i64, -1]));
    let read = |what: &String| {
        let all = features::read(what, images)?;
        let numbers: Vec<i64> = outputs.chosen.iter().map(|&at| outputs.samples[at].into()).collect();
        Ok(all.index_select(0, &Tensor::from_slice(&numbers)))
    };
    let features = agree(world, args.features.as_ref().map_or_else(own, read))?;
    let chosen: Vec<i64> = outputs.chosen.iter().map(|&at| at as i64).collect();
    let chosen = Tensor::from_slice(&chosen);
    let of = |all: Tensor| all.view([-1, outputs.gates as i64]).index_select(0, &chosen);
    let relaxed = correlate(world, &features, &of(Tensor::from_slice(&outputs.relaxed)))?;
    let hard = correlate(world, &features, &of(Tensor::from_slice(&outputs.paths).to_kind(Kind::Float)))?;
    let source = args.features.clone().unwrap_or_else(|| "the network's own".into());
    Ok(Similarity { features: source, images: rows, relaxed, hard })
}
