//! libjpeg-turbo's C interface: headers, whole images, regions, pictures whose coefficients the caller reads, and
//! transcoding with restart markers. All of them share one judgement of an image: see `libjpeg.c`.
#![expect(unsafe_code, reason = "libjpeg-turbo's C interface")]

use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_void};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::slice;

// Its build script builds the library that libjpeg.c calls.
use turbojpeg_sys as _;

use super::bits::Block;
use crate::buffer;
use crate::region::Region;

/// Why a JPEG can't be decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The file is damaged.
    Broken(String),
    /// A kind of JPEG that the loader does not decode.
    Unsupported(String),
}

/// The channels of a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pixel {
    Grey = 1,
    Rgb = 3,
    /// As stored in the file; Adobe's programs store 255 − ink.
    Cmyk = 4,
}

/// The colour space in which a JPEG stores its picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colours {
    Grey,
    Rgb,
    YCbCr,
    Cmyk,
    Ycck,
}

impl Colours {
    pub(crate) fn is_cmyk(self) -> bool {
        matches!(self, Colours::Cmyk | Colours::Ycck)
    }
}

/// The contents of a JPEG's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame {
    pub width: u32,
    pub height: u32,
    pub colours: Colours,
    /// Width of an MCU in pixels. A region that isn't as wide as the image begins at a multiple of it.
    pub mcu_width: u32,
    /// Whether scans refine the picture step by step. If some are missing, libjpeg smooths blocks by their neighbours.
    pub progressive: bool,
    /// Luma samples for each chroma sample, in a row and in a column. `None` for grey images, and if the two chroma
    /// components differ.
    pub subsampling: Option<(u32, u32)>,
}

/// `struct codinet_frame`.
#[repr(C)]
#[derive(Default)]
struct RawFrame {
    width: c_uint,
    height: c_uint,
    colour_space: c_int,
    progressive: c_int,
    mcu_width: c_uint,
    components: c_uint,
    sampling: [[c_uint; 2]; 4],
    length: usize,
}

impl RawFrame {
    fn to_frame(&self) -> Frame {
        let colours = match self.colour_space {
            1 => Colours::Grey, // the numbers are J_COLOR_SPACE's
            2 => Colours::Rgb,
            3 => Colours::YCbCr,
            4 => Colours::Cmyk,
            _ => Colours::Ycck,
        };
        let [luma, blue, red, _] = self.sampling;
        let divides = |i: usize| blue[i] > 0 && luma[i].is_multiple_of(blue[i]);
        let regular = self.components > 1 && blue == red && divides(0) && divides(1);
        Frame {
            width: self.width,
            height: self.height,
            colours,
            mcu_width: self.mcu_width,
            progressive: self.progressive != 0,
            subsampling: regular.then(|| (luma[0] / blue[0], luma[1] / blue[1])),
        }
    }
}

/// `struct codinet_jpeg`.
#[repr(C)]
struct RawJpeg {
    _opaque: [u8; 0],
}

type ReadMcu = unsafe extern "C" fn(reader: *mut c_void, blocks: *mut Block, count: c_int) -> c_int;
type Append = unsafe extern "C" fn(to: *mut c_void, bytes: *const c_uchar, length: usize);

unsafe extern "C" {
    fn codinet_jpeg_open(encoded: *const c_uchar, length: usize) -> *mut RawJpeg;
    fn codinet_jpeg_free(jpeg: *mut RawJpeg);
    fn codinet_jpeg_message(jpeg: *const RawJpeg) -> *const c_char;
    fn codinet_jpeg_read_header(jpeg: *mut RawJpeg, frame: *mut RawFrame) -> c_int;
    fn codinet_jpeg_start(
        jpeg: *mut RawJpeg,
        channels: c_int,
        denominator: c_uint,
        size: *mut c_uint,
    ) -> c_int;
    fn codinet_jpeg_replace_entropy_decoder(jpeg: *mut RawJpeg, read: ReadMcu, reader: *mut c_void);
    fn codinet_jpeg_crop(jpeg: *mut RawJpeg, left: *mut c_uint, width: *mut c_uint) -> c_int;
    fn codinet_jpeg_skip(jpeg: *mut RawJpeg, rows: c_uint) -> c_int;
    fn codinet_jpeg_read(jpeg: *mut RawJpeg, pixels: *mut c_uchar, size: usize) -> c_int;
    fn codinet_jpeg_finish(jpeg: *mut RawJpeg) -> c_int;
    fn codinet_jpeg_transcode(
        jpeg: *mut RawJpeg,
        interval: c_uint,
        append: Append,
        append_to: *mut c_void,
    ) -> c_int;
}

/// A JPEG opened by libjpeg-turbo. It serves one image: libjpeg keeps the tables that an image defines for the next one.
struct Jpeg<'a> {
    raw: NonNull<RawJpeg>,
    frame: Frame,
    encoded: PhantomData<&'a [u8]>,
}

impl Drop for Jpeg<'_> {
    fn drop(&mut self) {
        // SAFETY: made by codinet_jpeg_open, freed once.
        unsafe { codinet_jpeg_free(self.raw.as_ptr()) };
    }
}

impl<'a> Jpeg<'a> {
    /// Opens `encoded` and reads its header.
    fn open(encoded: &'a [u8]) -> Result<Jpeg<'a>, Fault> {
        // SAFETY: a living slice, which `encoded` keeps borrowed as long as the object lives.
        let raw = unsafe { codinet_jpeg_open(encoded.as_ptr(), encoded.len()) };
        let raw = NonNull::new(raw).ok_or_else(|| Fault::Broken("out of memory".into()))?;
        let mut raw_frame = RawFrame::default();
        // SAFETY: a living object and a frame of the same layout.
        let read = unsafe { codinet_jpeg_read_header(raw.as_ptr(), &mut raw_frame) };
        let jpeg = Jpeg { raw, frame: raw_frame.to_frame(), encoded: PhantomData };
        jpeg.check(read)?;
        // A file that was cut short would show it only to a decoder that comes to where it ends.
        if !has_end(encoded.get(raw_frame.length..).unwrap_or_default()) {
            return Err(Fault::Broken("Premature end of JPEG file".into()));
        }
        Ok(jpeg)
    }

    fn check(&self, returned: c_int) -> Result<(), Fault> {
        if returned == 0 {
            return Ok(());
        }
        // SAFETY: a living object; the message is a string in it, copied at once.
        let message = unsafe { CStr::from_ptr(codinet_jpeg_message(self.raw.as_ptr())) };
        let message = message.to_string_lossy().into_owned();
        Err(if returned == 2 { Fault::Unsupported(message) } else { Fault::Broken(message) })
    }

    /// Begins to decode at a scale of 1/`denominator`. Returns the size of the output: width, height and bytes a pixel.
    fn start(&mut self, pixel: Pixel, denominator: u32) -> Result<[u32; 3], Fault> {
        let mut size = [0; 3];
        // SAFETY: a living object, whose header has been read, and an array of three.
        let started =
            unsafe { codinet_jpeg_start(self.raw.as_ptr(), pixel as c_int, denominator, size.as_mut_ptr()) };
        self.check(started).map(|()| size)
    }

    /// Decodes `width` columns from `left` on, which must be a multiple of the MCU width; called after `start`.
    fn crop(&mut self, left: u32, width: u32) -> Result<(), Fault> {
        let mut cropped = (left, width);
        // SAFETY: a living object that has been started and has read no row.
        self.check(unsafe { codinet_jpeg_crop(self.raw.as_ptr(), &mut cropped.0, &mut cropped.1) })?;
        if cropped != (left, width) {
            return Err(Fault::Broken(format!("columns {left} + {width} are decoded as {cropped:?}")));
        }
        Ok(())
    }

    /// Passes over the first `rows` rows.
    fn skip(&mut self, rows: u32) -> Result<(), Fault> {
        // SAFETY: a living object that has been started.
        self.check(unsafe { codinet_jpeg_skip(self.raw.as_ptr(), rows) })
    }

    /// Fills `pixels` with the next rows, as many as it holds.
    fn read(&mut self, pixels: &mut [u8]) -> Result<(), Fault> {
        // SAFETY: a living object that has been started; it writes no further than the slice is long.
        self.check(unsafe { codinet_jpeg_read(self.raw.as_ptr(), pixels.as_mut_ptr(), pixels.len()) })
    }

    /// Reads what follows the last row.
    fn finish(&mut self) -> Result<(), Fault> {
        // SAFETY: a living object that has been started.
        self.check(unsafe { codinet_jpeg_finish(self.raw.as_ptr()) })
    }
}

/// Whether there is an EOI marker.
fn has_end(scans: &[u8]) -> bool {
    memchr::memrchr_iter(0xD9, scans).any(|at| at > 0 && scans[at - 1] == 0xFF)
}

/// Makes `pixels` as long as an output of this size, with any contents.
fn resize(pixels: &mut Vec<u8>, width: u32, height: u32, channels: u32) {
    buffer::resize(pixels, width as usize * height as usize * channels as usize);
}

/// Reads a header, and refuses kinds of JPEGs that aren't decoded.
pub(crate) fn read_header(encoded: &[u8]) -> Result<Frame, Fault> {
    Jpeg::open(encoded).map(|jpeg| jpeg.frame)
}

/// Replaces the contents of `pixels` by `region` of the image. Its left edge is a multiple of the frame's MCU width, or the
/// region is as wide as the image. Damage below the region is not seen where the JPEG has a single scan.
pub(crate) fn decode(
    encoded: &[u8],
    region: Region,
    pixel: Pixel,
    pixels: &mut Vec<u8>,
) -> Result<(), Fault> {
    let mut jpeg = Jpeg::open(encoded)?;
    let Region { left, top, width, height } = region;
    let [full_width, full_height, channels] = jpeg.start(pixel, 1)?;
    let fits =
        |from: u32, size: u32, whole: u32| size > 0 && from.checked_add(size).is_some_and(|to| to <= whole);
    if !fits(left, width, full_width) || !fits(top, height, full_height) {
        return Err(Fault::Broken(format!("{region:?} of {full_width}x{full_height} pixels")));
    }
    if width < full_width {
        jpeg.crop(left, width)?;
    }
    if top > 0 {
        jpeg.skip(top)?;
    }
    resize(pixels, width, height, channels);
    jpeg.read(pixels)?;
    if top + height == full_height { jpeg.finish() } else { Ok(()) }
}

/// Replaces the contents of `pixels` by a picture of `size` (width, height), which `header` describes, from SOI to SOS and
/// EOI. `read` reads its coefficients, MCU by MCU: all components' blocks, which are zero before. It returns false if they
/// are broken.
pub(crate) fn decode_blocks<F: FnMut(&mut [Block]) -> bool>(
    header: &[u8],
    (width, height): (u32, u32),
    pixel: Pixel,
    mut read: F,
    pixels: &mut Vec<u8>,
) -> Result<(), Fault> {
    /// Calls the `F` that `reader` points at.
    unsafe extern "C" fn call<F: FnMut(&mut [Block]) -> bool>(
        reader: *mut c_void,
        blocks: *mut Block,
        count: c_int,
    ) -> c_int {
        // SAFETY: `reader` is the `&mut F` below, which nobody else uses during the call.
        let read = unsafe { &mut *reader.cast::<F>() };
        // SAFETY: the blocks are the library's, `count` of them one after another, and aligned for its SIMD.
        let blocks = unsafe { slice::from_raw_parts_mut(blocks, count as usize) };
        read(blocks).into() // a panic ends the process, as in any extern "C" function
    }
    let mut jpeg = Jpeg::open(header)?;
    let size = jpeg.start(pixel, 1)?;
    if size[..2] != [width, height] || jpeg.frame.progressive {
        return Err(Fault::Broken(format!("a header of {size:?}, not of {width}x{height} pixels")));
    }
    // SAFETY: a living object that has been started and has read no row; `read` outlives it, and `call` takes its type.
    unsafe { codinet_jpeg_replace_entropy_decoder(jpeg.raw.as_ptr(), call::<F>, (&raw mut read).cast()) };
    resize(pixels, size[0], size[1], size[2]);
    jpeg.read(pixels)
}

/// Decodes an image at an eighth of its size, which takes little but its entropy decoding: libjpeg-turbo can't decode a whole
/// image faster. Returns false if it isn't a JPEG that can be decoded.
pub fn entropy_decode(encoded: &[u8], pixels: &mut Vec<u8>) -> bool {
    let mut decode = || {
        let mut jpeg = Jpeg::open(encoded)?;
        let pixel = if jpeg.frame.colours.is_cmyk() { Pixel::Cmyk } else { Pixel::Rgb };
        let [width, height, channels] = jpeg.start(pixel, 8)?;
        resize(pixels, width, height, channels);
        jpeg.read(pixels)?;
        jpeg.finish()
    };
    decode().is_ok()
}

/// The same coefficients as a baseline JPEG with optimised Huffman tables, a restart marker every `interval` MCUs, and no
/// metadata.
pub(crate) fn transcode(encoded: &[u8], interval: u16) -> Result<Vec<u8>, Fault> {
    unsafe extern "C" fn append(to: *mut c_void, bytes: *const c_uchar, length: usize) {
        // SAFETY: `to` is `made` below, which nobody else uses during the call.
        let made = unsafe { &mut *to.cast::<Vec<u8>>() };
        // SAFETY: the library's buffer holds `length` bytes.
        made.extend_from_slice(unsafe { slice::from_raw_parts(bytes, length) });
    }
    let jpeg = Jpeg::open(encoded)?;
    let mut made = Vec::new();
    // SAFETY: a living object whose header has been read; `made` outlives the call, and `append` takes its type.
    let done =
        unsafe { codinet_jpeg_transcode(jpeg.raw.as_ptr(), interval.into(), append, (&raw mut made).cast()) };
    jpeg.check(done).map(|()| made)
}
