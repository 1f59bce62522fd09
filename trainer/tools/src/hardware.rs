//! Command-line options for the device and the threads of a program that uses a trained network.

use codinet_trainer::config::DeviceChoice;
use codinet_trainer::dist::device::choose_local_device;
use codinet_trainer::host;
use codinet_trainer::sys::configure_cuda;
use codinet_trainer::sys::error::Result;
use tch::Device;

/// The device and the threads that a network runs on.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Hardware {
    /// The device that computes.
    #[arg(long, value_name = "auto|cpu|cuda", default_value = "auto", value_parser = parse_device)]
    pub device: DeviceChoice,

    /// Threads that compute and decode [default: as many as this process may use cores].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

fn parse_device(text: &str) -> Result<DeviceChoice, String> {
    serde_json::from_value(text.into()).map_err(|_| "expected auto, cpu or cuda".to_owned())
}

impl Hardware {
    /// For a program of one process: sets the number of compute threads; returns it, and the device.
    pub fn prepare(&self) -> Result<(usize, Device)> {
        let threads = self.threads.map_or_else(host::usable_cpu_count, usize::from);
        tch::set_num_threads(threads as i32);
        let device = choose_local_device(self.device, "--device", 0)?;
        if device.is_cuda() {
            configure_cuda();
        }
        Ok((threads, device))
    }
}
