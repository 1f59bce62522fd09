//! What an analysis leaves in its folder: pictures as SVG and PNG, tables as CSV, and the same for TensorBoard.

use crate::plot::Chart;
use codinet_trainer::run::{EventFile, write_atomically};
use codinet_trainer::run_dir;
use codinet_trainer::sys::error::{Error, Result};
use std::path::{Path, PathBuf};

/// The folder of an analysis.
pub struct Folder {
    /// Its path.
    pub path: PathBuf,
    events: Option<EventFile>,
    step: u64,
}

/// A picture, drawn.
pub struct Picture {
    /// What the report says below it.
    pub caption: String,
    /// The PNG file.
    pub png: Vec<u8>,
    /// Its width in points of the page.
    pub width: u32,
}

impl Folder {
    /// Makes the folder; what it holds is overwritten file by file. TensorBoard has what comes at `step`.
    pub fn create(path: &Path, step: u64, tensorboard: bool) -> Result<Self> {
        std::fs::create_dir_all(path).map_err(|error| Error::disk("make", path, &error))?;
        let logs = path.join(run_dir::TENSORBOARD);
        // Of what an earlier analysis told, TensorBoard would show both.
        for old in std::fs::read_dir(&logs).into_iter().flatten().flatten() {
            if old.file_name().to_string_lossy().starts_with("events.out.tfevents.") {
                let _ = std::fs::remove_file(old.path());
            }
        }
        let events = tensorboard.then(|| EventFile::create(&logs, 0));
        Ok(Self { path: path.into(), events, step })
    }

    /// Writes `name.svg` and `name.png`.
    pub fn chart(&mut self, name: &str, chart: Chart, caption: impl Into<String>) -> Result<Picture> {
        write_atomically(&self.path.join(format!("{name}.svg")), chart.svg.as_bytes())?;
        self.png(name, chart.png, chart.size, 0.4, caption)
    }

    /// Writes `name.png`, which a page shows at `points` points a pixel.
    pub fn png(
        &mut self,
        name: &str,
        png: Vec<u8>,
        size: (u32, u32),
        points: f64,
        caption: impl Into<String>,
    ) -> Result<Picture> {
        write_atomically(&self.path.join(format!("{name}.png")), &png)?;
        if let Some(events) = &mut self.events {
            events.image(self.step, &format!("paths/{name}"), png.clone(), size);
        }
        Ok(Picture { caption: caption.into(), png, width: (f64::from(size.0) * points) as u32 })
    }

    /// Writes `name.csv`.
    pub fn table(
        &self,
        name: &str,
        columns: &[String],
        rows: impl Iterator<Item = Vec<String>>,
    ) -> Result<()> {
        let mut text = line(columns);
        rows.for_each(|row| text += &line(&row));
        write_atomically(&self.path.join(format!("{name}.csv")), text.as_bytes())
    }

    /// Tells TensorBoard numbers.
    pub fn scalars(&mut self, numbers: &[(String, f64)]) {
        if let Some(events) = &mut self.events {
            events.scalars(self.step, numbers);
        }
    }
}

/// A line of CSV (RFC 4180, but for the line's end).
fn line(fields: &[String]) -> String {
    let quoted = |field: &String| {
        if field.contains([',', '"', '\n']) {
            format!("\"{}\"", field.replace('"', "\"\""))
        } else {
            field.clone()
        }
    };
    fields.iter().map(quoted).collect::<Vec<_>>().join(",") + "\n"
}

#[cfg(test)]
mod tests {
    #[test]
    fn fields_are_quoted_where_they_must() {
        let fields = ["a", "T-shirt, top", "say \"no\""].map(str::to_owned);
        assert_eq!(super::line(&fields), "a,\"T-shirt, top\",\"say \"\"no\"\"\"\n");
    }
}
