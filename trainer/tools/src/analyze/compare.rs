//! Runs next to each other: Tables 3 and 8, and accuracy against cost as in Figures 8, 13 and 14. Runs that differ only in
//! their seed are one row: mean ± standard deviation.

use super::files::OutputFolder;
use super::html::Page;
use crate::plot::{self, Line, Point};
use codinet_trainer::config::{self, Config};
use codinet_trainer::run_dir;
use codinet_trainer::sys::error::{Error, Exit, Result};
use codinet_trainer::text::print_line;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// The files of a run.
#[derive(Clone, Debug)]
struct Run {
    name: String,
    config: Config,
    summary: Value,
    /// Null if there is none.
    analysis: Value,
    /// The lines of `metrics.jsonl` about training steps.
    training: Vec<Value>,
}

/// A column of measured numbers, averaged over seeds.
struct Column {
    name: &'static str,
    digits: usize,
    scale: f64,
    value: fn(&Run) -> Option<f64>,
}

/// Rank 0: writes `report.html`, `comparison.csv` and `accuracy.png` into `out`, and prints the table.
///
/// # Errors
/// A folder that is no run directory, or whose run has not finished.
pub fn write(runs: &[PathBuf], out: &Path) -> Result<()> {
    let groups = group_by_config(runs.iter().map(|run| read_run(run)).collect::<Result<Vec<Run>>>()?);
    let (columns, table) = table(&groups);
    let mut folder = OutputFolder::create(out, 0, false)?;
    folder.table("comparison", &columns, table.iter().cloned())?;
    let mut page = Page::new("Comparison of runs", &format!("{} runs.", runs.len()));
    page.section(
        "Settings, paths, cost and accuracy",
        "From each run's config.yaml and summary.json, and analysis/analysis.json if it has one; the paper's Tables 3 and 8. m_d \
         is the margin of diversity; a dash means that the term is off.",
    );
    page.table(&columns, &table);
    let points: Vec<Point> = groups.iter().map(|group| accuracy_point(group)).collect();
    let caption =
        "Top-1 against mean multiply-accumulates per image (Figures 8, 13, 14); bars: standard deviations.";
    page.figures(&[folder.chart("accuracy", plot::accuracy(&points, &[])?, caption)?]);
    add_training(&mut page, &groups, &mut folder)?;
    let file = out.join("report.html");
    page.save(&file)?;
    print_line(&format!("{}\n  view it         {}", format_table(&columns, &table), file.display()));
    Ok(())
}

/// A number of `metrics.jsonl`, the chart's title, its axis, and what it tells.
const OVER_TRAINING: [(&str, &str, &str, &str); 4] = [
    (
        "pairs_inside",
        "Pairs of samples inside the margin",
        "share of pairs",
        "Pairs nearer than m_d: those on which L_div acts.",
    ),
    (
        "views_outside",
        "Views outside the margin",
        "share of views",
        "Views farther than m_c from their centre: those on which L_con acts.",
    ),
    (
        "saturated",
        "Saturated decisions",
        "share of decisions",
        "Decisions whose probability is below 1 % or above 99 %: they hardly change.",
    ),
    ("gmacs", "Cost by hard decisions", "10⁹ multiply-accumulates", "The mean cost of a training view."),
];

/// The charts of [`OVER_TRAINING`], with a line for the first run of each group that has the number.
fn add_training(page: &mut Page, groups: &[Vec<Run>], folder: &mut OutputFolder) -> Result<()> {
    let mut figures = Vec::new();
    for (key, title, axis, caption) in OVER_TRAINING {
        let line = |group: &Vec<Run>| {
            let run = &group[0];
            let point = |line: &Value| Some((line["step"].as_f64()?, line[key].as_f64()?));
            let points: Vec<(f64, f64)> = run.training.iter().filter_map(point).collect();
            (run.config.gated() && !points.is_empty()).then(|| Line { name: title_of(group), points })
        };
        let lines: Vec<Line> = groups.iter().filter_map(line).collect();
        if !lines.is_empty() {
            let chart = plot::lines(title, "step", axis, &lines)?;
            figures.push(folder.chart(&format!("training_{key}"), chart, caption)?);
        }
    }
    if !figures.is_empty() {
        page.section("Over training", "From each run's metrics.jsonl; of several seeds the first.");
        page.figures(&figures);
    }
    Ok(())
}

fn read_run(run: &Path) -> Result<Run> {
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
            return refuse("has no summary.json: the run has not finished; continue it with --resume");
        }
    };
    let analysis = match json(run.join("analysis/analysis.json")) {
        Some(Ok(analysis)) => analysis,
        Some(Err(_)) => {
            return refuse("analysis/analysis.json is damaged; codinet-analyze RUN writes it again");
        }
        None => Value::Null,
    };
    let name =
        run.file_name().map_or_else(|| run.display().to_string(), |name| name.to_string_lossy().into_owned());
    let lines = fs::read_to_string(run.join(run_dir::METRICS)).unwrap_or_default();
    let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let training = lines.filter(|line| line["kind"] == "train").collect();
    Ok(Run { name, config, summary, analysis, training })
}

/// Groups runs whose configs differ only in the section `run`: the seed, and where they run.
fn group_by_config(runs: Vec<Run>) -> Vec<Vec<Run>> {
    let mut groups: Vec<Vec<Run>> = Vec::new();
    for run in runs {
        let same = |group: &&mut Vec<Run>| {
            let first = &group[0].config;
            Config { run: first.run.clone(), ..run.config.clone() } == *first
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.push(run),
            None => groups.push(vec![run]),
        }
    }
    groups
}

const COLUMNS: [Column; 9] = [
    Column { name: "#path", digits: 1, scale: 1.0, value: |run| run.summary["distinct_paths"].as_f64() },
    Column {
        name: "entropy, bits",
        digits: 3,
        scale: 1.0,
        value: |run| run.summary["path_entropy"].as_f64().or_else(|| run.analysis["path_entropy"].as_f64()),
    },
    Column { name: "GMACs", digits: 4, scale: 1.0, value: gmacs },
    Column {
        name: "of static, %",
        digits: 1,
        scale: 100.0,
        value: |run| Some(gmacs(run)? / run.summary["gmacs_static"].as_f64()?),
    },
    Column { name: "top-1, %", digits: 2, scale: 100.0, value: top1 },
    Column {
        name: "same path, %",
        digits: 2,
        scale: 100.0,
        value: |run| augmentation_mean(run, "same_path"),
    },
    Column {
        name: "KL of paths, nats",
        digits: 4,
        scale: 1.0,
        value: |run| augmentation_mean(run, "path_kl"),
    },
    Column {
        name: "KL of predictions",
        digits: 4,
        scale: 1.0,
        value: |run| augmentation_mean(run, "prediction_kl"),
    },
    Column {
        name: "PCC",
        digits: 3,
        scale: 1.0,
        value: |run| run.analysis["similarity"]["relaxed"]["pcc"].as_f64(),
    },
];

fn gmacs(run: &Run) -> Option<f64> {
    run.summary["gmacs"].as_f64()
}

fn top1(run: &Run) -> Option<f64> {
    run.summary["top1"].as_f64()
}

/// The mean over the augmentations of the analysis.
fn augmentation_mean(run: &Run, key: &str) -> Option<f64> {
    let parts = run.analysis["consistency"].as_array()?;
    let values = parts.iter().map(|part| part[key].as_f64()).collect::<Option<Vec<f64>>>()?;
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The mean and standard deviation over seeds; none if a run does not have the number.
fn mean_and_deviation(group: &[Run], value: fn(&Run) -> Option<f64>) -> Option<(f64, f64)> {
    let values = group.iter().map(value).collect::<Option<Vec<f64>>>()?;
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((mean, if values.len() > 1 { (squares / (count - 1.0)).sqrt() } else { 0.0 }))
}

/// The names of the columns, and a row for each group. Columns without any number are left out.
fn table(groups: &[Vec<Run>]) -> (Vec<String>, Vec<Vec<String>>) {
    let columns: Vec<&Column> = COLUMNS
        .iter()
        .filter(|column| groups.iter().any(|group| mean_and_deviation(group, column.value).is_some()))
        .collect();
    let mut names: Vec<String> =
        ["run", "seeds", "network", "router", "relaxation", "α", "β", "m_d", "γ"].map(str::to_owned).into();
    names.extend(columns.iter().map(|column| column.name.to_owned()));
    let row = |group: &Vec<Run>| {
        let mut cells = vec![title_of(group), group.len().to_string()];
        cells.extend(settings(&group[0].config));
        cells.extend(columns.iter().map(|column| cell(column, group)));
        cells
    };
    (names, groups.iter().map(row).collect())
}

fn settings(config: &Config) -> Vec<String> {
    let Config { model, consistency, diversity, cost, .. } = config;
    let dash = |on: bool, value: String| if on { value } else { "–".into() };
    let gated = config.gated();
    let diverse = gated && diversity.weight > 0.0;
    let cost = match cost.budget_gmacs {
        Some(budget) => format!("≤ {budget} G"),
        None => cost.gamma.to_string(),
    };
    vec![
        model.arch.to_string(),
        dash(gated, config_name(&model.router.kind)),
        dash(gated, config_name(&model.router.relaxation)),
        dash(gated && consistency.weight > 0.0, consistency.weight.to_string()),
        dash(diverse, diversity.weight.to_string()),
        dash(diverse, diversity.margin.to_string()),
        dash(gated, cost),
    ]
}

fn cell(column: &Column, group: &[Run]) -> String {
    let Some((mean, deviation)) = mean_and_deviation(group, column.value) else { return String::new() };
    let mean = column.scale * mean;
    let deviation = column.scale * deviation;
    let digits = if group.len() == 1 && column.name == "#path" { 0 } else { column.digits };
    if group.len() > 1 {
        format!("{mean:.digits$} ± {deviation:.digits$}")
    } else {
        format!("{mean:.digits$}")
    }
}

/// A setting's name in a config.
fn config_name(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| Some(value.as_str()?.to_owned())).unwrap_or_default()
}

/// The name of a row: the run's, or what the runs' names begin with.
fn title_of(group: &[Run]) -> String {
    let names: Vec<&str> = group.iter().map(|run| run.name.as_str()).collect();
    let first = names[0];
    let shared = (0..=first.len())
        .rev()
        .find(|&end| first.is_char_boundary(end) && names.iter().all(|name| name.starts_with(&first[..end])));
    match &first[..shared.unwrap_or(0)] {
        "" => first.to_owned(),
        shared => shared.trim_end_matches(['-', '_', '.']).to_owned(),
    }
}

fn accuracy_point(group: &[Run]) -> Point {
    let measure = |value: fn(&Run) -> Option<f64>, scale: f64| {
        let (mean, deviation) = mean_and_deviation(group, value).expect("every summary has it");
        (scale * mean, scale * deviation)
    };
    Point { name: title_of(group), gmacs: measure(gmacs, 1.0), top1: measure(top1, 100.0) }
}

/// The table for the terminal.
fn format_table(columns: &[String], rows: &[Vec<String>]) -> String {
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

    fn run(name: &str, seed: u64, margin: f64, top1: f64) -> Run {
        let mut config = Config::default();
        config.run.seed = seed;
        config.diversity.margin = margin;
        let summary = json!({"top1": top1, "gmacs": 0.02, "gmacs_static": 0.04, "distinct_paths": 10 + seed});
        let parts = json!([{"same_path": 0.5, "path_kl": 1.0}, {"same_path": 0.7, "path_kl": 2.0}]);
        let analysis = if margin == 0.5 { json!({"consistency": parts}) } else { Value::Null };
        Run { name: name.into(), config, summary, analysis, training: Vec::new() }
    }

    #[test]
    fn runs_that_differ_in_seed_are_one_row() {
        let groups = group_by_config(vec![
            run("a-1", 1, 0.5, 0.9),
            run("b-1", 1, 0.75, 0.8),
            run("a-2", 2, 0.5, 0.92),
        ]);
        assert_eq!(groups.len(), 2);
        let (names, rows) = table(&groups);
        let cell = |row: usize, name: &str| rows[row][names.iter().position(|n| n == name).unwrap()].as_str();
        assert_eq!((cell(0, "run"), cell(0, "seeds"), cell(0, "m_d")), ("a", "2", "0.5"));
        assert_eq!((cell(0, "top-1, %"), cell(0, "#path")), ("91.00 ± 1.41", "11.5 ± 0.7"));
        assert_eq!((cell(0, "same path, %"), cell(0, "of static, %")), ("60.00 ± 0.00", "50.0 ± 0.0"));
        assert_eq!((cell(1, "run"), cell(1, "top-1, %"), cell(1, "#path")), ("b-1", "80.00", "11"));
        assert_eq!(cell(1, "same path, %"), "", "there is no analysis");
        assert!(!names.contains(&"PCC".to_owned()), "no run has one");
        assert!(format_table(&names, &rows).contains("a    2      "));
    }
}
