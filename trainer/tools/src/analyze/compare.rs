//! Runs side by side: Tables 3 and 8, and accuracy against cost as in Figures 8, 13 and 14. Runs that differ in nothing but
//! their seed are one row, mean ± standard deviation.

use super::files::Folder;
use super::report::Report;
use crate::plot::{self, Point};
use codinet_trainer::config::{self, Config};
use codinet_trainer::run::print_line;
use codinet_trainer::run_dir;
use codinet_trainer::sys::error::{Error, Exit, Result};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// A run, as its files tell.
#[derive(Clone, Debug)]
struct Row {
    names: Vec<String>,
    config: Config,
    summary: Value,
    analysis: Value,
}

/// What a column shows of a row's files; numbers are averaged over seeds.
struct Column {
    name: &'static str,
    digits: usize,
    scale: f64,
    value: fn(&Row) -> Option<f64>,
}

/// Rank 0: writes `report.html`, `comparison.csv` and `accuracy.png` into `out`, and prints the table.
///
/// # Errors
/// A folder that is no run, or whose run has not come to its end.
pub fn write(runs: &[PathBuf], out: &Path) -> Result<()> {
    let rows = runs.iter().map(|run| read(run)).collect::<Result<Vec<Row>>>()?;
    let groups = by_config(rows);
    let (columns, table) = table(&groups);
    let mut folder = Folder::create(out, 0, false)?;
    folder.table("comparison", &columns, table.iter().cloned())?;
    let mut report = Report::new("Runs side by side", &format!("{} runs.", runs.len()));
    report.section(
        "Settings, paths, cost and accuracy",
        "From each run's config.yaml and summary.json, and analysis/analysis.json where there is one; the paper's Tables 3 and \
         8. m_d is the margin of diversity; a dash means that the term is off.",
    );
    report.table(&columns, &table);
    let points: Vec<Point> = groups.iter().map(|group| point(group)).collect();
    let caption =
        "Top-1 against mean multiply-accumulates an image (Figures 8, 13, 14); bars: standard deviations.";
    report.figure(&folder.chart("accuracy", plot::accuracy(&points, &[])?, caption)?);
    let page = out.join("report.html");
    report.save(&page)?;
    print_line(&format!("{}\n  look at it      {}", aligned(&columns, &table), page.display()));
    Ok(())
}

fn read(run: &Path) -> Result<Row> {
    let refuse = |what: &str| Err(Error::new(Exit::Checkpoint, format!("{}: {what}", run.display())));
    let config = run.join(run_dir::CONFIG);
    if !config.is_file() {
        return refuse("no run directory: it has no config.yaml");
    }
    let config = config::load(&config.to_string_lossy(), &[])?;
    let json = |path: PathBuf| fs::read(path).ok().map(|text| serde_json::from_slice::<Value>(&text));
    let summary = match json(run.join(run_dir::SUMMARY)) {
        Some(Ok(summary)) if summary["top1"].is_number() && summary["gmacs"].is_number() => summary,
        Some(_) => return refuse("summary.json is damaged"),
        None => {
            return refuse("has no summary.json: the run has not come to its end; --resume goes on with it");
        }
    };
    let analysis = match json(run.join("analysis/analysis.json")) {
        Some(Ok(analysis)) => analysis,
        Some(Err(_)) => {
            return refuse("analysis/analysis.json is damaged; run codinet-analyze to write it again");
        }
        None => Value::Null,
    };
    let name =
        run.file_name().map_or_else(|| run.display().to_string(), |name| name.to_string_lossy().into_owned());
    Ok(Row { names: vec![name], config, summary, analysis })
}

/// Runs whose configs say the same but for the seed and where they run, together.
fn by_config(rows: Vec<Row>) -> Vec<Vec<Row>> {
    let mut groups: Vec<Vec<Row>> = Vec::new();
    for row in rows {
        let same = |group: &&mut Vec<Row>| {
            let theirs = &group[0].config;
            Config { run: theirs.run.clone(), ..row.config.clone() } == *theirs
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    groups
}

const COLUMNS: [Column; 9] = [
    Column { name: "#path", digits: 1, scale: 1.0, value: |row| row.summary["distinct_paths"].as_f64() },
    Column { name: "entropy, bits", digits: 3, scale: 1.0, value: |row| of_either(row, "path_entropy") },
    Column { name: "GMACs", digits: 4, scale: 1.0, value: |row| row.summary["gmacs"].as_f64() },
    Column {
        name: "of static, %",
        digits: 1,
        scale: 100.0,
        value: |row| Some(row.summary["gmacs"].as_f64()? / row.summary["gmacs_static"].as_f64()?),
    },
    Column { name: "top-1, %", digits: 2, scale: 100.0, value: |row| row.summary["top1"].as_f64() },
    Column { name: "same path, %", digits: 2, scale: 100.0, value: same_path },
    Column { name: "KL of paths, nats", digits: 4, scale: 1.0, value: |row| mean_over(row, "path_kl") },
    Column { name: "KL of predictions", digits: 4, scale: 1.0, value: |row| mean_over(row, "prediction_kl") },
    Column {
        name: "PCC",
        digits: 3,
        scale: 1.0,
        value: |row| row.analysis["similarity"]["relaxed"]["pcc"].as_f64(),
    },
];

fn of_either(row: &Row, key: &str) -> Option<f64> {
    row.summary[key].as_f64().or_else(|| row.analysis[key].as_f64())
}

fn same_path(row: &Row) -> Option<f64> {
    mean_over(row, "same_path")
}

/// The mean over the augmentations of the analysis.
fn mean_over(row: &Row, key: &str) -> Option<f64> {
    let parts = row.analysis["consistency"].as_array()?;
    let values = parts.iter().map(|part| part[key].as_f64()).collect::<Option<Vec<f64>>>()?;
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Mean and standard deviation over seeds; none where a run lacks the number.
fn over_seeds(group: &[Row], value: fn(&Row) -> Option<f64>) -> Option<(f64, f64)> {
    let values = group.iter().map(value).collect::<Option<Vec<f64>>>()?;
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((mean, if values.len() > 1 { (squares / (count - 1.0)).sqrt() } else { 0.0 }))
}

/// Columns that no run has anything for are left out.
fn table(groups: &[Vec<Row>]) -> (Vec<String>, Vec<Vec<String>>) {
    let dash = |on: bool, value: String| if on { value } else { "–".into() };
    let settings = |row: &Row| {
        let Config { model, consistency, diversity, cost, .. } = &row.config;
        let gated = row.config.gated();
        let cost = match cost.budget_gmacs {
            Some(budget) => format!("≤ {budget} G"),
            None => cost.gamma.to_string(),
        };
        vec![
            model.arch.to_string(),
            dash(gated, name_of(&model.router.kind)),
            dash(gated, name_of(&model.router.relaxation)),
            dash(gated && consistency.weight > 0.0, consistency.weight.to_string()),
            dash(gated && diversity.weight > 0.0, diversity.weight.to_string()),
            dash(gated && diversity.weight > 0.0, diversity.margin.to_string()),
            dash(gated, cost),
        ]
    };
    let measured: Vec<&Column> = COLUMNS
        .iter()
        .filter(|column| groups.iter().any(|group| over_seeds(group, column.value).is_some()))
        .collect();
    let mut names: Vec<String> =
        ["run", "seeds", "network", "router", "relaxation", "α", "β", "m_d", "γ"].map(str::to_owned).into();
    names.extend(measured.iter().map(|column| column.name.to_owned()));
    let row = |group: &Vec<Row>| {
        let mut cells = vec![title(group), group.len().to_string()];
        cells.extend(settings(&group[0]));
        cells.extend(measured.iter().map(|column| match over_seeds(group, column.value) {
            None => String::new(),
            Some((mean, spread)) => {
                let mean = column.scale * mean;
                let spread = column.scale * spread;
                let digits = if group.len() == 1 && column.name == "#path" { 0 } else { column.digits };
                if group.len() > 1 {
                    format!("{mean:.digits$} ± {spread:.digits$}")
                } else {
                    format!("{mean:.digits$}")
                }
            }
        }));
        cells
    };
    (names, groups.iter().map(row).collect())
}

/// What a setting is called in a config.
fn name_of(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| Some(value.as_str()?.to_owned())).unwrap_or_default()
}

/// What a row is called: its run, or what its runs' names begin with.
fn title(group: &[Row]) -> String {
    let names: Vec<&str> = group.iter().flat_map(|row| &row.names).map(String::as_str).collect();
    let first = names[0];
    let shared = (0..=first.len())
        .rev()
        .find(|&end| first.is_char_boundary(end) && names.iter().all(|name| name.starts_with(&first[..end])));
    match &first[..shared.unwrap_or(0)] {
        "" => first.to_owned(),
        shared => shared.trim_end_matches(['-', '_', '.']).to_owned(),
    }
}

fn point(group: &[Row]) -> Point {
    let of = |value: fn(&Row) -> Option<f64>, scale: f64| {
        let (mean, spread) = over_seeds(group, value).expect("every summary has it");
        (scale * mean, scale * spread)
    };
    Point {
        name: title(group),
        gmacs: of(|row| row.summary["gmacs"].as_f64(), 1.0),
        top1: of(|row| row.summary["top1"].as_f64(), 100.0),
    }
}

/// A table for the terminal.
fn aligned(columns: &[String], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter().chain([&columns.to_vec()]).map(|row| row[column].chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let line = |row: &[String]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("  {}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    line(columns) + &rows.iter().map(|row| line(row)).collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(name: &str, seed: u64, margin: f64, top1: f64) -> Row {
        let mut config = Config::default();
        config.run.seed = seed;
        config.diversity.margin = margin;
        let summary = json!({"top1": top1, "gmacs": 0.02, "gmacs_static": 0.04, "distinct_paths": 10 + seed});
        let parts = json!([{"same_path": 0.5, "path_kl": 1.0}, {"same_path": 0.7, "path_kl": 2.0}]);
        let analysis = if margin == 0.5 { json!({"consistency": parts}) } else { Value::Null };
        Row { names: vec![name.into()], config, summary, analysis }
    }

    #[test]
    fn seeds_are_one_row() {
        let groups =
            by_config(vec![row("a-1", 1, 0.5, 0.9), row("b-1", 1, 0.75, 0.8), row("a-2", 2, 0.5, 0.92)]);
        assert_eq!(groups.len(), 2);
        let (names, rows) = table(&groups);
        let cell = |row: usize, name: &str| rows[row][names.iter().position(|n| n == name).unwrap()].as_str();
        assert_eq!((cell(0, "run"), cell(0, "seeds"), cell(0, "m_d")), ("a", "2", "0.5"));
        assert_eq!((cell(0, "top-1, %"), cell(0, "#path")), ("91.00 ± 1.41", "11.5 ± 0.7"));
        assert_eq!((cell(0, "same path, %"), cell(0, "of static, %")), ("60.00 ± 0.00", "50.0 ± 0.0"));
        assert_eq!((cell(1, "run"), cell(1, "top-1, %"), cell(1, "#path")), ("b-1", "80.00", "11"));
        assert_eq!(cell(1, "same path, %"), "", "what was not analysed");
        assert!(!names.contains(&"PCC".to_owned()), "no run has one");
        assert!(aligned(&names, &rows).contains("a    2      "));
    }
}
