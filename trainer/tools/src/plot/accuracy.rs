//! Accuracy against cost: the paper's Figures 8, 13 and 14.

use super::{Axis, CATEGORIES, Chart, Frame, GREY, legend, mark};
use codinet_trainer::sys::error::Result;
use plotters::prelude::{Color, PathElement};

/// A network in the chart.
pub struct Point {
    pub name: String,
    /// Mean MACs per image, in billions, and their standard deviation over seeds.
    pub gmacs: (f64, f64),
    /// Top-1 in per cent, likewise.
    pub top1: (f64, f64),
}

/// `curve` joins the costs and accuracies that one network has at several budgets.
pub fn accuracy(points: &[Point], curve: &[(f64, f64)]) -> Result<Chart> {
    let ends =
        |of: fn(&Point) -> (f64, f64)| points.iter().map(of).flat_map(|(mean, sd)| [mean - sd, mean + sd]);
    let gmacs = range(ends(|point| point.gmacs).chain(curve.iter().map(|at| at.0)));
    let top1 = range(ends(|point| point.top1).chain(curve.iter().map(|at| at.1)));
    let x = Axis::linear("mean multiply-accumulates an image, 10⁹", gmacs);
    let y = Axis::linear("top-1, %", top1);
    Frame::new("Accuracy against cost", (360.0, 260.0), 220.0, x, y).draw(|plane, margin| {
        plane.draw(&PathElement::new(curve.to_vec(), GREY.stroke_width(4)))?;
        for &at in curve {
            plane.draw(&mark(at, 0, 5.0, GREY))?;
        }
        let mut entries = Vec::new();
        for (i, point) in points.iter().enumerate() {
            let colour = CATEGORIES[i % CATEGORIES.len()];
            let (x, dx) = point.gmacs;
            let (y, dy) = point.top1;
            if dx + dy > 0.0 {
                plane.draw(&PathElement::new([(x - dx, y), (x + dx, y)], colour.stroke_width(2)))?;
                plane.draw(&PathElement::new([(x, y - dy), (x, y + dy)], colour.stroke_width(2)))?;
            }
            plane.draw(&mark((x, y), i, 8.0, colour))?;
            entries.push((i, colour, point.name.clone()));
        }
        legend(margin, &entries)
    })
}

/// From the least to the greatest of `values`, with room around them.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    let room = (0.08 * (high - low)).max(0.002 * high.abs());
    (low - room, high + room)
}
