//! `--dry-run`: the resolved config, the network's size and cost, and the number of steps, without a run.

use crate::config::{Config, DryRunFormat};
use crate::data::Datasets;
use crate::dist::World;
use crate::model::Net;
use crate::optim::calibration::check_budget;
use crate::sys::error::Result;
use crate::text::counted;
use serde_json::json;
use std::fmt::Write;
use tch::Device;

/// Describes a run of `config`. An error, such as a budget that the network cannot meet, is this rank's.
pub fn describe(config: &Config, world: &World, format: DryRunFormat) -> Result<String> {
    let net = Net::from_config(config, Device::Cpu);
    check_budget(config, &net.costs)?;
    let data = Datasets::open(config, world, Device::Cpu);
    Ok(match format {
        DryRunFormat::Text => text(config, &net, data),
        DryRunFormat::Json => json(config, &net, data),
    })
}

/// One line with a JSON object. `samples` is the number per epoch; it is null if the shards cannot be read, and
/// `samples_error` has the reason.
fn json(config: &Config, net: &Net, data: Result<Datasets>) -> String {
    let router_groups = net.params.groups().into_iter().filter(|group| group.role.router);
    let facts = json!({
        "config": config,
        "parameters": net.params.count(),
        "router_parameters": router_groups.map(|group| group.len).sum::<i64>(),
        "gates": net.costs.gated().count(),
        "static_macs": net.costs.static_macs(),
        "epochs": config.stages.iter().map(|stage| stage.epochs).sum::<u64>(),
        "samples": data.as_ref().ok().map(|data| data.samples),
        "samples_error": data.err().map(|error| error.message),
    });
    facts.to_string()
}

fn text(config: &Config, net: &Net, data: Result<Datasets>) -> String {
    let mut text = serde_saphyr::to_string(config).expect("a config is YAML");
    text += &table(net);
    let batch = config.optim.batch_size;
    let _ = match data {
        Ok(data) => write!(
            text,
            "\n{} training samples × {} views in {} per epoch of {batch} samples; {} validation images",
            data.samples,
            config.data.views,
            counted(data.steps_per_epoch(config) as usize, "step"),
            data.val.set.len()
        ),
        Err(error) => write!(text, "\nsteps per epoch: unknown, {error}"),
    };
    text
}

/// One row per block: its output, parameters and cost.
fn table(net: &Net) -> String {
    let costs = &net.costs;
    let mut text =
        format!("\n{:<12}{:>16}{:>14}{:>12}{:>10}\n", "block", "output", "parameters", "MMACs", "router");
    let mut row = |name: &str, shape: String, params: i64, macs: i64, router: Option<i64>| {
        let share =
            router.map_or("–".into(), |router| format!("{:.2} %", 100.0 * router as f64 / macs as f64));
        let _ = writeln!(text, "{name:<12}{shape:>16}{params:>14}{:>12.3}{share:>10}", macs as f64 / 1e6);
    };
    let stem_params = net.params.count_prefixed("conv1.") + net.params.count_prefixed("bn1.");
    row("stem", String::new(), stem_params, costs.stem, None);
    for block in &costs.blocks {
        let shape = format!("{}×{}×{}", block.shape.c, block.shape.h, block.shape.w);
        let params = net.params.count_prefixed(&format!("{}.", block.name));
        row(&block.name, shape, params, block.run, block.router);
    }
    row("fc", String::new(), net.params.count_prefixed("fc."), costs.head, None);
    let shared_params = net.params.count_prefixed("router.");
    if shared_params > 0 {
        // The MACs of layers that `rnn` routers share are in the blocks that compute them.
        row("router", String::new(), shared_params, 0, None);
    }
    let (none, all) = costs.gmacs_range();
    let _ = writeln!(
        text,
        "\n{} parameters · {:.6} GMACs static · {all:.6} with every block run, {none:.6} with none ({} gates)",
        net.params.count(),
        costs.static_macs() as f64 / 1e9,
        costs.gated().count()
    );
    text
}
