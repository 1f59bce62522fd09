//! TensorBoard event files: TFRecord framing around a few protobuf messages. docs/dependencies.md says why tensorboard-rs is
//! not used.
//!
//! A failed write gives one warning and ends the file; it never stops training.

use crate::host;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// `tensorflow.Event`, without the fields that are not used.
#[derive(Clone, PartialEq, prost::Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "Content", tags = "3, 5, 7")]
    content: Option<Content>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Content {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<SummaryValue>,
}

/// `tensorflow.Summary.Value`.
#[derive(Clone, PartialEq, prost::Message)]
struct SummaryValue {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
    #[prost(message, optional, tag = "4")]
    image: Option<Image>,
    #[prost(message, optional, tag = "8")]
    tensor: Option<Tensor>,
    #[prost(message, optional, tag = "9")]
    metadata: Option<Metadata>,
}

/// `tensorflow.Summary.Image`.
#[derive(Clone, PartialEq, prost::Message)]
struct Image {
    #[prost(int32, tag = "1")]
    height: i32,
    #[prost(int32, tag = "2")]
    width: i32,
    /// 3: RGB.
    #[prost(int32, tag = "3")]
    colorspace: i32,
    #[prost(bytes = "vec", tag = "4")]
    encoded_image_string: Vec<u8>,
}

/// `tensorflow.TensorProto`: a text, or the empty number that a plugin's metadata needs.
#[derive(Clone, PartialEq, prost::Message)]
struct Tensor {
    /// 1: float, 7: string.
    #[prost(int32, tag = "1")]
    dtype: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<TensorShape>,
    #[prost(float, repeated, tag = "5")]
    float_val: Vec<f32>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    string_val: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TensorShape {}

/// `tensorflow.SummaryMetadata`.
#[derive(Clone, PartialEq, prost::Message)]
struct Metadata {
    #[prost(message, optional, tag = "1")]
    plugin_data: Option<PluginData>,
    #[prost(string, tag = "3")]
    summary_description: String,
    /// 1: scalar, 2: tensor.
    #[prost(int32, tag = "4")]
    data_class: i32,
}

/// `tensorflow.SummaryMetadata.PluginData`.
#[derive(Clone, PartialEq, prost::Message)]
struct PluginData {
    #[prost(string, tag = "1")]
    plugin_name: String,
    #[prost(bytes = "vec", tag = "2")]
    content: Vec<u8>,
}

/// `tensorboard.Layout` of the custom scalars.
#[derive(Clone, PartialEq, prost::Message)]
struct Layout {
    #[prost(message, repeated, tag = "2")]
    category: Vec<Category>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Category {
    #[prost(string, tag = "1")]
    title: String,
    #[prost(message, repeated, tag = "2")]
    chart: Vec<Chart>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Chart {
    #[prost(string, tag = "1")]
    title: String,
    #[prost(message, optional, tag = "2")]
    multiline: Option<Multiline>,
}

/// `tensorboard.MultilineChartContent`.
#[derive(Clone, PartialEq, prost::Message)]
struct Multiline {
    #[prost(string, repeated, tag = "1")]
    tag: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `tensorflow.SessionLog.START`: readers drop the events of earlier files from this step on.
const START: i32 = 1;

/// An open event file, until a write fails.
#[derive(Debug)]
pub struct EventFile {
    file: Option<File>,
    /// The tags whose descriptions this file has.
    described: HashSet<String>,
}

impl EventFile {
    /// Creates an event file in `folder` for a run that continues from `step`.
    pub fn create(folder: &Path, step: u64) -> Self {
        let mut events = Self::open(folder, "");
        events.write(step + 1, Content::SessionLog(SessionLog { status: START }));
        events
    }

    /// Creates an event file in `folder` whose events join those of other files there. Its name ends in `suffix`.
    pub fn open(folder: &Path, suffix: &str) -> Self {
        let open = || -> io::Result<File> {
            fs::create_dir_all(folder)?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let seconds = now.as_secs();
            let process = std::process::id();
            let name = format!("events.out.tfevents.{seconds}.{}.{process}{suffix}", host::name());
            File::create(folder.join(name))
        };
        let mut events = Self { file: None, described: HashSet::new() };
        match open() {
            Ok(file) => events.file = Some(file),
            Err(error) => warn(&error),
        }
        events.write(0, Content::FileVersion("brain.Event:2".into()));
        events
    }

    /// Writes numbers at a step, each with its tag and description.
    pub fn scalars<'a>(&mut self, step: u64, scalars: impl Iterator<Item = (&'a str, &'a str, f64)>) {
        let described = &mut self.described;
        // TensorBoard reads the description with a tag's first number.
        let metadata = |description: &str| Metadata {
            plugin_data: Some(PluginData { plugin_name: "scalars".into(), content: Vec::new() }),
            summary_description: description.into(),
            data_class: 1,
        };
        let value = |(tag, description, value): (&str, &str, f64)| SummaryValue {
            tag: tag.into(),
            simple_value: Some(value as f32),
            metadata: described.insert(tag.into()).then(|| metadata(description)),
            ..SummaryValue::default()
        };
        let value = scalars.map(value).collect();
        self.write(step, Content::Summary(Summary { value }));
    }

    /// Writes a text in Markdown.
    pub fn text(&mut self, tag: &str, markdown: &str) {
        self.string(tag, "text", markdown.as_bytes().to_vec());
    }

    /// Writes charts that show several curves each: category, title, regular expressions of tags. A category's charts follow
    /// each other.
    pub fn layout(&mut self, charts: &[(&str, &str, &[&str])]) {
        let category = |charts: &[(&str, &str, &[&str])]| Category {
            title: charts[0].0.into(),
            chart: charts
                .iter()
                .map(|&(_, title, tags)| Chart {
                    title: title.into(),
                    multiline: Some(Multiline { tag: tags.iter().map(|&tag| tag.into()).collect() }),
                })
                .collect(),
        };
        let layout = Layout { category: charts.chunk_by(|a, b| a.0 == b.0).map(category).collect() };
        self.string("custom_scalars__config__", "custom_scalars", prost::Message::encode_to_vec(&layout));
    }

    fn string(&mut self, tag: &str, plugin: &str, bytes: Vec<u8>) {
        let value = SummaryValue {
            tag: tag.into(),
            tensor: Some(Tensor {
                dtype: 7,
                shape: Some(TensorShape {}),
                string_val: vec![bytes],
                ..Tensor::default()
            }),
            metadata: Some(Metadata {
                plugin_data: Some(PluginData { plugin_name: plugin.into(), content: Vec::new() }),
                data_class: 2,
                ..Metadata::default()
            }),
            ..SummaryValue::default()
        };
        self.write(0, Content::Summary(Summary { value: vec![value] }));
    }

    /// Writes an RGB picture, a PNG file of `width` × `height` pixels, at a step.
    pub fn image(&mut self, step: u64, tag: &str, png: Vec<u8>, (width, height): (u32, u32)) {
        let image =
            Image { height: height as i32, width: width as i32, colorspace: 3, encoded_image_string: png };
        let value = SummaryValue { tag: tag.into(), image: Some(image), ..SummaryValue::default() };
        self.write(step, Content::Summary(Summary { value: vec![value] }));
    }

    /// Writes a tag's metadata for a plugin of TensorBoard.
    pub fn plugin(&mut self, tag: &str, plugin: &str, content: Vec<u8>) {
        let value = SummaryValue {
            tag: tag.into(),
            tensor: Some(Tensor {
                dtype: 1,
                shape: Some(TensorShape {}),
                float_val: vec![0.0],
                ..Tensor::default()
            }),
            metadata: Some(Metadata {
                plugin_data: Some(PluginData { plugin_name: plugin.into(), content }),
                ..Metadata::default()
            }),
            ..SummaryValue::default()
        };
        self.write(0, Content::Summary(Summary { value: vec![value] }));
    }

    fn write(&mut self, step: u64, content: Content) {
        let Some(file) = &mut self.file else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let event = Event { wall_time: now.as_secs_f64(), step: step as i64, content: Some(content) };
        if let Err(error) = file.write_all(&frame_record(&prost::Message::encode_to_vec(&event))) {
            warn(&error);
            self.file = None;
        }
    }
}

fn warn(error: &io::Error) {
    crate::eprint_line!(
        "warning: cannot write TensorBoard's event file: {error}; training continues without it"
    );
}

/// A TFRecord: length, masked CRC-32C of the length, data, masked CRC-32C of the data; little-endian.
fn frame_record(data: &[u8]) -> Vec<u8> {
    let masked = |bytes: &[u8]| crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8);
    let length = (data.len() as u64).to_le_bytes();
    let mut record = length.to_vec();
    record.extend(masked(&length).to_le_bytes());
    record.extend(data);
    record.extend(masked(data).to_le_bytes());
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The record that TensorFlow itself writes for its version event at wall time 0.
    #[test]
    fn records_have_tensorflows_framing() {
        let event =
            Event { wall_time: 0.0, step: 0, content: Some(Content::FileVersion("brain.Event:2".into())) };
        let data = prost::Message::encode_to_vec(&event);
        assert_eq!(data, b"\x1a\x0dbrain.Event:2");
        // CRC-32C of "123456789" is e3069283, its masked form by the formula of tensorflow/core/lib/hash/crc32c.h.
        let record = frame_record(b"123456789");
        let masked = 0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(record[21..], masked.to_le_bytes());
        assert_eq!(record.len(), 12 + 9 + 4);
    }

    #[test]
    fn unwritable_folder_only_warns() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut events = EventFile::create(&file.path().join("below a file"), 0);
        events.scalars(1, [("loss/train", "The objective.", 1.0)].into_iter());
        assert!(events.file.is_none());
    }
}
