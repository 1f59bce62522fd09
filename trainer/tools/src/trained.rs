//! A trained network, opened to be used: for inference, analysis and export. Weights lie in a run's checkpoints, what
//! they are the weights of in the run's `config.yaml`.

use codinet_dataloader::DatasetInfo;
use codinet_trainer::config::{self, Config};
use codinet_trainer::model::Net;
use codinet_trainer::run::{checkpoint, read_class_names};
use codinet_trainer::run_dir::{self, CONFIG};
use codinet_trainer::sys::error::{Error, Exit, Result};
use std::path::{Path, PathBuf};
use tch::Device;

/// A network with its trained weights.
#[derive(Debug)]
pub struct Trained {
    /// The weights' file.
    pub file: PathBuf,
    /// The run directory that they belong to, where they lie in one.
    pub run: Option<PathBuf>,
    /// The config that they were trained by.
    pub config: Config,
    /// The network. A bias that calibration set on the gates is part of its weights.
    pub net: Net,
    /// The classes' names in the order of their numbers: from the run's `class_names.json`, else from the `dataset.json` next to
    /// the config's data.
    pub class_names: Option<Vec<String>>,
}

impl Trained {
    /// Opens what `path` names: a run directory (its newest checkpoint), a `step-…` folder, `checkpoints/best` or
    /// `checkpoints/latest`, or a `.safetensors` file. The weights are those that evaluation counts as the run's; those of
    /// the moving average are next to them, in `ema.safetensors`. `config`, a file or a shipped config's name, says
    /// what the weights are of where no run does, and goes before the run's.
    ///
    /// # Errors
    /// Nothing there; a file that is damaged, cut short, or no checkpoint; one of another network; no config.
    pub fn open(path: &Path, config: Option<&str>, device: Device) -> Result<Self> {
        let file = checkpoint::find_weights(path)?;
        let run = run_of(&file);
        let config = match (config, &run) {
            (Some(name), _) => config::load(name, &[])?,
            (None, Some(run)) => config::load(&run.join(CONFIG).to_string_lossy(), &[])?,
            (None, None) => {
                let what = "lies in no run directory, whose config.yaml would say what network it is of; add --config";
                return Err(Error::new(Exit::Config, format!("{}: {what}", file.display())));
            }
        };
        let net = Net::from_config(&config, device);
        checkpoint::load_model(&file, &net.params)?;
        let data = [&config.data.val, &config.data.train];
        let class_names = run
            .as_deref()
            .and_then(read_class_names)
            .or_else(|| data.into_iter().find_map(|data| names_beside(data)));
        Ok(Self { file, run, config, net, class_names })
    }
}

/// The run directory of a weights file: the folder itself, or the one whose `checkpoints/step-…/` it lies in.
fn run_of(file: &Path) -> Option<PathBuf> {
    let file = file.canonicalize().ok()?;
    let folder = file.parent()?;
    let candidates = [Some(folder.to_path_buf()), run_dir::run_of(folder)];
    candidates.into_iter().flatten().find(|run| run.join(CONFIG).is_file())
}

/// The classes' names by the `dataset.json` of `data.train` or `data.val`.
fn names_beside(data: &str) -> Option<Vec<String>> {
    let path = Path::new(data);
    let folder = if path.is_dir() { path } else { path.parent()? };
    DatasetInfo::load(folder).ok()??.class_names
}
