//! Pictures as SVG: a plane with axes to draw on, and the PNG of it.

use codinet_trainer::sys::error::{Error, Exit, Result};
use resvg::{tiny_skia, usvg};
use std::fmt::Write;
use std::sync::{Arc, LazyLock};

/// Pixels of the PNG for each unit of the SVG, which is a point: a column's width is 300 dots an inch and more.
const SCALE: f32 = 2.5;
const FONT: &str = "DejaVu Sans";
/// Letters of this many points.
const SIZE: f64 = 11.0;

/// A colour.
pub type Rgb = [u8; 3];

/// `#rrggbb`.
pub fn hex([r, g, b]: Rgb) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// Where numbers lie along a side.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What they are, with their unit.
    pub label: String,
    /// From where to where.
    pub range: (f64, f64),
    /// Whether equal steps are equal ratios.
    pub log: bool,
    /// Places that have a name; otherwise round numbers have.
    pub names: Option<Vec<(f64, String)>>,
}

impl Axis {
    /// Even steps of numbers.
    pub fn linear(label: &str, range: (f64, f64)) -> Self {
        let range = if range.0 < range.1 { range } else { (range.0 - 0.5, range.0 + 0.5) };
        Self { label: label.into(), range, log: false, names: None }
    }

    /// Round numbers, or names, and where they lie.
    fn ticks(&self) -> Vec<(f64, String)> {
        if let Some(names) = &self.names {
            return names.clone();
        }
        let (low, high) = self.range;
        if self.log {
            let powers = (low.log10().ceil() as i32)..=(high.log10().floor() as i32);
            return powers.map(|power| (10f64.powi(power), number(10f64.powi(power), 0))).collect();
        }
        let rough = (high - low) / 6.0;
        let power = 10f64.powf(rough.log10().floor());
        let step =
            power * [1.0, 2.0, 5.0, 10.0].into_iter().find(|m| m * power >= rough * 0.999).unwrap_or(10.0);
        let digits = (-step.log10().floor()).max(0.0) as usize;
        let first = (low / step - 1e-9).ceil() as i64;
        let last = (high / step + 1e-9).floor() as i64;
        (first..=last).map(|i| (i as f64 * step, number(i as f64 * step, digits))).collect()
    }

    /// 0 at the start, 1 at the end.
    fn place(&self, value: f64) -> f64 {
        let of = |value: f64| if self.log { value.max(1e-300).log10() } else { value };
        (of(value) - of(self.range.0)) / (of(self.range.1) - of(self.range.0))
    }
}

fn number(value: f64, digits: usize) -> String {
    let text = format!("{:.digits$}", value + 0.0);
    text.replace('-', "−")
}

/// A picture in the making.
pub struct Plot {
    width: f64,
    height: f64,
    /// Left, top, right and bottom of the plane.
    plane: [f64; 4],
    x: Axis,
    y: Axis,
    body: String,
}

impl Plot {
    /// A plane of `width` × `height` points with axes and a title; `margin` is room on the right, for what explains it.
    pub fn new(title: &str, (width, height): (f64, f64), margin: f64, x: Axis, y: Axis) -> Self {
        let widest = y.ticks().iter().map(|(_, name)| name.chars().count()).max().unwrap_or(0) as f64;
        let left = 34.0 + widest * SIZE * 0.62;
        let (right, bottom) = (left + width, 30.0 + height);
        let mut plot = Self {
            width: right + margin.max(16.0),
            height: bottom + 46.0,
            plane: [left, 30.0, right, bottom],
            x,
            y,
            body: String::new(),
        };
        plot.text((left + right) / 2.0, 18.0, title, "middle", "font-weight=\"bold\"");
        plot
    }

    /// Where the plane's numbers are in the picture.
    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let [left, top, right, bottom] = self.plane;
        (left + self.x.place(x) * (right - left), bottom - self.y.place(y) * (bottom - top))
    }

    fn text(&mut self, x: f64, y: f64, text: &str, anchor: &str, more: &str) {
        let text = escaped(text);
        let _ = writeln!(
            self.body,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {more}>{text}</text>"
        );
    }

    /// Text at a place of the plane, centred there.
    pub fn write(&mut self, x: f64, y: f64, text: &str, colour: Rgb) {
        let (x, y) = self.at(x, y);
        self.text(x, y + SIZE * 0.35, text, "middle", &format!("fill=\"{}\" font-size=\"9\"", hex(colour)));
    }

    /// Text right of the plane, at a height of it.
    pub fn write_beside(&mut self, y: f64, text: &str) {
        let (_, y) = self.at(self.x.range.0, y);
        self.text(self.plane[2] + 6.0, y + SIZE * 0.35, text, "start", "font-size=\"9\"");
    }

    /// A filled rectangle between two places.
    pub fn cell(&mut self, (x0, y0): (f64, f64), (x1, y1): (f64, f64), colour: Rgb) {
        let ((a, b), (c, d)) = (self.at(x0, y0), self.at(x1, y1));
        let (x, y, w, h) = (a.min(c), b.min(d), (a - c).abs(), (b - d).abs());
        let _ = writeln!(
            self.body,
            "<rect x=\"{x:.2}\" y=\"{y:.2}\" width=\"{w:.2}\" height=\"{h:.2}\" fill=\"{}\" shape-rendering=\"crispEdges\"/>",
            hex(colour)
        );
    }

    /// A line between two places, dotted if asked.
    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: Rgb, width: f64, dotted: bool) {
        let ((x1, y1), (x2, y2)) = (self.at(from.0, from.1), self.at(to.0, to.1));
        let dots = if dotted { " stroke-dasharray=\"2 3\"" } else { "" };
        let _ = writeln!(
            self.body,
            "<line x1=\"{x1:.2}\" y1=\"{y1:.2}\" x2=\"{x2:.2}\" y2=\"{y2:.2}\" stroke=\"{}\" stroke-width=\"{width}\"{dots}/>",
            hex(colour)
        );
    }

    /// A mark of `size` points at a place; `shape` tells categories apart where colours do not.
    pub fn mark(&mut self, (x, y): (f64, f64), shape: usize, size: f64, colour: Rgb) {
        let place = self.at(x, y);
        self.body += &mark(place, shape, size, colour);
    }

    /// A legend right of the plane: a mark and a name each.
    pub fn legend(&mut self, entries: &[(usize, Rgb, String)]) {
        let [_, top, right, _] = self.plane;
        for (row, (shape, colour, name)) in entries.iter().enumerate() {
            let y = top + 8.0 + row as f64 * 16.0;
            self.body += &mark((right + 14.0, y), *shape, 7.0, *colour);
            self.text(right + 24.0, y + SIZE * 0.35, name, "start", "");
        }
        self.height = self.height.max(top + 24.0 + entries.len() as f64 * 16.0);
    }

    /// A bar of colours right of the plane, with its ends' numbers.
    pub fn scale(&mut self, label: &str, (low, high): (String, String), colour: impl Fn(f64) -> Rgb) {
        let [_, top, right, bottom] = self.plane;
        let (x, steps) = (right + 14.0, 64);
        let step = (bottom - top) / f64::from(steps);
        for i in 0..steps {
            let _ = writeln!(
                self.body,
                "<rect x=\"{x:.1}\" y=\"{:.2}\" width=\"12\" height=\"{:.2}\" fill=\"{}\"/>",
                bottom - f64::from(i + 1) * step,
                step + 0.3,
                hex(colour(f64::from(i) / f64::from(steps - 1)))
            );
        }
        self.text(x + 16.0, bottom, &low, "start", "");
        self.text(x + 16.0, top + SIZE * 0.8, &high, "start", "");
        let (x, y) = (x + 24.0, (top + bottom) / 2.0);
        self.text(x, y, label, "middle", &format!("transform=\"rotate(-90 {x:.1} {y:.1})\""));
    }

    /// The whole SVG file.
    pub fn finish(mut self) -> String {
        let [left, top, right, bottom] = self.plane;
        let (x, y) = (self.x.clone(), self.y.clone());
        let body = std::mem::take(&mut self.body);
        let mut lines = String::new();
        for (value, name) in x.ticks() {
            let (at, _) = self.at(value, y.range.0);
            let _ = writeln!(lines, "<path d=\"M{at:.1} {bottom:.1}v4\"/>");
            self.text(at, bottom + 16.0, &name, "middle", "");
        }
        for (value, name) in y.ticks() {
            let (_, at) = self.at(x.range.0, value);
            let _ = writeln!(lines, "<path d=\"M{left:.1} {at:.1}h-4\"/>");
            self.text(left - 7.0, at + SIZE * 0.35, &name, "end", "");
        }
        self.text((left + right) / 2.0, bottom + 36.0, &x.label, "middle", "");
        let middle = (top + bottom) / 2.0;
        self.text(14.0, middle, &y.label, "middle", &format!("transform=\"rotate(-90 14 {middle:.1})\""));
        let (w, h) = (self.width, self.height);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w:.0}\" height=\"{h:.0}\" viewBox=\"0 0 {w:.0} {h:.0}\" \
             font-family=\"{FONT}, sans-serif\" font-size=\"{SIZE}\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             {body}<g stroke=\"black\" fill=\"none\"><path d=\"M{left:.1} {top:.1}V{bottom:.1}H{right:.1}\"/>\n{lines}</g>\n{}</svg>\n",
            self.body
        )
    }
}

/// A mark of one of six shapes.
fn mark((x, y): (f64, f64), shape: usize, size: f64, colour: Rgb) -> String {
    let (r, colour) = (size / 2.0, hex(colour));
    let path = match shape % 6 {
        0 => return format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{r:.1}\" fill=\"{colour}\"/>\n"),
        1 => format!("M{:.1} {:.1}h{size:.1}v{size:.1}h-{size:.1}z", x - r, y - r),
        2 => format!("M{x:.1} {:.1}l{r:.1} {size:.1}h-{size:.1}z", y - r),
        3 => format!("M{x:.1} {:.1}l{r:.1} {r:.1}l-{r:.1} {r:.1}l-{r:.1} -{r:.1}z", y - r),
        4 => format!("M{x:.1} {:.1}l{r:.1} -{size:.1}h-{size:.1}z", y + r),
        _ => {
            let arm = r * 0.35;
            format!(
                "M{:.1} {:.1}h{:.1}v{size:.1}h-{:.1}zM{:.1} {:.1}h{size:.1}v{:.1}h-{size:.1}z",
                x - arm,
                y - r,
                2.0 * arm,
                2.0 * arm,
                x - r,
                y - arm,
                2.0 * arm
            )
        }
    };
    format!("<path d=\"{path}\" fill=\"{colour}\"/>\n")
}

/// Text as XML and HTML have it.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The PNG file of an SVG, with its width and height.
pub fn png(svg: &str) -> Result<(Vec<u8>, (u32, u32))> {
    static FONTS: LazyLock<Arc<usvg::fontdb::Database>> = LazyLock::new(|| {
        let mut fonts = usvg::fontdb::Database::new();
        fonts.load_font_data(dejavu::sans::regular().to_vec());
        fonts.load_font_data(dejavu::sans::bold().to_vec());
        fonts.set_sans_serif_family(FONT);
        Arc::new(fonts)
    });
    let broken = |what: String| Error::new(Exit::Panic, format!("a picture cannot be drawn: {what}"));
    let options = usvg::Options { fontdb: FONTS.clone(), ..Default::default() };
    let tree = usvg::Tree::from_str(svg, &options).map_err(|error| broken(error.to_string()))?;
    let size = tree.size().to_int_size().scale_by(SCALE).ok_or_else(|| broken("it has no size".into()))?;
    let mut pixels = tiny_skia::Pixmap::new(size.width(), size.height())
        .ok_or_else(|| broken(format!("{}x{} pixels", size.width(), size.height())))?;
    resvg::render(&tree, tiny_skia::Transform::from_scale(SCALE, SCALE), &mut pixels.as_mut());
    let png = pixels.encode_png().map_err(|error| broken(error.to_string()))?;
    Ok((png, (size.width(), size.height())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers() {
        let names = |axis: &Axis| axis.ticks().into_iter().map(|(_, name)| name).collect::<Vec<_>>();
        assert_eq!(names(&Axis::linear("", (0.0, 1.0))), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(names(&Axis::linear("", (-3.0, 9.0))), ["−2", "0", "2", "4", "6", "8"]);
        let log = Axis { log: true, ..Axis::linear("", (0.5, 2000.0)) };
        assert_eq!(names(&log), ["1", "10", "100", "1000"]);
        assert_eq!((log.place(0.5), log.place(2000.0)), (0.0, 1.0));
    }

    #[test]
    fn a_plot_becomes_a_picture() {
        let axes = || (Axis::linear("x, units", (0.0, 1.0)), Axis::linear("‖r − r̄‖ & γ", (0.0, 1.0)));
        let (x, y) = axes();
        let mut plot = Plot::new("A title", (200.0, 100.0), 80.0, x, y);
        plot.cell((0.0, 0.0), (0.5, 1.0), [255, 0, 0]);
        plot.legend(&[(0, [0, 0, 255], "blue <dots>".into())]);
        let svg = plot.finish();
        let (png, (width, height)) = png(&svg).unwrap();
        let pixmap = tiny_skia::Pixmap::decode_png(&png).unwrap();
        assert_eq!((pixmap.width(), pixmap.height()), (width, height));
        let count = |rgb: (u8, u8, u8)| {
            let same = |p: &&tiny_skia::PremultipliedColorU8| (p.red(), p.green(), p.blue()) == rgb;
            pixmap.pixels().iter().filter(same).count() as f32
        };
        let red = count((255, 0, 0)) / (SCALE * SCALE);
        assert!((red - 100.0 * 100.0).abs() < 300.0, "half of the plane is red: {red} square points");
        assert!(count((0, 0, 0)) > 500.0, "axes and letters are drawn");
        assert!(count((0, 0, 255)) > 50.0);
        let without = svg.replace("A title", "");
        let title = tiny_skia::Pixmap::decode_png(&super::png(&without).unwrap().0).unwrap();
        assert!(title.pixels() != pixmap.pixels(), "letters leave a trace");
    }
}
