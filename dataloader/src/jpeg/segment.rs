//! The segments of a JPEG's header.
//!
//! Source: ITU-T T.81, B.1.1.

/// A marker and its contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment<'a> {
    pub(super) marker: u8,
    /// The bytes after the length.
    pub(super) body: &'a [u8],
    /// Position of the body in the file.
    pub(super) start: usize,
}

impl Segment<'_> {
    /// Position in the file of the next segment, or after SOS of the compressed data.
    pub(super) fn end(&self) -> usize {
        self.start + self.body.len()
    }
}

/// The segments of `encoded` after SOI, up to SOS, which is the last. `None` for a segment that is cut off, or a marker that
/// may not precede a scan; it is the last item.
pub(super) fn read_segments(encoded: &[u8]) -> impl Iterator<Item = Option<Segment<'_>>> {
    let mut at = encoded.starts_with(&[0xFF, 0xD8]).then_some(2);
    let mut ended = false;
    std::iter::from_fn(move || {
        if ended {
            return None;
        }
        let segment = at.and_then(|at| read_segment(encoded, at));
        at = segment.map(|segment| segment.end());
        ended = segment.is_none_or(|segment| segment.marker == 0xDA);
        Some(segment)
    })
}

fn read_segment(encoded: &[u8], mut at: usize) -> Option<Segment<'_>> {
    let marker = loop {
        match *encoded.get(at..at + 2)? {
            [0xFF, 0xFF] => at += 1, // a fill byte
            [0xFF, marker] => break marker,
            _ => return None,
        }
    };
    if matches!(marker, 0x00..=0x01 | 0xD0..=0xD9) {
        return None;
    }
    let start = at + 4;
    let length = u16::from_be_bytes(encoded.get(at + 2..start)?.try_into().ok()?);
    let body = encoded.get(start..at + 2 + usize::from(length))?;
    Some(Segment { marker, body, start })
}
