//! The CSV files of an analysis.

use super::augment::Augmentation;
use super::files::OutputFolder;
use super::measures::{self, Consistency};
use super::results::{ClassResults, Results};
use super::similarity::{BINS, Correlation};
use codinet_trainer::metrics::routing::text;
use codinet_trainer::run::write_class_tables;
use codinet_trainer::sys::error::Result;

/// Writes the tables of all parts that the study has.
pub fn write(results: &Results, folder: &OutputFolder) -> Result<()> {
    if results.observations.gates > 0 {
        paths(results, folder)?;
        rates(results, folder)?;
    }
    classes(results, folder)?;
    images(results, folder)?;
    if !results.study.consistency.is_empty() {
        consistency(&results.study.consistency, folder)?;
    }
    if let Some(similarity) = &results.study.similarity {
        similarities(&similarity.relaxed, folder)?;
    }
    Ok(())
}

fn paths(results: &Results, folder: &OutputFolder) -> Result<()> {
    let histogram = results.histogram();
    let row = |(rank, (path, count)): (usize, &(&[u8], u64))| {
        let share = *count as f64 / histogram.images() as f64;
        let blocks: u8 = path.iter().sum();
        vec![(rank + 1).to_string(), text(path), count.to_string(), share.to_string(), blocks.to_string()]
    };
    let columns = ["rank", "path", "images", "share", "blocks_run"];
    folder.table("paths", &columns, histogram.by_frequency().iter().enumerate().map(row))
}

fn rates(results: &Results, folder: &OutputFolder) -> Result<()> {
    let columns: Vec<String> =
        ["class".to_owned()].into_iter().chain(results.study.blocks.iter().cloned()).collect();
    let row = |name: &str, rates: &[f64]| -> Vec<String> {
        let rates = rates.iter().map(|rate| if rate.is_nan() { String::new() } else { rate.to_string() });
        [name.to_owned()].into_iter().chain(rates).collect()
    };
    let by_class = results.rates_by_class();
    let rows = results.classes.iter().zip(&by_class).map(|(name, rates)| row(name, rates));
    folder.table("rates", &columns, rows.chain([row("all", &results.study.rates)]))
}

fn classes(results: &Results, folder: &OutputFolder) -> Result<()> {
    let Results { confusion, mistakes, classes, subject, .. } = results;
    let image_name = |sample: u32| subject.data.sample_name(sample as usize);
    write_class_tables(&folder.path, confusion, mistakes, classes, image_name)?;
    let row = |class: ClassResults| {
        let means = [class.accuracy.unwrap_or(f64::NAN), class.blocks_run, class.gmacs];
        let means = means.map(|mean| if mean.is_nan() { String::new() } else { mean.to_string() });
        [vec![classes[class.class].clone(), class.images.to_string()], means.into()].concat()
    };
    let columns = ["class", "images", "accuracy", "blocks_run", "gmacs"];
    folder.table("classes", &columns, results.by_class().into_iter().map(row))
}

fn images(results: &Results, folder: &OutputFolder) -> Result<()> {
    let observations = results.observations;
    let gates = observations.gates;
    let columns = ["number", "shard", "key", "class", "prediction", "path", "expected_blocks", "probability"];
    let mut columns = columns.map(str::to_owned).to_vec();
    for kind in Augmentation::ALL.iter().take(observations.augmented.len()) {
        let name = kind.name().replace(' ', "_");
        let numbers = ["prediction", "path", "path_kl", "prediction_kl"];
        columns.extend(numbers.map(|number| format!("{name}_{number}")));
    }
    let expected = measures::expected_blocks(&observations.relaxed, gates, observations.labels.len());
    let path = |paths: &[u8], i: usize| text(&paths[i * gates..(i + 1) * gates]);
    let row = |i: usize| {
        let sample = observations.samples[i];
        let info = results.subject.data.sample_info(sample as usize);
        let (shard, key) = info
            .map_or_else(Default::default, |info| (info.shard.display().to_string(), info.key.to_owned()));
        let mut row = vec![sample.to_string(), shard, key];
        row.extend([observations.labels[i].to_string(), observations.predictions[i].to_string()]);
        row.extend([text(observations.path(i)), expected[i].to_string()]);
        row.push(observations.probabilities[i].to_string());
        for part in &observations.augmented {
            row.extend([part.predictions[i].to_string(), path(&part.paths, i)]);
            row.extend([part.path_kl[i].to_string(), part.prediction_kl[i].to_string()]);
        }
        row
    };
    folder.table("images", &columns, (0..observations.labels.len()).map(row))
}

fn consistency(parts: &[Consistency], folder: &OutputFolder) -> Result<()> {
    let columns = [
        "augmentation",
        "same_path",
        "same_prediction",
        "top1",
        "path_kl",
        "prediction_kl",
        "frequency_kl",
        "distinct_paths",
    ];
    let row = |part: &Consistency| {
        vec![
            part.augmentation.to_owned(),
            part.same_path.to_string(),
            part.same_prediction.to_string(),
            part.top1.to_string(),
            part.path_kl.to_string(),
            part.prediction_kl.to_string(),
            part.frequency_kl.to_string(),
            part.distinct_paths.to_string(),
        ]
    };
    folder.table("consistency", &columns, parts.iter().map(row))
}

fn similarities(correlation: &Correlation, folder: &OutputFolder) -> Result<()> {
    let columns = ["feature_similarity_from", "path_similarity_from", "pairs"];
    let side = BINS as usize;
    let start = |bin: usize| (bin as f64 / (side as f64 / 2.0) - 1.0).to_string();
    let bins = correlation.bins.iter().enumerate().filter(|(_, pairs)| **pairs > 0.0);
    let rows = bins.map(|(i, pairs)| vec![start(i % side), start(i / side), pairs.to_string()]);
    folder.table("similarity", &columns, rows)
}
