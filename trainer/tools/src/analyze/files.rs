//! The files of an analysis: charts as SVG and PNG, tables as CSV, and the same for TensorBoard.

use crate::plot::Chart;
use codinet_trainer::run::{EventFile, write_atomically, write_table};
use codinet_trainer::run_dir;
use codinet_trainer::sys::error::{Error, Result};
use std::path::{Path, PathBuf};

/// The end of the name of an analysis's event file.
const SUFFIX: &str = ".analysis";

/// The folder of an analysis.
pub struct OutputFolder {
    pub path: PathBuf,
    /// Where TensorBoard's files are.
    pub logs: PathBuf,
    events: Option<EventFile>,
    step: u64,
}

/// A figure of the report.
pub struct Figure {
    pub caption: String,
    pub png: Vec<u8>,
    /// On the page, in points.
    pub width: u32,
}

impl OutputFolder {
    /// Creates the folder, or reuses an existing one, whose files are replaced one by one. `step` is TensorBoard's.
    pub fn create(path: &Path, step: u64, tensorboard: bool) -> Result<Self> {
        std::fs::create_dir_all(path).map_err(|error| Error::disk("make", path, &error))?;
        // TensorBoard takes a folder with an event file for a run, so an analysis in a run directory adds to that run's.
        let run = path.parent().filter(|run| run.join(run_dir::CONFIG).is_file());
        let logs = run.unwrap_or(path).to_path_buf();
        // TensorBoard would show an earlier analysis too; version 0.1.0 had its own in a folder.
        for folder in [&logs, &path.join(run_dir::TENSORBOARD)] {
            for old in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let name = old.file_name().to_string_lossy().into_owned();
                let is_analysis = *folder != logs || name.ends_with(SUFFIX);
                if name.starts_with("events.out.tfevents.") && is_analysis {
                    let _ = std::fs::remove_file(old.path());
                }
            }
        }
        let events = tensorboard.then(|| EventFile::open(&logs, SUFFIX));
        Ok(Self { path: path.into(), logs, events, step })
    }

    /// Writes `name.svg` and `name.png`.
    pub fn chart(&mut self, name: &str, chart: Chart, caption: impl Into<String>) -> Result<Figure> {
        write_atomically(&self.path.join(format!("{name}.svg")), chart.svg.as_bytes())?;
        self.png(name, chart.png, chart.size, 0.4, caption)
    }

    /// Writes `name.png`, which the report shows at `points` points per pixel.
    pub fn png(
        &mut self,
        name: &str,
        png: Vec<u8>,
        size: (u32, u32),
        points: f64,
        caption: impl Into<String>,
    ) -> Result<Figure> {
        write_atomically(&self.path.join(format!("{name}.png")), &png)?;
        if let Some(events) = &mut self.events {
            events.image(self.step, &format!("analysis/{name}"), png.clone(), size);
        }
        Ok(Figure { caption: caption.into(), png, width: (f64::from(size.0) * points) as u32 })
    }

    /// Writes `name.csv`.
    pub fn table(
        &self,
        name: &str,
        columns: &[impl AsRef<str>],
        rows: impl Iterator<Item = Vec<String>>,
    ) -> Result<()> {
        write_table(&self.path.join(format!("{name}.csv")), columns, rows)
    }

    /// Writes numbers for TensorBoard.
    pub fn scalars(&mut self, numbers: &[(String, &str, f64)]) {
        if let Some(events) = &mut self.events {
            let numbers =
                numbers.iter().map(|(tag, description, value)| (tag.as_str(), *description, *value));
            events.scalars(self.step, numbers);
        }
    }
}
