//! Options for the device and the arithmetic.

use super::Engine;
use crate::hardware::Hardware;
use codinet_trainer::config::Precision;
use codinet_trainer::model::Net;
use codinet_trainer::sys::error::{Error, Exit, Result};
use tch::{Device, Kind};

/// What a network is computed on and with.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct ComputeArgs {
    #[command(flatten)]
    hardware: Hardware,

    /// The type of convolutions and activations; bf16 needs a GPU.
    #[arg(long, value_name = "fp32|bf16", default_value = "fp32", value_parser = parse_precision)]
    pub precision: Precision,

    /// On a GPU, the largest share of a batch's images that are put together for a block, in per cent; a block that more images
    /// run is computed for all of them.
    #[arg(long, value_name = "%", default_value_t = 50, value_parser = clap::value_parser!(u32).range(..=100))]
    gather: u32,
}

fn parse_precision(text: &str) -> Result<Precision, String> {
    serde_json::from_value(text.into()).map_err(|_| "expected fp32 or bf16".to_owned())
}

impl ComputeArgs {
    /// As [`Hardware::prepare`].
    pub fn prepare(&self) -> Result<(usize, Device)> {
        let (threads, device) = self.hardware.prepare()?;
        if self.precision == Precision::Bf16 && !device.is_cuda() {
            return Err(Error::new(Exit::Config, "--precision bf16 needs a GPU; leave it out"));
        }
        Ok((threads, device))
    }

    /// The engine for the device that [`ComputeArgs::prepare`] returned, which has `net`.
    pub fn engine<'a>(&self, net: &'a Net, device: Device) -> Engine<'a> {
        if !device.is_cuda() {
            return Engine::new(net);
        }
        let kind = match self.precision {
            Precision::Fp32 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
        };
        Engine::on_gpu(net, kind, f64::from(self.gather) / 100.0)
    }
}
