//! The charts of an analysis: the confusion matrix, and the paper's Figures 6, 7 and 9 to 12.

use super::measures::Consistency;
use super::similarity::{BINS, Correlation};
use crate::plot::{
    Axis, CATEGORIES, Chart, Frame, GREY, cell, centred, cividis, colour_bar, legend, letters, mark, pixels,
};
use codinet_trainer::metrics::classes::Shares;
use codinet_trainer::metrics::routing::Histogram;
use codinet_trainer::sys::error::Result;
use plotters::element::DashedPathElement;
use plotters::prelude::{BLACK, Color, PathElement, RGBColor, Text, WHITE};

const BLUE: RGBColor = CATEGORIES[0];
const RED: RGBColor = CATEGORIES[6];
const PALE: RGBColor = RGBColor(0xe4, 0xe4, 0xe4);
/// A plane's side, in points, that fits a column.
const SIDE: f64 = 360.0;
/// Letters of a class's name next to a chart.
const NAME_LETTERS: usize = 20;
/// The height of a plane of bars.
const BARS: f64 = 220.0;
/// The most paths in the chart of frequent ones.
const FREQUENT: usize = 24;

/// How many images take each path, the most frequent first; both axes are logarithmic where there are many paths.
pub fn frequencies(paths: &Histogram) -> Result<Chart> {
    let counts: Vec<u64> = paths.by_frequency().iter().map(|(_, count)| *count).collect();
    let label = "path, the most frequent first";
    let range = (0.5, counts.len() as f64 + 0.5);
    let x = match counts.len() {
        few @ 1..=20 => Axis::named(label, range, (1..=few).map(|i| (i as f64, i.to_string())).collect()),
        21..=40 => Axis::linear(label, range),
        _ => Axis::log(label, range),
    };
    let lowest = 0.8;
    let highest = (counts[0] as f64 * 1.2).max(2.0);
    let y = Axis::log("images", (lowest, highest));
    let title = format!("{} distinct paths of {} images", counts.len(), paths.images());
    Frame::new(title, (SIDE, BARS), 0.0, x, y).draw(|plane, _| {
        counts.iter().zip(1..).try_for_each(|(&count, path)| {
            let path = f64::from(path);
            plane.draw(&cell((path - 0.45, lowest), (path + 0.45, count as f64), BLUE))
        })
    })
}

/// The most frequent paths, a row each; a filled cell is a block that runs.
pub fn frequent(paths: &Histogram, blocks: &[String]) -> Result<Chart> {
    let sorted = paths.by_frequency();
    let rows = sorted.len().min(FREQUENT);
    let names = (0..rows).map(|row| (-(row as f64), (row + 1).to_string())).collect();
    let title = match sorted.len() {
        all if all == rows => "Paths, by frequency".to_owned(),
        _ => format!("The {rows} most frequent paths"),
    };
    let size = (width(blocks), (rows as f64 * 15.0).max(60.0));
    let y = Axis::named("path, by frequency", (0.5 - rows as f64, 0.5), names);
    Frame::new(title, size, 110.0, block_axis(blocks), y).draw(|plane, margin| {
        for (row, (path, count)) in sorted.iter().take(rows).enumerate() {
            let y = -(row as f64);
            for (k, &ran) in path.iter().enumerate() {
                let x = k as f64;
                let colour = if ran == 1 { BLUE } else { PALE };
                plane.draw(&cell((x - 0.45, y - 0.4), (x + 0.45, y + 0.4), colour))?;
            }
            let share = 100.0 * *count as f64 / paths.images() as f64;
            let ran: u8 = path.iter().sum();
            let (_, height) = plane.map_coordinate(&(0.0, y));
            let text = format!("{share:.1} %, {ran} run");
            margin.draw(&Text::new(text, (pixels(6.0), height), letters(10.5, BLACK)))?;
        }
        Ok(())
    })
}

/// How often each block runs: a row a class, the last one for all images.
pub fn rates(by_class: &[Vec<f64>], all: &[f64], classes: &[String], blocks: &[String]) -> Result<Chart> {
    // More than a hundred rows cannot be distinguished.
    let step = by_class.len().div_ceil(100);
    let mut rows: Vec<(&str, &[f64])> =
        classes.iter().map(String::as_str).zip(by_class.iter().map(Vec::as_slice)).step_by(step).collect();
    rows.push(("all", all));
    let last = rows.len() - 1;
    let tall = rows.len() <= 30;
    let named = rows.iter().enumerate().filter(|(row, _)| tall || row % 10 == 0 || *row == last);
    let names = named.map(|(row, (name, _))| (-(row as f64), (*name).to_owned())).collect();
    let size = (width(blocks), rows.len() as f64 * if tall { 18.0 } else { 8.0 });
    let y = Axis::named("class", (-0.5 - last as f64, 0.5), names);
    let title = "Share of images that run each block";
    Frame::new(title, size, 80.0, block_axis(blocks), y).draw(|plane, margin| {
        for (row, (_, rates)) in rows.iter().enumerate() {
            let y = -(row as f64);
            for (k, &rate) in rates.iter().enumerate().filter(|(_, rate)| rate.is_finite()) {
                let x = k as f64;
                plane.draw(&cell((x - 0.5, y - 0.5), (x + 0.5, y + 0.5), cividis(rate)))?;
                if blocks.len() <= 18 && tall {
                    let ink = if rate > 0.55 { BLACK } else { WHITE };
                    plane.draw(&Text::new(format!("{:.0}", 100.0 * rate), (x, y), centred(10.5, ink)))?;
                }
            }
        }
        colour_bar(margin, "share of images, %", "0", "100")
    })
}

/// The confusion matrix: a row a class, a column a predicted class; with many classes, a group of neighbouring ones. Colours are
/// square roots of shares, so that rare mistakes show.
pub fn confusion(shares: &Shares, classes: &[String]) -> Result<Chart> {
    let count = classes.len();
    let few = count <= 20;
    let side = shares.group as f64;
    let end = count as f64 - 0.5;
    // Beyond, names and numbers have no room.
    let row = |(class, name): (usize, &String)| {
        let name = shorten(name, NAME_LETTERS);
        let name = if name == class.to_string() { name } else { format!("{class} {name}") };
        (-(class as f64), name)
    };
    let rows = classes.iter().enumerate().step_by(count.div_ceil(30)).map(row).collect();
    let digits = end.log10() as usize + 1;
    let numbers = (0..count).step_by(count.div_ceil(60 / (digits + 1)));
    let columns = numbers.map(|class| (class as f64, class.to_string())).collect();
    let x = Axis::named("predicted class", (-0.5, end), columns);
    let y = Axis::named("class", (-end, 0.5), rows);
    Frame::new("Classes and predicted classes", (SIDE, SIDE), 80.0, x, y).draw(|plane, margin| {
        plane.draw(&cell((-0.5, 0.5), (end, -end), cividis(0.0)))?;
        for &(row, column, share) in &shares.cells {
            let x = column as f64 * side;
            let y = -(row as f64 * side);
            let right = (x + side - 0.5).min(end);
            let bottom = (y - side + 0.5).max(-end);
            plane.draw(&cell((x - 0.5, bottom), (right, y + 0.5), cividis(share.sqrt())))?;
            if few && share >= 0.005 {
                let ink = if share.sqrt() > 0.55 { BLACK } else { WHITE };
                plane.draw(&Text::new(format!("{:.0}", 100.0 * share), (x, y), centred(10.5, ink)))?;
            }
        }
        colour_bar(margin, "share of the row's images, % (root)", "0", "100")
    })
}

/// `name`, or its beginning if it has more letters.
fn shorten(name: &str, letters: usize) -> String {
    match name.char_indices().nth(letters) {
        None => name.to_owned(),
        Some((end, _)) => format!("{}…", &name[..end]),
    }
}

fn width(blocks: &[String]) -> f64 {
    (blocks.len() as f64 * 26.0).clamp(160.0, 520.0)
}

/// Gated blocks by their names, as many as have room.
fn block_axis(blocks: &[String]) -> Axis {
    let every = blocks.len().div_ceil(12);
    let short = |name: &String| name.trim_start_matches("layer").to_owned();
    let names = blocks.iter().enumerate().step_by(every).map(|(k, name)| (k as f64, short(name))).collect();
    Axis::named("gated block (stage.index)", (-0.5, blocks.len() as f64 - 0.5), names)
}

/// Both divergences between an image and each augmentation: Figure 9.
pub fn divergences(parts: &[Consistency]) -> Result<Chart> {
    let most = parts.iter().map(|part| part.path_kl.max(part.prediction_kl)).fold(0.0, f64::max);
    let pairs = |part: &Consistency| (part.path_kl, part.prediction_kl);
    let y = Axis::linear("mean KL divergence, nats", (0.0, (most * 1.1).max(1e-6)));
    bars("Divergence under augmentation", parts, pairs, y, ["of paths", "of predictions"])
}

/// The shares of images that keep their path, or their predicted class.
pub fn unchanged(parts: &[Consistency]) -> Result<Chart> {
    let pairs = |part: &Consistency| (100.0 * part.same_path, 100.0 * part.same_prediction);
    let y = Axis::linear("images that keep it, %", (0.0, 100.0));
    bars("Unchanged under augmentation", parts, pairs, y, ["path", "predicted class"])
}

/// Two bars for each augmentation.
fn bars(
    title: &str,
    parts: &[Consistency],
    pairs: impl Fn(&Consistency) -> (f64, f64),
    y: Axis,
    names: [&str; 2],
) -> Result<Chart> {
    let kinds = parts.iter().enumerate().map(|(i, part)| (i as f64, part.augmentation.to_owned())).collect();
    let x = Axis::named("augmentation", (-0.6, parts.len() as f64 - 0.4), kinds);
    Frame::new(title, (SIDE, BARS), 120.0, x, y).draw(|plane, margin| {
        for (i, part) in parts.iter().enumerate() {
            let x = i as f64;
            let (left, right) = pairs(part);
            plane.draw(&cell((x - 0.35, 0.0), (x, left), BLUE))?;
            plane.draw(&cell((x, 0.0), (x + 0.35, right), RED))?;
        }
        legend(margin, &[(1, BLUE, names[0].into()), (1, RED, names[1].into())])
    })
}

/// Pairs of images by the similarity of their features and of their paths: Figure 12.
pub fn correlation(correlation: &Correlation) -> Result<Chart> {
    let edge = |bin: i64| bin as f64 / (BINS as f64 / 2.0) - 1.0;
    let bins: Vec<(i64, i64, f64)> = (0..BINS * BINS)
        .map(|i| (i % BINS, i / BINS, correlation.bins[i as usize]))
        .filter(|(_, _, pairs)| *pairs > 0.0)
        .collect();
    let least = |bin: Option<i64>| if bin.is_some_and(|bin| bin >= BINS / 2) { 0.0 } else { -1.0 };
    let left = least(bins.iter().map(|(x, _, _)| *x).min());
    let bottom = least(bins.iter().map(|(_, y, _)| *y).min());
    let most = bins.iter().map(|(_, _, pairs)| *pairs).fold(1.0, f64::max);
    let pcc = correlation.pcc.map_or("undefined".into(), |pcc| format!("{pcc:.3}"));
    let x = Axis::linear("cosine similarity of features", (left, 1.0));
    let y = Axis::linear("cosine similarity of paths", (bottom, 1.0));
    let title = format!("{} pairs, PCC {pcc}", correlation.pairs);
    Frame::new(title, (SIDE * 0.85, SIDE * 0.85), 80.0, x, y).draw(|plane, margin| {
        for (x, y, pairs) in bins {
            let share = if most > 1.0 { pairs.ln() / most.ln() } else { 1.0 };
            plane.draw(&cell((edge(x), edge(y)), (edge(x + 1), edge(y + 1)), cividis(share)))?;
        }
        let start = left.max(bottom);
        let equal = [(start, start), (1.0, 1.0)];
        plane.draw(&DashedPathElement::new(equal, pixels(3.0), pixels(3.0), BLACK.stroke_width(2)))?;
        colour_bar(margin, "pairs (log)", "1", &format!("{most:.0}"))
    })
}

/// Paths in t-SNE's plane, each with its category; those of none are grey and lie below.
pub fn by_category(
    title: &str,
    places: &[[f64; 2]],
    categories: &[Option<usize>],
    names: &[String],
) -> Result<Chart> {
    let size = mark_size(places);
    let colour = |category: usize| CATEGORIES[category % CATEGORIES.len()];
    tsne_frame(title, places, if names.is_empty() { 0.0 } else { 150.0 }).draw(|plane, margin| {
        let marks = || places.iter().map(|&[x, y]| (x, y)).zip(categories);
        for (place, _) in marks().filter(|(_, category)| category.is_none()) {
            plane.draw(&mark(place, 0, size, GREY))?;
        }
        for (place, category) in marks().filter_map(|(place, category)| Some((place, (*category)?))) {
            plane.draw(&mark(place, category, size, colour(category)))?;
        }
        let mut entries: Vec<_> =
            names.iter().enumerate().map(|(i, name)| (i, colour(i), name.clone())).collect();
        if categories.iter().any(Option::is_none) && !names.is_empty() {
            entries.push((0, GREY, "other classes".into()));
        }
        legend(margin, &entries)
    })
}

/// Paths in t-SNE's plane, each with a number.
pub fn by_value(title: &str, places: &[[f64; 2]], values: &[f64], label: &str) -> Result<Chart> {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let share = |value: f64| if high > low { (value - low) / (high - low) } else { 0.5 };
    tsne_frame(title, places, 80.0).draw(|plane, margin| {
        for (&[x, y], &value) in places.iter().zip(values) {
            plane.draw(&mark((x, y), 0, mark_size(places), cividis(share(value))))?;
        }
        colour_bar(margin, label, &format!("{low:.2}"), &format!("{high:.2}"))
    })
}

/// Paths in t-SNE's plane. The last ones are groups of `views`, each joined to its group's centre by a line.
pub fn by_group(title: &str, places: &[[f64; 2]], groups: usize, views: usize) -> Result<Chart> {
    let (images, grouped) = places.split_at(places.len() - groups * views);
    tsne_frame(title, places, 0.0).draw(|plane, _| {
        for &[x, y] in images {
            plane.draw(&mark((x, y), 0, mark_size(places), PALE))?;
        }
        for (group, points) in grouped.chunks(views).enumerate() {
            let mean = |axis: usize| points.iter().map(|point| point[axis]).sum::<f64>() / views as f64;
            let centre = (mean(0), mean(1));
            // Shapes change with each round of colours.
            let colour = CATEGORIES[group % CATEGORIES.len()];
            let shape = group / CATEGORIES.len();
            for &[x, y] in points {
                plane.draw(&PathElement::new([centre, (x, y)], colour))?;
                plane.draw(&mark((x, y), shape, 4.5, colour))?;
            }
        }
        Ok(())
    })
}

fn tsne_frame(title: &str, places: &[[f64; 2]], margin: f64) -> Frame {
    let axis = |i: usize, label: &str| {
        let low = places.iter().map(|place| place[i]).fold(f64::INFINITY, f64::min);
        let high = places.iter().map(|place| place[i]).fold(f64::NEG_INFINITY, f64::max);
        let room = 0.03 * (high - low);
        Axis::linear(label, (low - room, high + room))
    };
    Frame::new(title, (SIDE, SIDE), margin, axis(0, "t-SNE 1 (no unit)"), axis(1, "t-SNE 2 (no unit)"))
}

/// Marks are smaller the more of them there are.
fn mark_size(places: &[[f64; 2]]) -> f64 {
    if places.len() > 4000 { 2.4 } else { 3.6 }
}
