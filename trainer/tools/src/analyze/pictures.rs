//! The pictures of an analysis, each as an SVG file: see the paper's Figures 6 to 12.

use super::measures::Consistency;
use super::similarity::{CELLS, Correlation};
use super::svg::{Axis, Plot, Rgb};
use codinet_trainer::metrics::routing::Histogram;
use codinet_trainer::run::colour::{CATEGORIES, scale};

const GREY: Rgb = [0xbb, 0xbb, 0xbb];
const BLACK: Rgb = [0, 0, 0];
const WHITE: Rgb = [255, 255, 255];
const BLUE: Rgb = CATEGORIES[0];
const RED: Rgb = CATEGORIES[6];
/// A plane's side, in points, that fits a column.
const SIDE: f64 = 360.0;
/// Paths in the picture of the most frequent ones.
const FREQUENT: usize = 24;

/// How many images take each path, the most frequent first; both axes logarithmic.
pub fn frequencies(paths: &Histogram) -> String {
    let counts: Vec<u64> = paths.by_frequency().iter().map(|(_, count)| *count).collect();
    let title = format!("{} distinct paths of {} images", counts.len(), paths.images());
    let end = counts.len() as f64 + 0.5;
    let x = Axis { log: counts.len() > 40, ..Axis::linear("path, the most frequent first", (0.5, end)) };
    let x = match counts.len() {
        1..=20 => Axis { names: Some((1..=counts.len()).map(|i| (i as f64, i.to_string())).collect()), ..x },
        _ => x,
    };
    let most = counts[0] as f64 * 1.2;
    let y = Axis { log: true, ..Axis::linear("images", (0.8, most.max(2.0))) };
    let mut plot = Plot::new(&title, (SIDE, 220.0), 0.0, x, y);
    for (i, &count) in counts.iter().enumerate() {
        let at = i as f64 + 1.0;
        plot.cell((at - 0.45, 0.8), (at + 0.45, count as f64), BLUE);
    }
    plot.finish()
}

/// The most frequent paths, a row each: a filled cell is a block that runs.
pub fn frequent(paths: &Histogram, blocks: &[String]) -> String {
    let sorted = paths.by_frequency();
    let rows = sorted.len().min(FREQUENT);
    let x = block_axis(blocks);
    let names = (0..rows).map(|row| (-(row as f64), (row + 1).to_string())).collect();
    let y = Axis { names: Some(names), ..Axis::linear("path, by frequency", (0.5 - rows as f64, 0.5)) };
    let size = (wide(blocks.len()), (rows as f64 * 15.0).max(60.0));
    let title = match sorted.len() {
        all if all == rows => "Paths, by frequency".to_owned(),
        _ => format!("The {rows} most frequent paths"),
    };
    let mut plot = Plot::new(&title, size, 130.0, x, y);
    for (row, (path, count)) in sorted.iter().take(rows).enumerate() {
        let top = -(row as f64);
        for (k, &ran) in path.iter().enumerate() {
            let colour = if ran == 1 { BLUE } else { [0xe8, 0xe8, 0xe8] };
            plot.cell((k as f64 - 0.45, top - 0.4), (k as f64 + 0.45, top + 0.4), colour);
        }
        let share = 100.0 * *count as f64 / paths.images() as f64;
        let ran: u8 = path.iter().sum();
        plot.write_beside(top, &format!("{share:.1} %, {ran} run"));
    }
    plot.finish()
}

/// How often each block runs: a row a class, the last one for all images.
pub fn rates(by_class: &[Vec<f64>], all: &[f64], classes: &[String], blocks: &[String]) -> String {
    // Of a thousand classes, as many as can be told apart.
    let step = by_class.len().div_ceil(100);
    let shown: Vec<usize> = (0..by_class.len()).step_by(step).collect();
    let mut rows: Vec<(String, &[f64])> =
        shown.iter().map(|&class| (classes[class].clone(), &by_class[class][..])).collect();
    rows.push(("all".into(), all));
    let high = if rows.len() > 30 { 8.0 } else { 18.0 };
    let last = rows.len() as f64;
    let names = rows.iter().enumerate().filter(|(i, _)| high > 10.0 || i % 10 == 0 || *i + 1 == rows.len());
    let names = names.map(|(i, (name, _))| (-(i as f64), name.clone())).collect();
    let y = Axis { names: Some(names), ..Axis::linear("class", (0.5 - last, 0.5)) };
    let size = (wide(blocks.len()), last * high);
    let mut plot = Plot::new("Share of images that run each block", size, 80.0, block_axis(blocks), y);
    for (row, (_, rates)) in rows.iter().enumerate() {
        let top = -(row as f64);
        for (k, &rate) in rates.iter().enumerate().filter(|(_, rate)| rate.is_finite()) {
            plot.cell((k as f64 - 0.5, top - 0.5), (k as f64 + 0.5, top + 0.5), scale(rate));
            if blocks.len() <= 18 && high > 10.0 {
                let ink = if rate > 0.55 { BLACK } else { WHITE };
                plot.write(k as f64, top, &format!("{:.0}", 100.0 * rate), ink);
            }
        }
    }
    plot.scale("share of images, %", ("0".into(), "100".into()), scale);
    plot.finish()
}

fn wide(blocks: usize) -> f64 {
    (blocks as f64 * 26.0).clamp(160.0, 520.0)
}

/// Gated blocks by their names, as many as have room.
fn block_axis(blocks: &[String]) -> Axis {
    let every = blocks.len().div_ceil(12);
    let short = |name: &String| name.trim_start_matches("layer").to_owned();
    let names = blocks.iter().enumerate().step_by(every).map(|(k, name)| (k as f64, short(name))).collect();
    let label = "gated block (stage.index)";
    Axis { names: Some(names), ..Axis::linear(label, (-0.5, blocks.len() as f64 - 0.5)) }
}

/// What each augmentation changes: both divergences, as in Figure 9.
pub fn divergences(parts: &[Consistency]) -> String {
    let most = parts.iter().map(|part| part.path_kl.max(part.prediction_kl)).fold(0.0, f64::max);
    let y = Axis::linear("mean KL divergence, nats", (0.0, (most * 1.1).max(1e-6)));
    let mut plot =
        Plot::new("Divergence under augmentation", (SIDE, 220.0), 120.0, augmentation_axis(parts), y);
    for (i, part) in parts.iter().enumerate() {
        let at = i as f64;
        plot.cell((at - 0.35, 0.0), (at, part.path_kl), BLUE);
        plot.cell((at, 0.0), (at + 0.35, part.prediction_kl), RED);
    }
    plot.legend(&[(1, BLUE, "of paths".into()), (1, RED, "of predictions".into())]);
    plot.finish()
}

/// The shares of images that keep their path, or their predicted class.
pub fn unchanged(parts: &[Consistency]) -> String {
    let y = Axis::linear("images that keep it, %", (0.0, 100.0));
    let mut plot =
        Plot::new("Unchanged under augmentation", (SIDE, 220.0), 120.0, augmentation_axis(parts), y);
    for (i, part) in parts.iter().enumerate() {
        let at = i as f64;
        plot.cell((at - 0.35, 0.0), (at, 100.0 * part.same_path), BLUE);
        plot.cell((at, 0.0), (at + 0.35, 100.0 * part.same_prediction), RED);
    }
    plot.legend(&[(1, BLUE, "path".into()), (1, RED, "predicted class".into())]);
    plot.finish()
}

fn augmentation_axis(parts: &[Consistency]) -> Axis {
    let names = parts.iter().enumerate().map(|(i, part)| (i as f64, part.augmentation.to_owned())).collect();
    Axis { names: Some(names), ..Axis::linear("augmentation", (-0.6, parts.len() as f64 - 0.4)) }
}

/// Pairs of images by the similarity of their features and of their paths: Figure 12.
pub fn correlation(found: &Correlation) -> String {
    let at = |cell: i64| cell as f64 / (CELLS as f64 / 2.0) - 1.0;
    let taken: Vec<(i64, i64, f64)> = (0..CELLS * CELLS)
        .map(|i| (i % CELLS, i / CELLS, found.cells[i as usize]))
        .filter(|(_, _, pairs)| *pairs > 0.0)
        .collect();
    let lowest = |low: i64| if low >= CELLS / 2 { 0.0 } else { -1.0 };
    let left = lowest(taken.iter().map(|(x, _, _)| *x).min().unwrap_or(0));
    let bottom = lowest(taken.iter().map(|(_, y, _)| *y).min().unwrap_or(0));
    let x = Axis::linear("cosine similarity of features", (left, 1.0));
    let y = Axis::linear("cosine similarity of paths", (bottom, 1.0));
    let pcc = found.pcc.map_or("undefined".into(), |pcc| format!("{pcc:.3}"));
    let title = format!("{} pairs, PCC {pcc}", found.pairs);
    let mut plot = Plot::new(&title, (SIDE * 0.85, SIDE * 0.85), 80.0, x, y);
    let most = taken.iter().map(|(_, _, pairs)| *pairs).fold(1.0, f64::max);
    for (x, y, pairs) in taken {
        let share = if most > 1.0 { pairs.ln() / most.ln() } else { 1.0 };
        plot.cell((at(x), at(y)), (at(x + 1), at(y + 1)), scale(share));
    }
    let start = left.max(bottom);
    plot.line((start, start), (1.0, 1.0), BLACK, 1.0, true);
    plot.scale("pairs (log)", ("1".into(), format!("{most:.0}")), scale);
    plot.finish()
}

/// Points in a plane that has no units, each with its category; those of none are grey and lie below.
pub fn by_category(title: &str, places: &[[f64; 2]], of: &[Option<usize>], names: &[String]) -> String {
    let mut plot = plane(title, places, if names.is_empty() { 0.0 } else { 150.0 });
    let size = dot(places.len());
    for (at, _) in places.iter().zip(of).filter(|(_, of)| of.is_none()) {
        plot.mark((at[0], at[1]), 0, size, GREY);
    }
    for (at, category) in places.iter().zip(of).filter_map(|(at, of)| Some((at, (*of)?))) {
        plot.mark((at[0], at[1]), category, size, CATEGORIES[category % CATEGORIES.len()]);
    }
    let entry = |(i, name): (usize, &String)| (i, CATEGORIES[i % CATEGORIES.len()], name.clone());
    let mut entries: Vec<(usize, Rgb, String)> = names.iter().enumerate().map(entry).collect();
    if of.iter().any(Option::is_none) && !names.is_empty() {
        entries.push((0, GREY, "other classes".into()));
    }
    plot.legend(&entries);
    plot.finish()
}

/// Points in such a plane, each with a number.
pub fn by_value(title: &str, places: &[[f64; 2]], values: &[f64], label: &str) -> String {
    let mut plot = plane(title, places, 80.0);
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let share = |value: f64| if high > low { (value - low) / (high - low) } else { 0.5 };
    for (at, &value) in places.iter().zip(values) {
        plot.mark((at[0], at[1]), 0, dot(places.len()), scale(share(value)));
    }
    plot.scale(label, (format!("{low:.2}"), format!("{high:.2}")), scale);
    plot.finish()
}

/// Points in such a plane, the last of which are groups of `views`; lines lead from each of these to its group's centre.
pub fn by_group(title: &str, places: &[[f64; 2]], groups: usize, views: usize) -> String {
    let mut plot = plane(title, places, 0.0);
    let (alone, grouped) = places.split_at(places.len() - groups * views);
    for at in alone {
        plot.mark((at[0], at[1]), 0, dot(places.len()), [0xdd, 0xdd, 0xdd]);
    }
    for (group, points) in grouped.chunks(views).enumerate() {
        let centre = [0, 1].map(|axis| points.iter().map(|at| at[axis]).sum::<f64>() / views as f64);
        // Shapes change with each round of colours.
        let (colour, shape) = (CATEGORIES[group % CATEGORIES.len()], group / CATEGORIES.len());
        for at in points {
            plot.line((centre[0], centre[1]), (at[0], at[1]), colour, 0.4, false);
            plot.mark((at[0], at[1]), shape, 4.5, colour);
        }
    }
    plot.finish()
}

fn plane(title: &str, places: &[[f64; 2]], margin: f64) -> Plot {
    let range = |axis: usize| {
        let low = places.iter().map(|at| at[axis]).fold(f64::INFINITY, f64::min);
        let high = places.iter().map(|at| at[axis]).fold(f64::NEG_INFINITY, f64::max);
        let room = 0.03 * (high - low);
        (low - room, high + room)
    };
    let axis = |i: usize, label: &str| Axis::linear(label, range(i));
    Plot::new(title, (SIDE, SIDE), margin, axis(0, "t-SNE 1 (no unit)"), axis(1, "t-SNE 2 (no unit)"))
}

/// Marks are smaller the more of them there are.
fn dot(points: usize) -> f64 {
    if points > 4000 { 2.4 } else { 3.6 }
}

/// One run in a comparison.
pub struct Point {
    /// What it is called.
    pub name: String,
    /// Mean MACs per image, in billions, and their standard deviation over seeds.
    pub gmacs: (f64, f64),
    /// Top-1 in per cent, likewise.
    pub top1: (f64, f64),
}

/// Accuracy against cost: Figures 8, 13 and 14. `of_one` are what one network becomes at other costs, and joined.
pub fn accuracy(points: &[Point], of_one: &[(f64, f64)]) -> String {
    let range = |of: fn(&Point) -> (f64, f64), joined: fn(&(f64, f64)) -> f64| {
        let ends = points.iter().flat_map(|p| [of(p).0 - of(p).1, of(p).0 + of(p).1]);
        let all = ends.chain(of_one.iter().map(joined));
        let (low, high) =
            all.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
        let room = (0.08 * (high - low)).max(0.002 * high.abs());
        (low - room, high + room)
    };
    let x = Axis::linear("mean multiply-accumulates an image, 10⁹", range(|p| p.gmacs, |p| p.0));
    let y = Axis::linear("top-1, %", range(|p| p.top1, |p| p.1));
    let mut plot = Plot::new("Accuracy against cost", (SIDE, 260.0), 220.0, x, y);
    let mut entries = Vec::new();
    for ends in of_one.windows(2) {
        plot.line(ends[0], ends[1], GREY, 1.5, false);
    }
    for &at in of_one {
        plot.mark(at, 0, 5.0, GREY);
    }
    for (i, point) in points.iter().enumerate() {
        let (colour, (x, dx), (y, dy)) = (CATEGORIES[i % CATEGORIES.len()], point.gmacs, point.top1);
        if dx + dy > 0.0 {
            plot.line((x - dx, y), (x + dx, y), colour, 1.0, false);
            plot.line((x, y - dy), (x, y + dy), colour, 1.0, false);
        }
        plot.mark((x, y), i, 8.0, colour);
        entries.push((i, colour, point.name.clone()));
    }
    plot.legend(&entries);
    plot.finish()
}
