//! `codinet-analyze`: what a trained network's routing paths are like, as the paper's Section 4.4 looks at them.
//!
//! [`collect`] passes the images through the network, each rank its share; [`study`] makes numbers of it, by [`measures`],
//! [`divergence`] and [`similarity`]; rank 0 writes them down ([`write`]), with [`charts`] and t-SNE ([`embed`]).
//! [`compare`] sets runs side by side.

mod augment;
mod charts;
mod cli;
mod collect;
mod compare;
mod divergence;
mod embed;
mod features;
mod files;
mod measures;
mod report;
mod similarity;
mod study;
mod write;

pub use cli::{Args, Command, What};

use crate::trained::Trained;
use codinet_dataloader::Dataset;
use codinet_trainer::dist::device::{choose_device, set_thread_count};
use codinet_trainer::dist::replicas;
use codinet_trainer::dist::{World, agree, on_rank_zero};
use codinet_trainer::run_dir;
use codinet_trainer::sys::error::{Error, Exit, Result};
use codinet_trainer::sys::load_cuda;
use collect::{CollectOptions, Subject};
use std::path::PathBuf;
use std::sync::Arc;
use study::{Facts, Study};

/// All ranks: does what the command line asks for.
pub fn run(args: &Args, world: &mut World) -> Result<()> {
    if let Some(Command::Compare { runs, output }) = &args.command {
        return on_rank_zero(world, || compare::write(runs, output));
    }
    load_cuda();
    let threads = args.hardware.threads.map(usize::from);
    set_thread_count(world, threads)?;
    let device = agree(world, choose_device(world, args.hardware.device, "--device"))?;
    let run = args.run.as_ref().expect("clap asks for it");
    let weights = args.checkpoint.as_ref().unwrap_or(run);
    let mut trained = agree(world, Trained::open(weights, args.config.as_deref(), device))?;
    if let Some(data) = &args.data {
        trained.config.data.val = data.clone();
    }
    let config = &trained.config;
    world.use_device(device, config.collective.backend)?;
    let world: &World = world;
    let out = args.output.clone().unwrap_or_else(|| {
        if run.join(run_dir::CONFIG).is_file() {
            return run.join("analysis"); // the path as given
        }
        let folder = || trained.file.parent().map(PathBuf::from).unwrap_or_default();
        trained.run.clone().unwrap_or_else(folder).join("analysis")
    });
    let open = || {
        if !config.gated() {
            let what =
                "the network has no gates, so no paths; codinet-analyze compare shows it next to gated ones";
            return Err(Error::new(Exit::Config, format!("{}: {what}", run.display())));
        }
        if let Some(class) = args.classes.iter().find(|class| **class as i64 >= config.data.classes) {
            let what = format!(
                "--classes {class}: the network tells classes 0 to {} apart",
                config.data.classes - 1
            );
            return Err(Error::new(Exit::Config, what));
        }
        let data = Arc::new(Dataset::open_with(&config.data.val, &config.dataset_options())?);
        data.check_labels(config.data.classes as usize)?;
        if let Some(file) = &args.features {
            drop(features::read(file, data.len())?); // before the work is done
        }
        Ok(data)
    };
    let data = agree(world, open())?;
    let facts = [
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("data.val", data.fingerprint()),
        ("set of weights", replicas::fingerprint(trained.net.params.flat())),
    ];
    replicas::refuse_differences(world, &facts)?;
    let wants = |what| args.wants(what);
    let options = CollectOptions {
        augmented: wants(What::Consistency),
        features: if wants(What::Similarity) { args.similarity_images } else { 0 },
        groups: if wants(What::Consistency) || wants(What::Tsne) { args.groups } else { 0 },
        rotation: args.rotation,
        seed: args.seed,
    };
    let subject = Subject { config, net: &trained.net, data: &data, device };
    let outputs = subject.collect(world, options)?;
    let checkpoint = trained.file.display().to_string();
    let facts = Facts { checkpoint, data: &config.data.val, images: data.len(), costs: &trained.net.costs };
    let study = Study::new(world, args, &outputs, facts)?;
    let written = match world.rank() {
        0 => write::write(args, &trained, &subject, &outputs, &study, &out),
        _ => Ok(()),
    };
    agree(world, written)
}
