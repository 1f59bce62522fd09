//! `codinet-analyze`: the routing paths of a trained network, as in the paper's Section 4.4.
//!
//! [`collect`] passes the images through the network, each rank its share. [`study`] computes the numbers, with [`measures`],
//! [`divergence`] and [`similarity`]. Rank 0 writes them ([`write`]): [`tables`], and a [`report`] with [`charts`] and t-SNE
//! ([`embed`]). [`compare`] puts runs next to each other.

mod augment;
mod charts;
mod cli;
mod collect;
mod compare;
mod divergence;
mod embed;
mod features;
mod files;
mod html;
mod measures;
mod report;
mod results;
mod similarity;
mod study;
mod tables;
mod write;

pub use cli::{Args, Command, What};

use crate::progress;
use crate::trained::TrainedNet;
use codinet_dataloader::Dataset;
use codinet_trainer::config::Config;
use codinet_trainer::dist::device::{choose_device, set_thread_count};
use codinet_trainer::dist::{World, agree, on_rank_zero, replicas, use_device};
use codinet_trainer::run_dir;
use codinet_trainer::sys::error::{Error, Exit, Result};
use codinet_trainer::sys::load_cuda;
use codinet_trainer::text::print_line;
use collect::{CollectOptions, Subject};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use study::Study;

/// All ranks: runs the program.
pub fn run(args: &Args, world: &mut World) -> Result<()> {
    if let Some(Command::Compare { runs, output }) = &args.command {
        return on_rank_zero(world, || compare::write(runs, output));
    }
    load_cuda();
    let threads = args.hardware.threads.map(usize::from);
    set_thread_count(world, threads)?;
    let device = agree(world, choose_device(world, args.hardware.device, "--device"))?;
    let run = args.run.as_ref().expect("clap requires it");
    let weights = args.checkpoint.as_ref().unwrap_or(run);
    let mut network = agree(world, TrainedNet::load(weights, args.config.as_deref(), device))?;
    if let Some(data) = &args.data {
        network.config.data.val = data.clone();
    }
    let config = &network.config;
    use_device(world, device, config.collective.backend)?;
    let world: &World = world;
    let out = args.output.clone().unwrap_or_else(|| default_output(run, &network));
    let data = agree(world, open_data(args, run, config))?;
    let facts = [
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("data.val", data.fingerprint()),
        ("set of weights", replicas::fingerprint(network.net.params.flat())),
    ];
    replicas::refuse_differences(world, &facts)?;
    let consistency = args.includes(What::Consistency);
    let options = CollectOptions {
        augmented: consistency,
        features: if args.includes(What::Similarity) { args.similarity_images } else { 0 },
        groups: if consistency || args.includes(What::Tsne) { args.groups } else { 0 },
        rotation: args.rotation,
        seed: args.seed,
    };
    let subject = Subject { config, net: &network.net, data: &data, device };
    let observations = subject.collect(world, options)?;
    let first = world.rank() == 0;
    let progress = progress::spinner(first, "comparing images' features and paths");
    let study = Study::new(world, args, &observations, &network, data.len())?;
    progress.set_message("drawing charts, t-SNE and the report");
    let summary =
        on_rank_zero(world, || write::write(args, &network, &subject, &observations, &study, &out))?;
    progress.finish_and_clear();
    if first {
        print_line(&summary);
    }
    Ok(())
}

/// The folder `analysis` in the run directory.
fn default_output(run: &Path, network: &TrainedNet) -> PathBuf {
    let named = run.join(run_dir::CONFIG).is_file().then_some(run); // by the name that the user gave
    let folder = named.or(network.run.as_deref()).or(network.file.parent());
    folder.unwrap_or(Path::new("")).join("analysis")
}

/// Opens the images, once the arguments are checked.
fn open_data(args: &Args, run: &Path, config: &Config) -> Result<Arc<Dataset>> {
    if !config.gated() && args.what != [What::Accuracy] {
        let what = "the network has no gates, so no paths; add 'accuracy' for that part, or use codinet-analyze compare";
        return Err(Error::new(Exit::Config, format!("{}: {what}", run.display())));
    }
    if let Some(class) = args.classes.iter().find(|class| **class as i64 >= config.data.classes) {
        let what = format!("--classes {class}: the network has the classes 0 to {}", config.data.classes - 1);
        return Err(Error::new(Exit::Config, what));
    }
    let data = Arc::new(Dataset::open_with(&config.data.val, &config.dataset_options())?);
    data.check_labels(config.data.classes as usize)?;
    if let Some(file) = &args.features {
        drop(features::read(file, data.len())?); // an error now rather than after the work
    }
    Ok(data)
}
