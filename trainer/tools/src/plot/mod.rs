//! Charts, drawn by plotters: the same on every machine, since the letters come with the program.

mod accuracy;
mod axis;
mod canvas;
mod lines;

pub use accuracy::{Point, accuracy};
pub use axis::Axis;
pub use lines::{Line, lines};

use canvas::Canvas;
use codinet_dataloader::Channels;
use codinet_dataloader::encode::{Encoder, Encoding};
use codinet_trainer::sys::error::Result;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::convert::Infallible;

/// Pixels for each point: an image as wide as a column has 300 dots an inch and more.
const SCALE: f64 = 2.5;
const FONT: &str = "DejaVu Sans";
/// The letters' height, in points.
const LETTERS: f64 = 13.0;
/// Room above a plane, for its title, and below it.
const ABOVE: f64 = 30.0;
const BELOW: f64 = 46.0;

/// Paul Tol's muted scheme and black: ten categories that stay apart in print and for colour-blind eyes.
pub const CATEGORIES: [RGBColor; 10] = [
    RGBColor(0x33, 0x22, 0x88),
    RGBColor(0x88, 0xcc, 0xee),
    RGBColor(0x44, 0xaa, 0x99),
    RGBColor(0x11, 0x77, 0x33),
    RGBColor(0x99, 0x99, 0x33),
    RGBColor(0xdd, 0xcc, 0x77),
    RGBColor(0xcc, 0x66, 0x77),
    RGBColor(0x88, 0x22, 0x55),
    RGBColor(0xaa, 0x44, 0x99),
    RGBColor(0x00, 0x00, 0x00),
];
pub const GREY: RGBColor = RGBColor(0xbb, 0xbb, 0xbb);

/// The colour of `share`, 0 (dark blue) to 1 (yellow).
pub fn cividis(share: f64) -> RGBColor {
    let [r, g, b] = codinet_trainer::run::cividis(share);
    RGBColor(r, g, b)
}

/// A finished chart.
pub struct Chart {
    pub svg: String,
    pub png: Vec<u8>,
    /// Width and height of both, in pixels.
    pub size: (u32, u32),
}

/// The plane between the axes; places are the axes' values.
pub type Plane<'a> = DrawingArea<Canvas<'a>, Cartesian2d<Axis, Axis>>;
/// The room right of the plane; places are pixels, of the same height as the plane's.
pub type Margin<'a> = DrawingArea<Canvas<'a>, Shift>;
pub type Drawn = std::result::Result<(), DrawingAreaErrorKind<Infallible>>;

/// What stands around a plane. Lengths are in points.
pub struct Frame {
    title: String,
    width: f64,
    height: f64,
    margin: f64,
    x: Axis,
    y: Axis,
}

impl Frame {
    /// Around a plane of `size`, width and height, with a margin on the right.
    pub fn new(title: impl Into<String>, size: (f64, f64), margin: f64, x: Axis, y: Axis) -> Self {
        Self { title: title.into(), width: size.0, height: size.1, margin, x, y }
    }

    /// The chart that `draw` fills.
    pub fn draw(self, draw: impl for<'a> FnOnce(&Plane<'a>, &Margin<'a>) -> Drawn) -> Result<Chart> {
        let (svg, pixels, size) = self.render(draw);
        let png = Encoder::new(Encoding::Png)?.encode(&pixels, size.0, size.1, Channels::Rgb)?;
        Ok(Chart { svg, png, size })
    }

    fn render(
        self,
        draw: impl for<'a> FnOnce(&Plane<'a>, &Margin<'a>) -> Drawn,
    ) -> (String, Vec<u8>, (u32, u32)) {
        let fonts = [(FontStyle::Normal, dejavu::sans::regular()), (FontStyle::Bold, dejavu::sans::bold())];
        for (style, font) in fonts {
            assert!(register_font(FONT, style, font).is_ok(), "DejaVu is a font");
        }
        let left = 36.0 + self.y.width();
        let width = pixels(left + self.width + self.margin.max(16.0)) as u32;
        let height = pixels(ABOVE + self.height + BELOW) as u32;
        let mut svg = String::new();
        let mut rgb = vec![255; 3 * width as usize * height as usize];
        let canvas = Canvas {
            svg: SVGBackend::with_string(&mut svg, (width, height)),
            pixels: BitMapBackend::with_buffer(&mut rgb, (width, height)),
        };
        self.draw_on(canvas, left, draw).expect("in memory, with a font that is registered");
        (svg, rgb, (width, height))
    }

    fn draw_on<'a>(
        self,
        canvas: Canvas<'a>,
        left: f64,
        draw: impl FnOnce(&Plane<'a>, &Margin<'a>) -> Drawn,
    ) -> Drawn {
        let root = canvas.into_drawing_area();
        root.fill(&WHITE)?;
        let middle = pixels(left + self.width / 2.0);
        let bold = TextStyle { font: font(LETTERS, FontStyle::Bold), ..centred(LETTERS, BLACK) };
        root.draw(&Text::new(self.title, (middle, pixels(ABOVE / 2.0)), bold))?;
        let (main, margin) = root.split_horizontally(pixels(left + self.width));
        let x_label = self.x.label.clone();
        let y_label = self.y.label.clone();
        // plotters writes the axes' labels at the very edge.
        let edge = 6.0;
        let mut chart = ChartBuilder::on(&main)
            .margin_top(pixels(ABOVE))
            .margin_left(pixels(edge))
            .margin_bottom(pixels(edge))
            .x_label_area_size(pixels(BELOW - edge))
            .y_label_area_size(pixels(left - edge))
            .build_cartesian_2d(self.x, self.y)?;
        chart
            .configure_mesh()
            .disable_mesh()
            .axis_style(BLACK.stroke_width(2))
            .set_all_tick_mark_size(pixels(4.0))
            .label_style(letters(LETTERS, BLACK))
            .axis_desc_style(letters(LETTERS, BLACK))
            .x_desc(x_label)
            .y_desc(y_label)
            .draw()?;
        draw(chart.plotting_area(), &margin)?;
        root.present()
    }
}

/// Points in pixels.
pub fn pixels(points: f64) -> i32 {
    (points * SCALE).round() as i32
}

fn font(points: f64, style: FontStyle) -> FontDesc<'static> {
    FontDesc::new(FontFamily::Name(FONT), points * SCALE, style)
}

/// Letters right of a place.
pub fn letters(points: f64, colour: RGBColor) -> TextStyle<'static> {
    let pos = Pos::new(HPos::Left, VPos::Center);
    TextStyle { font: font(points, FontStyle::Normal), color: colour.to_backend_color(), pos }
}

/// Letters around a place.
pub fn centred(points: f64, colour: RGBColor) -> TextStyle<'static> {
    TextStyle { pos: Pos::new(HPos::Center, VPos::Center), ..letters(points, colour) }
}

/// A filled rectangle between two places.
pub fn cell(from: (f64, f64), to: (f64, f64), colour: RGBColor) -> Rectangle<(f64, f64)> {
    Rectangle::new([from, to], colour.filled())
}

/// A mark of `size` points at a place; its shape, one of six, distinguishes categories where the colour does not.
pub fn mark<'a, P: Clone + 'a>(
    place: P,
    shape: usize,
    size: f64,
    colour: RGBColor,
) -> DynElement<'a, Canvas<'a>, P> {
    let r = pixels(size / 2.0);
    let arm = r / 3;
    let corners = match shape % 6 {
        0 => return Circle::new(place, r, colour.filled()).into_dyn(),
        1 => vec![(-r, -r), (r, -r), (r, r), (-r, r)],
        2 => vec![(0, -r), (r, r), (-r, r)],
        3 => vec![(0, -r), (r, 0), (0, r), (-r, 0)],
        4 => vec![(0, r), (r, -r), (-r, -r)],
        _ => {
            let upper = [(-arm, -arm), (-arm, -r), (arm, -r), (arm, -arm), (r, -arm), (r, arm)];
            upper.into_iter().chain(upper.map(|(x, y)| (-x, -y))).collect()
        }
    };
    (EmptyElement::at(place) + Polygon::new(corners, colour)).into_dyn()
}

/// A mark and a name each, from the top of a margin.
pub fn legend<'a>(margin: &Margin<'a>, entries: &[(usize, RGBColor, String)]) -> Drawn {
    for (row, (shape, colour, name)) in entries.iter().enumerate() {
        let y = pixels(ABOVE + 8.0 + 16.0 * row as f64);
        margin.draw(&mark((pixels(14.0), y), *shape, 7.0, *colour))?;
        margin.draw(&Text::new(name.as_str(), (pixels(24.0), y), letters(LETTERS, BLACK)))?;
    }
    Ok(())
}

/// What the colours of [`cividis`] mean, as a bar along a margin, with the numbers at its ends.
pub fn colour_bar(margin: &Margin, label: &str, low: &str, high: &str) -> Drawn {
    const STEPS: i32 = 64;
    let top = pixels(ABOVE);
    let bottom = margin.dim_in_pixel().1 as i32 - pixels(BELOW);
    let height = |step: i32| bottom - (bottom - top) * step / STEPS;
    for step in 0..STEPS {
        let colour = cividis(f64::from(step) / f64::from(STEPS - 1));
        let corners = [(pixels(14.0), height(step + 1)), (pixels(26.0), height(step))];
        margin.draw(&Rectangle::new(corners, colour.filled()))?;
    }
    let inset = pixels(LETTERS / 2.0);
    margin.draw(&Text::new(low, (pixels(30.0), bottom - inset), letters(LETTERS, BLACK)))?;
    margin.draw(&Text::new(high, (pixels(30.0), top + inset), letters(LETTERS, BLACK)))?;
    let upright = centred(LETTERS, BLACK).transform(FontTransform::Rotate270);
    margin.draw(&Text::new(label, (pixels(38.0), (top + bottom) / 2), upright))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chart_holds_what_was_drawn() {
        let draw = |title: &str| {
            let x = Axis::linear("x, units", (0.0, 1.0));
            let y = Axis::linear("spread & γ", (0.0, 1.0));
            Frame::new(title, (200.0, 100.0), 80.0, x, y).render(|plane, margin| {
                plane.draw(&cell((0.0, 0.0), (0.5, 1.0), RED))?;
                legend(margin, &[(0, BLUE, "blue <dots>".into())])
            })
        };
        let (svg, pixels, size) = draw("A title");
        assert_eq!(pixels.len(), 3 * (size.0 * size.1) as usize);
        let count = |rgb: [u8; 3]| pixels.chunks(3).filter(|pixel| *pixel == rgb).count() as f64;
        let red = count([255, 0, 0]) / (SCALE * SCALE);
        assert!((red - 100.0 * 100.0).abs() < 300.0, "half of the plane is red: {red} square points");
        assert!(count([0, 0, 0]) > 500.0, "axes and letters are drawn");
        assert!(count([0, 0, 255]) > 50.0, "the legend has its mark");
        assert!(
            svg.starts_with("<svg") && svg.contains("blue &lt;dots&gt;") && svg.contains("spread &amp; γ")
        );
        assert!(draw("").1 != pixels, "letters leave a trace");
        assert!(draw("A title").1 == pixels, "the same every time");
    }
}
