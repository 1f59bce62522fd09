//! `codinet-launch table`: the rows of a table of configs, with the paper's figures.

use codinet_config::text::print;
use codinet_config::{Row, load_table};
use serde_json::json;

const EXAMPLES: &str = "\
Examples:
  codinet-launch table cifar10_table3.yaml
  codinet-launch -n 8 cifar10_table3.yaml:vanilla       train one row
  cluster/sweep.py cifar10_table3.yaml --output runs/t3 train all rows, with several seeds";

/// List the rows of a table of configs, with the paper's figures.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The table: a YAML file with `rows`, or the name of a shipped one.
    #[arg(value_name = "TABLE")]
    name: String,

    /// Prints one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// Prints the rows.
pub fn run(args: &Args) -> Result<(), String> {
    let table = load_table(&args.name).map_err(|error| error.to_string())?;
    let config = |name: &str| format!("{}:{name}", args.name);
    let gmacs = |row: &Row<_>| row.paper.gmaccs.map(|gmaccs| gmaccs / table.gmaccs_per_gmac);
    if args.json {
        let rows: Vec<_> = table
            .rows
            .iter()
            .map(|row| {
                let paper = json!({"top1": row.paper.top1, "gmacs": gmacs(row), "paths": row.paper.paths});
                json!({"name": row.name, "config": config(&row.name), "paper": paper})
            })
            .collect();
        print(&format!("{}\n", json!({"table": table.table, "rows": rows})));
        return Ok(());
    }
    let width = table.rows.iter().map(|row| config(&row.name).len()).max().unwrap_or(0);
    let mut text = format!("{}; the paper's figures:\n", table.table);
    text += &format!("{:<width$}  {:>7}  {:>6}  {:>5}\n", "config", "top-1 %", "GMACs", "paths");
    for row in &table.rows {
        let top1 = row.paper.top1.map_or("–".into(), |top1| format!("{top1:.2}"));
        let gmacs = gmacs(row).map_or("–".into(), |gmacs| format!("{gmacs:.3}"));
        let paths = row.paper.paths.map_or("–".into(), |paths| paths.to_string());
        text += &format!("{:<width$}  {top1:>7}  {gmacs:>6}  {paths:>5}\n", config(&row.name));
    }
    print(&text);
    Ok(())
}
