//! Rank 0: writes an analysis.

use super::cli::Args;
use super::collect::{Observations, Subject};
use super::files::OutputFolder;
use super::results::Results;
use super::study::Study;
use super::{report, tables};
use crate::trained::TrainedNet;
use codinet_trainer::metrics::routing::text;
use codinet_trainer::run::{projector, write_atomically};
use codinet_trainer::run_dir;
use codinet_trainer::sys::error::Result;
use std::path::Path;

/// The most images in TensorBoard's embedding projector.
const PROJECTED: usize = 10_000;

/// Writes the parts that `args` includes into the folder `out`; returns a summary for a person.
pub fn write(
    args: &Args,
    network: &TrainedNet,
    subject: &Subject,
    observations: &Observations,
    study: &Study,
    out: &Path,
) -> Result<String> {
    let checkpoint = network.file.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    let step = checkpoint.and_then(run_dir::step_of).unwrap_or(0);
    let results = Results::new(args, subject, observations, study, network.names());
    let mut folder = OutputFolder::create(out, step, true)?;
    let json = serde_json::to_vec_pretty(study).expect("a study is JSON");
    write_atomically(&out.join("analysis.json"), &json)?;
    tables::write(&results, &folder)?;
    tensorboard(&results, &mut folder)?;
    let name = network.run.as_ref().and_then(|run| run.file_name()).unwrap_or(network.file.as_os_str());
    let page = report::build(&results, &mut folder, &name.to_string_lossy())?;
    let file = out.join("report.html");
    page.save(&file)?;
    Ok(format!("{}\n  view it         {}", report::summary(&results), file.display()))
}

fn tensorboard(results: &Results, folder: &mut OutputFolder) -> Result<()> {
    let study = results.study;
    let mut scalars = vec![
        ("analysis/paths".to_owned(), "Distinct hard paths. A count.", study.distinct_paths as f64),
        ("analysis/path_entropy".to_owned(), "Entropy of the hard paths. Bits.", study.path_entropy),
        ("analysis/top1".to_owned(), "Images classified correctly. Share, 0 to 1.", study.top1),
        ("analysis/gmacs".to_owned(), "Mean cost of an image. GMACs.", study.gmacs),
    ];
    let pcc = study.similarity.as_ref().and_then(|similarity| similarity.relaxed.pcc);
    let description = "Correlation of the similarities of features and of paths, -1 to 1.";
    scalars.extend(pcc.map(|pcc| ("analysis/correlation".to_owned(), description, pcc)));
    for part in &study.consistency {
        let description = "Images that keep their path under this augmentation. Share, 0 to 1.";
        scalars.push((format!("analysis/path_kept_{}", part.augmentation), description, part.same_path));
    }
    folder.scalars(&scalars);
    let observations = results.observations;
    let gates = observations.gates;
    if gates == 0 {
        return Ok(()); // no paths to project
    }
    let class = |class: i64| results.classes[class as usize].clone();
    let mut vectors = Vec::new();
    let mut labels = Vec::new();
    let stride = observations.labels.len().div_ceil(PROJECTED).max(1);
    for i in (0..observations.labels.len()).step_by(stride) {
        let path = observations.path(i);
        let blocks: u8 = path.iter().sum();
        vectors.extend(&observations.relaxed[i * gates..(i + 1) * gates]);
        labels.push(vec![
            class(observations.labels[i]),
            class(observations.predictions[i]),
            text(path),
            blocks.to_string(),
        ]);
    }
    let columns = ["class", "prediction", "path", "blocks run"];
    let below = folder.path.strip_prefix(&folder.logs).unwrap_or(Path::new(""));
    let vectors_folder = below.join(run_dir::TENSORBOARD);
    let vectors_folder = vectors_folder.to_string_lossy();
    projector::write(&folder.logs, &vectors_folder, "paths", &vectors, gates, &columns, &labels)
}
