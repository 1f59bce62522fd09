//! The way in: datasets, the device, and a batch of bytes made a normalised tensor.

use crate::collective::Collective;
use crate::config::{Config, Data, DeviceChoice};
use crate::error::{Error, Exit, Result};
use codinet_dataloader::order::EpochOrder;
use codinet_dataloader::transform::Transform;
use codinet_dataloader::{Batch, BatchPlan, Dataset, Loader, LoaderSpec};
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// The data of a run, as this rank sees it.
#[derive(Debug)]
pub struct Input {
    /// Training samples.
    pub train: Arc<Dataset>,
    /// Validation samples.
    pub val: Arc<Dataset>,
    /// Training samples that are used.
    pub samples: usize,
    mean: Tensor,
    std: Tensor,
    device: Device,
}

impl Input {
    /// Opens both datasets and checks that they suit the config and the world.
    pub fn open(config: &Config, world: &dyn Collective, device: Device) -> Result<Self> {
        let data = &config.data;
        let (train, val) = (Dataset::open(&data.train)?, Dataset::open(&data.val)?);
        for dataset in [&train, &val] {
            dataset.check_labels(data.classes as usize)?;
        }
        let samples = train.len().min(data.train_samples.unwrap_or(usize::MAX));
        let (batch, ranks) = (config.optim.batch_size, world.world());
        if batch % ranks != 0 {
            return Err(Error::new(
                Exit::Config,
                format!(
                    "optim.batch_size is {batch}, which {ranks} ranks cannot share evenly; set a multiple of {ranks}"
                ),
            ));
        }
        if samples < batch {
            return Err(Error::new(
                Exit::Data,
                format!(
                    "{} holds {samples} samples, fewer than one batch of {batch}; lower optim.batch_size",
                    data.train
                ),
            ));
        }
        let per_channel = |values: &[f64]| {
            let values: Vec<f32> =
                (0..data.channels as usize).map(|c| values[c % values.len()] as f32).collect();
            Tensor::from_slice(&values).view([1, -1, 1, 1]).to_device(device)
        };
        let (mean, std) = (per_channel(&data.mean), per_channel(&data.std));
        Ok(Self { train: Arc::new(train), val: Arc::new(val), samples, mean, std, device })
    }

    /// Steps of one epoch; a tail smaller than a batch is left out, another one each epoch.
    pub fn steps(&self, config: &Config) -> u64 {
        (self.samples / config.optim.batch_size) as u64
    }

    /// This rank's training batches, from step `first` of epoch `from` to the end of epoch `to` − 1; epochs are
    /// counted over all stages.
    pub fn training(
        &self,
        config: &Config,
        world: &dyn Collective,
        from: u64,
        first: u64,
        to: u64,
    ) -> Result<Loader> {
        let (seed, samples, batch) = (config.run.seed, self.samples, config.optim.batch_size);
        let (rank, ranks, steps) = (world.rank(), world.world(), self.steps(config));
        let plan = (from..to).flat_map(move |epoch| {
            let order = EpochOrder::new(seed, epoch, samples);
            let start = if epoch == from { first } else { 0 };
            (start..steps).map(move |step| BatchPlan {
                epoch,
                samples: order.rank_samples(step as usize, batch, rank, ranks).to_vec(),
            })
        });
        let transform = Transform::Train { crop: config.data.crop.clone(), flip: config.data.flip };
        Ok(Loader::new(self.train.clone(), spec(config, transform, config.data.views), plan)?)
    }

    /// This rank's share of the validation samples: over all ranks, each sample once.
    pub fn validation(&self, config: &Config, world: &dyn Collective) -> Result<Loader> {
        let batch = config.optim.eval_batch_size.div_ceil(world.world());
        let mine = codinet_dataloader::order::eval_samples(self.val.len(), world.rank(), world.world());
        let plans = mine.clone().step_by(batch).map(move |first| BatchPlan {
            epoch: 0,
            samples: (first..mine.end.min(first + batch as u32)).collect(),
        });
        let transform = Transform::Eval { resize: config.data.eval_resize };
        Ok(Loader::new(self.val.clone(), spec(config, transform, 1), plans)?)
    }

    /// u8 `[L, M, H, W, C]` → normalised f32 `[L·M, C, H, W]`, and the labels `[L]`, both on the device.
    pub fn tensors(&self, batch: &Batch, data: &Data) -> (Tensor, Tensor) {
        let (size, channels) = (i64::from(data.image_size), i64::from(data.channels));
        let shape = [(batch.samples.len() * batch.views) as i64, size, size, channels];
        let bytes = Tensor::from_data_size(&batch.images, &shape, Kind::Uint8).to_device(self.device);
        let pixels = bytes.permute([0, 3, 1, 2]).to_kind(Kind::Float) / 255.0;
        let labels = Tensor::from_slice(&batch.labels).to_device(self.device);
        ((pixels - &self.mean) / &self.std, labels)
    }
}

fn spec(config: &Config, transform: Transform, views: usize) -> LoaderSpec {
    LoaderSpec {
        transform,
        image_size: config.data.image_size,
        channels: config.data.channels as usize,
        views,
        seed: config.run.seed,
        threads: config.data.decode_threads.unwrap_or_else(|| tch::get_num_threads() as usize),
        prefetch: config.data.prefetch,
    }
}

/// Chooses the rank's device and the number of its compute threads.
///
/// libtorch's CUDA half is loaded here where it is installed, so that one binary serves both kinds of machine.
pub fn prepare(config: &Config, world: &dyn Collective) -> Result<Device> {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let (local_rank, local_ranks) = world.local();
    // A launcher that binds leaves each rank cores of its own; one that does not leaves all to all.
    let bound = cores < count_of_cores();
    let share = if bound { cores } else { (cores / local_ranks).max(1) };
    tch::set_num_threads(config.run.threads.unwrap_or(share) as i32);
    load_cuda();
    match config.run.device {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Auto if !tch::Cuda::is_available() => Ok(Device::Cpu),
        DeviceChoice::Cuda if !tch::Cuda::is_available() => Err(Error::new(
            Exit::Config,
            "run.device is cuda, but libtorch finds no GPU here; set run.device=cpu, or check the driver",
        )),
        // A rank that is shown one GPU alone takes that one.
        _ => Ok(Device::Cuda(local_rank % tch::Cuda::device_count() as usize)),
    }
}

fn count_of_cores() -> usize {
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let ranges = online.trim().split(',').filter_map(|range| {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        Some(to.parse::<usize>().ok()? + 1 - from.parse::<usize>().ok()?)
    });
    ranges.sum()
}

fn load_cuda() {
    #![expect(unsafe_code, reason = "loading a library runs its constructors")]
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: the constructors of libtorch_cuda.so register its backend with libtorch, which is loaded, and do
    // nothing else.
    if let Ok(library) = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) } {
        std::mem::forget(library); // registered for as long as the process lives
    }
}
