//! One side of a chart.

use plotters::coord::combinators::{IntoLogRange, LogCoord};
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::data::float::FloatPrettyPrinter;
use std::ops::Range;

/// Where values lie along a side, and which of them are written there.
pub struct Axis {
    /// What the values are, with their unit.
    pub label: String,
    scale: Scale,
    /// Values with a name of their own; round numbers where there are none.
    names: Vec<(f64, String)>,
}

enum Scale {
    Linear(RangedCoordf64),
    Log(LogCoord<f64>),
}

impl Axis {
    pub fn linear(label: &str, (low, high): (f64, f64)) -> Self {
        let range = if low < high { low..high } else { low - 0.5..high + 0.5 };
        Self { label: label.into(), scale: Scale::Linear(range.into()), names: Vec::new() }
    }

    /// Equal steps are equal ratios.
    pub fn log(label: &str, (low, high): (f64, f64)) -> Self {
        Self { label: label.into(), scale: Scale::Log((low..high).log_scale().into()), names: Vec::new() }
    }

    pub fn named(label: &str, range: (f64, f64), names: Vec<(f64, String)>) -> Self {
        Self { names, ..Self::linear(label, range) }
    }

    /// Room for the longest name, in points.
    pub fn width(&self) -> f64 {
        let lengths = self.key_points(10).into_iter().map(|value| self.format_ext(&value).chars().count());
        lengths.max().unwrap_or(0) as f64 * super::LETTERS * 0.55
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        match &self.scale {
            Scale::Linear(scale) => scale.map(value, limit),
            Scale::Log(scale) => scale.map(value, limit),
        }
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        match &self.scale {
            _ if !self.names.is_empty() => self.names.iter().map(|(value, _)| *value).collect(),
            Scale::Linear(scale) => scale.key_points(hint),
            Scale::Log(scale) => scale.key_points(hint),
        }
    }

    fn range(&self) -> Range<f64> {
        match &self.scale {
            Scale::Linear(scale) => scale.range(),
            Scale::Log(scale) => scale.range(),
        }
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        let name = self.names.iter().find(|(named, _)| named == value);
        let number = FloatPrettyPrinter { allow_scientific: false, min_decimal: 0, max_decimal: 6 };
        name.map_or_else(|| number.print(*value), |(_, name)| name.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers() {
        let names = |axis: &Axis| -> Vec<String> {
            axis.key_points(7).iter().map(|value| axis.format_ext(value)).collect()
        };
        assert_eq!(names(&Axis::linear("", (0.0, 1.0))), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(names(&Axis::linear("", (-3.0, 9.0))), ["-2", "0", "2", "4", "6", "8"]);
        let log = Axis::log("", (0.5, 2000.0));
        assert_eq!(names(&log), ["1", "10", "100", "1000"]);
        assert_eq!((log.map(&0.5, (0, 800)), log.map(&2000.0, (0, 800))), (0, 800));
    }
}
