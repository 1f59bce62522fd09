//! A trained network, loaded for inference, export and analysis. Its weights are in a run's checkpoints, its architecture in
//! the run's `config.yaml`.

use codinet_dataloader::DatasetInfo;
use codinet_trainer::config::{self, Config, Routing};
use codinet_trainer::model::Net;
use codinet_trainer::run::{checkpoint, name_classes, read_class_names};
use codinet_trainer::run_dir::{self, CONFIG};
use codinet_trainer::sys::error::{Error, Exit, Result};
use std::path::{Path, PathBuf};
use tch::Device;

/// The arguments that select a network.
#[derive(Debug, clap::Args)]
pub struct NetworkArgs {
    /// A run directory, a `step-…` folder, `checkpoints/best`, a .safetensors file, or a folder of one with its config.yaml.
    #[arg(long, value_name = "RUN|FILE", required = true)]
    pub checkpoint: Option<PathBuf>,

    /// The config of weights outside a run directory: a file, or a shipped config's name.
    #[arg(long, value_name = "CONFIG")]
    pub config: Option<String>,
}

impl NetworkArgs {
    /// Loads the network.
    pub fn load(&self, device: Device) -> Result<TrainedNet> {
        let checkpoint = self.checkpoint.as_deref().expect("clap requires it, except next to a subcommand");
        TrainedNet::load(checkpoint, self.config.as_deref(), device)
    }
}

/// A network with its trained weights.
#[derive(Debug)]
pub struct TrainedNet {
    /// The file of the weights.
    pub file: PathBuf,
    /// The run directory that has the file, if one has.
    pub run: Option<PathBuf>,
    /// The config of the training.
    pub config: Config,
    /// The network. Its weights include the bias that calibration added to the gates.
    pub net: Net,
    /// Names by class number: from the run's `class_names.json`, else from the `dataset.json` of the config's data.
    pub class_names: Option<Vec<String>>,
}

impl TrainedNet {
    /// Loads weights from a run directory (its newest checkpoint), a `step-…` folder, `checkpoints/best` or
    /// `checkpoints/latest`, or a `.safetensors` file. Of a checkpoint these are the weights that the run was evaluated with;
    /// their exponential mean is in `ema.safetensors`. `config`, a file or a shipped config's name, takes precedence over the
    /// run's config.
    ///
    /// # Errors
    /// A path that does not exist; a file that is damaged, cut short or no checkpoint; weights of another network; no config.
    pub fn load(path: &Path, config: Option<&str>, device: Device) -> Result<Self> {
        let file = checkpoint::find_weights(path)?;
        let run = run_of(&file);
        let config = match (config, &run) {
            (Some(name), _) => config::load(name, &[])?,
            (None, Some(run)) => config::load(&run.join(CONFIG).to_string_lossy(), &[])?,
            (None, None) => {
                let what = "is in no run directory, so its config is unknown; add --config";
                return Err(Error::new(Exit::Config, format!("{}: {what}", file.display())));
            }
        };
        if let Routing::Random(_) = config.model.routing {
            let what =
                "has random paths (model.routing) and no routers; codinet-train --eval-only evaluates it";
            return Err(Error::new(Exit::Config, format!("{}: {what}", file.display())));
        }
        let net = Net::from_config(&config, device);
        checkpoint::load_model(&file, &net.params)?;
        let mut data = std::iter::once(config.data.val.as_str()).chain(config.data.train.paths());
        let class_names =
            run.as_deref().and_then(read_class_names).or_else(|| data.find_map(dataset_class_names));
        Ok(Self { file, run, config, net, class_names })
    }

    /// The name of each class; its number if it has no name.
    pub fn names(&self) -> Vec<String> {
        name_classes(self.class_names.as_deref(), self.config.data.classes as usize)
    }
}

/// The run directory of a file of weights: its folder, or the folder whose `checkpoints/step-…/` has it.
fn run_of(file: &Path) -> Option<PathBuf> {
    let file = file.canonicalize().ok()?;
    let folder = file.parent()?;
    let candidates = [Some(folder.to_path_buf()), run_dir::run_of(folder)];
    candidates.into_iter().flatten().find(|run| run.join(CONFIG).is_file())
}

/// The names in the `dataset.json` of `data.train` or `data.val`.
fn dataset_class_names(data: &str) -> Option<Vec<String>> {
    let path = Path::new(data);
    let folder = if path.is_dir() { path } else { path.parent()? };
    DatasetInfo::load(folder).ok()??.class_names
}
