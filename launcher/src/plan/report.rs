//! The table that `plan` prints.

use super::links::Link;
use super::step::Step;
use super::{Args, Plan, Row};

/// The columns and their widths; the last one needs a price.
const COLUMNS: [(&str, usize); 11] = [
    ("GPUs", 7),
    ("batch", 9),
    ("step ms", 10),
    ("grads", 8),
    ("centres", 9),
    ("L_div", 8),
    ("wait", 8),
    ("images/s", 12),
    ("efficiency", 12),
    ("hours", 9),
    ("cost", 11),
];

/// The assumptions, the table, and a legend.
pub fn format_table(plan: &Plan, rows: &[Row], args: &Args) -> String {
    let columns = COLUMNS.len() - usize::from(args.price.is_none());
    let mut text =
        format_assumptions(plan, args) + "\n" + &format_line(COLUMNS.map(|(name, _)| name.into()), columns);
    for row in rows {
        text += &format_line(format_cells(row), columns);
    }
    text += "grads, centres, L_div, wait: milliseconds per step that a single GPU does not need; see docs/scaling.md\n";
    if !args.strong {
        text +=
            "set optim.batch_size to the row's batch; optim.lr_batch_size scales the learning rate with it\n";
    }
    if rows.iter().any(|row| row.hours.is_none()) {
        text += "hours: unknown if the shards cannot be read (give --samples) or hold fewer samples than a batch\n";
    }
    text
}

fn format_assumptions(plan: &Plan, args: &Args) -> String {
    let Plan { config, network, measured, cluster, work, .. } = plan;
    let share = 100.0 * network.router_parameters as f64 / network.parameters as f64;
    let format_link = |link: &Link| format!("{:.0} Gbit/s and {:.1} µs", link.gbps(), link.us());
    format!(
        "{}: {:.2} M parameters ({share:.1} % in routers), {} gates, {:.3} GMACs static, {} epochs\n\
         measured: {:.0} images/s on {} GPU(s), {} samples × {} views per GPU and step; a step takes {:.1} ms on a single GPU\n\
         links: {} GPUs per node; {} between GPUs, {} between nodes; jitter {} %\n",
        args.config,
        network.parameters as f64 / 1e6,
        network.gates,
        network.static_macs as f64 / 1e9,
        plan.epochs(),
        measured.images_per_second,
        measured.gpus,
        measured.samples,
        config.data.views,
        1e3 * work.compute,
        cluster.gpus_per_node,
        format_link(&cluster.intra),
        format_link(&cluster.inter),
        args.jitter,
    )
}

fn format_line(cells: [String; COLUMNS.len()], columns: usize) -> String {
    let padded = cells.iter().zip(COLUMNS).take(columns).map(|(cell, (_, width))| format!("{cell:>width$}"));
    padded.collect::<String>() + "\n"
}

fn format_cells(row: &Row) -> [String; COLUMNS.len()] {
    let Step { gradients, centres, diversity, stragglers, .. } = row.parts;
    let ms = |seconds: f64| format!("{:.2}", 1e3 * seconds);
    [
        row.gpus.to_string(),
        row.batch_size.to_string(),
        format!("{:.1}", 1e3 * row.step_seconds),
        ms(gradients),
        ms(centres),
        ms(diversity),
        ms(stragglers),
        format!("{:.0}", row.images_per_second),
        format!("{:.1} %", 100.0 * row.efficiency),
        row.hours.map_or("–".into(), |hours| format!("{hours:.3}")),
        row.cost.map_or("–".into(), |cost| format!("{cost:.2}")),
    ]
}
