//! `--dry-run`: the resolved config, the network's size and cost, the number of steps, and what keeps the run from starting.

use crate::config::DryRunFormat;
use crate::dist::{World, agree};
use crate::model::Net;
use crate::optim::schedule::describe_lr_scale;
use crate::run::Console;
use crate::sys::error::Result;
use crate::text::counted;
use crate::train::{Checked, Start, describe_shares};
use serde_json::json;
use std::fmt::Write;
use tch::Device;

/// All ranks: describes the run that `start` would start. The error is the one that the run would end with.
pub fn run(start: &Start, world: &World, format: DryRunFormat) -> Result<()> {
    let net = Net::from_config(start.config, Device::Cpu);
    let checked = start.check(&net);
    let description = match format {
        DryRunFormat::Text => text(start, &net, &checked),
        DryRunFormat::Json => json(start, &net, &checked),
    };
    Console::new(world.rank()).say(&description);
    agree(world, checked.problems.into_result(start.place))
}

/// One line with a JSON object. `samples` is the number per epoch; it is null if the data have problems, and `samples_error` has
/// them. `errors` has all problems.
fn json(start: &Start, net: &Net, checked: &Checked) -> String {
    let config = start.config;
    let router_groups = net.params.groups().into_iter().filter(|group| group.role.router);
    let errors = checked.problems.lines(start.place);
    let of_data = errors.iter().filter(|(key, _)| key.starts_with("data."));
    let of_data: Vec<&str> = of_data.map(|(_, line)| line.as_str()).collect();
    let facts = json!({
        "config": config,
        "parameters": net.params.count(),
        "router_parameters": router_groups.map(|group| group.len).sum::<i64>(),
        "gates": net.costs.gated().count(),
        "static_macs": net.costs.static_macs(),
        "epochs": config.stages.iter().map(|stage| stage.epochs).sum::<u64>(),
        "samples": checked.data.as_ref().map(|data| data.samples),
        "samples_error": (!of_data.is_empty()).then(|| of_data.join("\n")),
        "errors": errors.iter().map(|(_, line)| line).collect::<Vec<_>>(),
    });
    facts.to_string()
}

fn text(start: &Start, net: &Net, checked: &Checked) -> String {
    let config = start.config;
    let mut text = serde_saphyr::to_string(config).expect("a config is YAML");
    text += &table(net);
    let batch = config.optim.batch_size;
    let _ = match &checked.data {
        Some(data) => write!(
            text,
            "\n{} training samples × {} views in {} per epoch of {batch} samples; {} validation images",
            data.samples,
            config.data.views,
            counted(data.steps_per_epoch(config) as usize, "step"),
            data.val.set.len()
        ),
        None if start.has_data => write!(text, "\nsteps per epoch: unknown, because of the errors"),
        None => write!(text, "\nsteps per epoch: unknown without the data (--no-data)"),
    };
    for line in describe_lr_scale(config).into_iter().chain(describe_shares(config, start.ranks)) {
        let _ = write!(text, "\n{line}");
    }
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
