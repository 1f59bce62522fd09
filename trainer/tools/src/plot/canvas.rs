//! What plotters draws on: an SVG file and the pixels of a PNG file at once. Both are in memory, so drawing cannot fail.

use plotters::prelude::{BitMapBackend, DrawingBackend, SVGBackend};
use plotters_backend::text_anchor::VPos;
use plotters_backend::{BackendColor, BackendCoord as At, BackendStyle, BackendTextStyle, DrawingErrorKind};
use std::convert::Infallible;
use std::error::Error;

pub struct Canvas<'a> {
    pub svg: SVGBackend<'a>,
    pub pixels: BitMapBackend<'a>,
}

type Drawn = Result<(), DrawingErrorKind<Infallible>>;

fn drawn<A, B>(svg: Result<(), DrawingErrorKind<A>>, pixels: Result<(), DrawingErrorKind<B>>) -> Drawn
where
    A: Error + Send + Sync,
    B: Error + Send + Sync,
{
    svg.expect("an SVG in memory");
    pixels.expect("pixels in memory");
    Ok(())
}

impl DrawingBackend for Canvas<'_> {
    type ErrorType = Infallible;

    fn get_size(&self) -> (u32, u32) {
        self.pixels.get_size()
    }

    fn ensure_prepared(&mut self) -> Drawn {
        drawn(self.svg.ensure_prepared(), self.pixels.ensure_prepared())
    }

    fn present(&mut self) -> Drawn {
        drawn(self.svg.present(), self.pixels.present())
    }

    fn draw_pixel(&mut self, at: At, colour: BackendColor) -> Drawn {
        drawn(self.svg.draw_pixel(at, colour), self.pixels.draw_pixel(at, colour))
    }

    fn draw_line<S: BackendStyle>(&mut self, from: At, to: At, style: &S) -> Drawn {
        drawn(self.svg.draw_line(from, to, style), self.pixels.draw_line(from, to, style))
    }

    fn draw_rect<S: BackendStyle>(&mut self, a: At, b: At, style: &S, fill: bool) -> Drawn {
        drawn(self.svg.draw_rect(a, b, style, fill), self.pixels.draw_rect(a, b, style, fill))
    }

    fn draw_path<S: BackendStyle, I: IntoIterator<Item = At>>(&mut self, path: I, style: &S) -> Drawn {
        let path: Vec<At> = path.into_iter().collect();
        drawn(self.svg.draw_path(path.clone(), style), self.pixels.draw_path(path, style))
    }

    fn draw_circle<S: BackendStyle>(&mut self, at: At, r: u32, style: &S, fill: bool) -> Drawn {
        drawn(self.svg.draw_circle(at, r, style, fill), self.pixels.draw_circle(at, r, style, fill))
    }

    fn fill_polygon<S: BackendStyle, I: IntoIterator<Item = At>>(&mut self, corners: I, style: &S) -> Drawn {
        let corners: Vec<At> = corners.into_iter().collect();
        drawn(self.svg.fill_polygon(corners.clone(), style), self.pixels.fill_polygon(corners, style))
    }

    fn draw_text<S: BackendTextStyle>(&mut self, text: &str, style: &S, at: At) -> Drawn {
        // Where text is centred, plotters' pixels lie a fifth of the letters' size too high.
        let centred = matches!(style.anchor().v_pos, VPos::Center);
        let lower = if centred { style.size() / 5.0 } else { 0.0 };
        let (dx, dy) = style.transform().transform(0, lower as i32);
        let pixels = self.pixels.draw_text(text, style, (at.0 + dx, at.1 + dy));
        drawn(self.svg.draw_text(text, style, at), pixels)
    }
}
