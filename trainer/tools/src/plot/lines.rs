//! Lines over training.

use super::{Axis, CATEGORIES, Chart, Frame, legend};
use codinet_trainer::sys::error::Result;
use plotters::prelude::{Color, PathElement};

/// A line of the chart.
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// `x` and `y` name the axes; both begin at 0.
pub fn lines(title: &str, x: &str, y: &str, lines: &[Line]) -> Result<Chart> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let end = |of: fn(&(f64, f64)) -> f64| points().map(of).fold(0.0, f64::max);
    let x = Axis::linear(x, (0.0, end(|point| point.0)));
    let y = Axis::linear(y, (0.0, 1.05 * end(|point| point.1)));
    Frame::new(title, (360.0, 220.0), 220.0, x, y).draw(|plane, margin| {
        let mut entries = Vec::new();
        for (i, line) in lines.iter().enumerate() {
            let colour = CATEGORIES[i % CATEGORIES.len()];
            plane.draw(&PathElement::new(line.points.clone(), colour.stroke_width(3)))?;
            entries.push((i, colour, line.name.clone()));
        }
        legend(margin, &entries)
    })
}
