//! The teacher of distillation: a trained network, in inference and without gradient.

use crate::config::{self, Config};
use crate::dist::{World, on_rank_zero, replicas};
use crate::model::{BnMode, Costs, Decisions, Net};
use crate::run::checkpoint::{find_weights, load_model};
use crate::run_dir::{self, CONFIG};
use crate::sys::error::{Error, Exit, Result};
use std::path::{Path, PathBuf};
use tch::{Device, Tensor};

/// This rank: checks that the teacher of `config`, if it has one, can be loaded and is for the same images and classes.
pub(super) fn check_teacher(config: &Config) -> Result<()> {
    let Some(from) = &config.distill.from else { return Ok(()) };
    let (file, teacher) = find_teacher(config, from)?;
    load_model(&file, &Net::from_config(&teacher, Device::Cpu).params)
}

/// All ranks: the teacher of `config`, if it has one.
pub(super) fn load_teacher(world: &World, config: &Config, device: Device) -> Result<Option<Net>> {
    let Some(from) = &config.distill.from else { return Ok(None) };
    // Rank 0 reads the files, so that a shared file system serves one reader.
    let (file, teacher) = on_rank_zero(world, || find_teacher(config, from))?;
    let net = Net::from_config(&teacher, device);
    on_rank_zero(world, || load_model(&file, &net.params))?;
    replicas::broadcast_all(world, &[net.params.flat(), net.params.flat_buffers()])?;
    Ok(Some(net))
}

/// The teacher's logits for `images`, `[N, C, H, W]` → `[N, classes]`.
pub(super) fn teacher_logits(teacher: &Net, images: &Tensor) -> Tensor {
    tch::no_grad(|| teacher.forward(images, Decisions::Hard, BnMode::Running)).logits
}

/// The share of a training step's MACs that are the teacher's. A backward pass takes twice the MACs of a forward pass.
pub(super) fn teacher_share(teacher: &Costs, student: &Costs) -> f64 {
    let forward = teacher.training_macs() as f64;
    forward / (forward + 3.0 * student.training_macs() as f64)
}

/// The file of the teacher's weights, and its config.
fn find_teacher(config: &Config, from: &str) -> Result<(PathBuf, Config)> {
    let refuse = |what: String| Error::new(Exit::Config, format!("distill.from {from}: {what}"));
    let in_setting = |error: Error| Error { message: format!("distill.from {error}"), ..error };
    let file = find_weights(Path::new(from)).map_err(in_setting)?;
    let run = file.parent().and_then(run_dir::run_of);
    let run =
        run.ok_or_else(|| refuse("is in no run directory; name a run directory or a step folder".into()))?;
    let teacher = config::load(&run.join(CONFIG).to_string_lossy(), &[])?;
    let theirs = &teacher.data;
    let ours = &config.data;
    for (key, theirs, ours) in [
        ("classes", theirs.classes.to_string(), ours.classes.to_string()),
        ("channels", theirs.channels.to_string(), ours.channels.to_string()),
        ("eval_size", theirs.eval_size().to_string(), ours.eval_size().to_string()),
        ("mean", format!("{:?}", theirs.mean), format!("{:?}", ours.mean)),
        ("std", format!("{:?}", theirs.std), format!("{:?}", ours.std)),
    ] {
        if theirs != ours {
            let what = format!(
                "its data.{key} is {theirs}, here it is {ours}; name a teacher for the same images and classes"
            );
            return Err(refuse(what));
        }
    }
    Ok((file, teacher))
}
