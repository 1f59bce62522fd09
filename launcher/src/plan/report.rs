//! A plan as a person reads it.

use super::links::Link;
use super::step::Step;
use super::{Args, Plan, Row};

/// The table's columns and their widths; the last only where there is a price.
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

/// What was assumed, the table, and how to read it.
pub fn text(plan: &Plan, rows: &[Row], args: &Args) -> String {
    let columns = COLUMNS.len() - usize::from(args.price.is_none());
    let mut text = head(plan, args) + "\n" + &line(COLUMNS.map(|(name, _)| name.into()), columns);
    for row in rows {
        text += &line(cells(row), columns);
    }
    text += "grads, centres, L_div, wait: milliseconds of the step that one GPU would not spend; see docs/scaling.md\n";
    if !args.strong {
        text += "set optim.batch_size to the batch of the row; optim.lr_batch_size says whether the rate follows\n";
    }
    if rows.iter().any(|row| row.hours.is_none()) {
        text += "hours: unknown where the shards cannot be read (give --samples) or hold fewer samples than a batch\n";
    }
    text
}

fn head(plan: &Plan, args: &Args) -> String {
    let Plan { config, network, measured, cluster, work, .. } = plan;
    let share = 100.0 * network.router_parameters as f64 / network.parameters as f64;
    let link = |link: &Link| format!("{:.0} Gbit/s and {:.1} µs", link.gbps(), link.us());
    format!(
        "{}: {:.2} M parameters ({share:.1} % in routers), {} gates, {:.3} GMACs static, {} epochs\n\
         measured: {:.0} images/s on {} GPU(s), {} samples × {} views per GPU and step; alone, a step takes {:.1} ms\n\
         links: {} GPUs per node; {} from GPU to GPU, {} from node to node; jitter {} %\n",
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
        link(&cluster.intra),
        link(&cluster.inter),
        args.jitter,
    )
}

fn line(cells: [String; COLUMNS.len()], columns: usize) -> String {
    let padded = cells.iter().zip(COLUMNS).take(columns).map(|(cell, (_, width))| format!("{cell:>width$}"));
    padded.collect::<String>() + "\n"
}

fn cells(row: &Row) -> [String; COLUMNS.len()] {
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
