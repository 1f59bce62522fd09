//! libjpeg-turbo as far as the `turbojpeg` crate's safe interface does not reach: regions of an image, pictures whose
//! coefficients somebody else reads (`blocks.c`), and transcoding with restart markers.
#![expect(unsafe_code, reason = "libjpeg-turbo's C interface")]

use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_void};
use std::ptr;
use std::slice;

use turbojpeg::raw;

use super::bits::Block;
use crate::region::Region;

/// Scans of a progressive JPEG: a small file of many would take minutes. Encoders write about ten.
const MOST_SCANS: c_int = 100;

/// A TurboJPEG handle, for one image: it keeps the tables that one image defines, right or wrong, for the next one.
struct Handle(raw::tjhandle);

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made by tj3Init, freed once.
        unsafe { raw::tj3Destroy(self.0) };
    }
}

/// Why libjpeg-turbo refused a JPEG, or warned of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub message: String,
    /// The output is there all the same, as far as the data went.
    pub warning: bool,
}

/// What a pixel is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pixel {
    Grey = 1,
    Rgb = 3,
    /// As in the file: Adobe's programs store 255 − ink.
    Cmyk = 4,
}

/// What a JPEG's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame {
    pub width: u32,
    pub height: u32,
    /// Stored as CMYK or YCCK.
    pub cmyk: bool,
    /// Width of a block of all components, in pixels; `None` for samplings without a name.
    pub block: Option<u32>,
    /// Scans refine the picture step by step. Where some are missing, blocks are smoothed by two neighbours on each side.
    pub progressive: bool,
}

impl Handle {
    fn new(kind: raw::TJINIT) -> Result<Handle, Fault> {
        // SAFETY: no argument but a constant; the result is checked.
        let handle = unsafe { raw::tj3Init(kind as c_int) };
        if handle.is_null() {
            return Err(Fault { message: message(handle), warning: false });
        }
        Ok(Handle(handle))
    }

    fn get(&self, parameter: raw::TJPARAM) -> c_int {
        // SAFETY: a living handle; an unknown parameter gives −1.
        unsafe { raw::tj3Get(self.0, parameter as c_int) }
    }

    fn set(&self, parameter: raw::TJPARAM, value: c_int) -> Result<(), Fault> {
        // SAFETY: a living handle; a value that does not suit is refused.
        self.check(unsafe { raw::tj3Set(self.0, parameter as c_int, value) })
    }

    fn check(&self, returned: c_int) -> Result<(), Fault> {
        if returned == 0 {
            return Ok(());
        }
        // SAFETY: a living handle.
        let code = unsafe { raw::tj3GetErrorCode(self.0) };
        Err(Fault { message: message(self.0), warning: code == raw::TJERR_TJERR_WARNING as c_int })
    }
}

fn message(handle: raw::tjhandle) -> String {
    // SAFETY: a living handle or null; the string is the library's until its next call, and copied at once.
    unsafe { CStr::from_ptr(raw::tj3GetErrorStr(handle)) }.to_string_lossy().into_owned()
}

/// Reads a header.
pub(crate) fn frame(encoded: &[u8]) -> Result<Frame, Fault> {
    read_header(&Handle::new(raw::TJINIT_TJINIT_DECOMPRESS)?, encoded)
}

fn read_header(handle: &Handle, encoded: &[u8]) -> Result<Frame, Fault> {
    handle.set(raw::TJPARAM_TJPARAM_SCANLIMIT, MOST_SCANS)?;
    // SAFETY: a living handle and a living slice, which is not kept.
    let read = unsafe { raw::tj3DecompressHeader(handle.0, encoded.as_ptr(), encoded.len() as raw::size_t) };
    match handle.check(read) {
        Err(fault) if !fault.warning => return Err(fault),
        _ => {}
    }
    let colours = handle.get(raw::TJPARAM_TJPARAM_COLORSPACE);
    let cmyk = [raw::TJCS_TJCS_CMYK, raw::TJCS_TJCS_YCCK].map(|known| known as c_int).contains(&colours);
    let subsampling = handle.get(raw::TJPARAM_TJPARAM_SUBSAMP);
    let block = match subsampling {
        raw::TJSAMP_TJSAMP_444 | raw::TJSAMP_TJSAMP_GRAY | raw::TJSAMP_TJSAMP_440 => Some(8),
        raw::TJSAMP_TJSAMP_422 | raw::TJSAMP_TJSAMP_420 => Some(16),
        raw::TJSAMP_TJSAMP_411 => Some(32),
        _ => None,
    };
    let side = |parameter| u32::try_from(handle.get(parameter)).unwrap_or(0);
    let (width, height) = (side(raw::TJPARAM_TJPARAM_JPEGWIDTH), side(raw::TJPARAM_TJPARAM_JPEGHEIGHT));
    if width == 0 || height == 0 {
        return Err(Fault { message: "it ends before the picture begins".into(), warning: false });
    }
    let progressive = handle.get(raw::TJPARAM_TJPARAM_PROGRESSIVE) == 1;
    Ok(Frame { width, height, cmyk, block, progressive })
}

/// Replaces the contents of `pixels` by `region` of the image, whose left edge is a multiple of the frame's block where it
/// isn't the whole width. A warning is a fault too; the pixels are there then.
pub(crate) fn decode(
    encoded: &[u8],
    region: Region,
    pixel: Pixel,
    pixels: &mut Vec<u8>,
) -> Result<(), Fault> {
    let handle = Handle::new(raw::TJINIT_TJINIT_DECOMPRESS)?;
    let frame = read_header(&handle, encoded)?;
    let Region { left, top, width, height } = region;
    let fault = |message: String| Fault { message, warning: false };
    let fits =
        |from: u32, size: u32, whole: u32| size > 0 && from.checked_add(size).is_some_and(|to| to <= whole);
    if !fits(left, width, frame.width) || !fits(top, height, frame.height) {
        return Err(fault(format!("{region:?} of {}x{} pixels", frame.width, frame.height)));
    }
    let whole = (width, height) == (frame.width, frame.height);
    let side = |value: u32| if whole { 0 } else { value as c_int }; // at most 65535
    let crop = raw::tjregion { x: side(left), y: side(top), w: side(width), h: side(height) };
    // SAFETY: a living handle, which has read this image's header; a region that does not suit is refused.
    handle.check(unsafe { raw::tj3SetCroppingRegion(handle.0, crop) })?;
    pixels.resize(width as usize * height as usize * pixel as usize, 0);
    let format = match pixel {
        Pixel::Grey => raw::TJPF_TJPF_GRAY,
        Pixel::Rgb => raw::TJPF_TJPF_RGB,
        Pixel::Cmyk => raw::TJPF_TJPF_CMYK,
    };
    // SAFETY: a living handle and slice. It writes `height` rows of `width` pixels without a gap (pitch 0): the region's,
    // for the header it reads again is that of the same bytes.
    let decoded = unsafe {
        raw::tj3Decompress8(
            handle.0,
            encoded.as_ptr(),
            encoded.len() as raw::size_t,
            pixels.as_mut_ptr(),
            0,
            format as c_int,
        )
    };
    handle.check(decoded)
}

/// Fills the next `count` blocks; 0 where it can't.
type NextGroup = unsafe extern "C" fn(from: *mut c_void, blocks: *mut Block, count: c_int) -> c_int;

unsafe extern "C" {
    fn codinet_decode_blocks(
        header: *const c_uchar,
        length: usize,
        width: c_uint,
        height: c_uint,
        channels: c_int,
        next: NextGroup,
        from: *mut c_void,
        pixels: *mut c_uchar,
        message: *mut c_char,
    ) -> c_int;
}

/// Replaces the contents of `pixels` by a picture of `size` (width, height), of which `header` tells, from SOI to SOS and
/// EOI. Its coefficients are read by `next`, group by group: all components' blocks, zeros beforehand; false ends it.
pub(crate) fn decode_blocks<F: FnMut(&mut [Block]) -> bool>(
    header: &[u8],
    (width, height): (u32, u32),
    pixel: Pixel,
    mut next: F,
    pixels: &mut Vec<u8>,
) -> Result<(), Fault> {
    /// Calls the `F` that `from` points at.
    unsafe extern "C" fn call<F: FnMut(&mut [Block]) -> bool>(
        from: *mut c_void,
        blocks: *mut Block,
        count: c_int,
    ) -> c_int {
        // SAFETY: `from` is the `&mut F` below, which nobody else uses during the call; the blocks are the library's, `count`
        // of them one after another, and aligned for its SIMD. A panic ends the process, as in any extern "C" function.
        let (next, blocks) =
            unsafe { (&mut *from.cast::<F>(), slice::from_raw_parts_mut(blocks, count as usize)) };
        next(blocks).into()
    }
    pixels.resize(width as usize * height as usize * pixel as usize, 0);
    let mut message = [0; 200];
    // SAFETY: the header is read within its length, the pixels written within theirs (a header of another size is refused),
    // `call` gets its F, and a message has at most 200 bytes, JMSG_LENGTH_MAX.
    let decoded = unsafe {
        codinet_decode_blocks(
            header.as_ptr(),
            header.len(),
            width,
            height,
            pixel as c_int,
            call::<F>,
            (&raw mut next).cast(),
            pixels.as_mut_ptr(),
            message.as_mut_ptr(),
        )
    };
    if decoded == 0 {
        return Ok(());
    }
    // SAFETY: on failure it is a string that ends within the array.
    let message = unsafe { CStr::from_ptr(message.as_ptr()) }.to_string_lossy().into_owned();
    Err(Fault { message, warning: false })
}

/// Decodes an image at an eighth of its size, which is little but reading its bits: libjpeg-turbo can't decode the whole of
/// it faster. False where it isn't a JPEG that can be decoded.
pub fn entropy_decode(encoded: &[u8], pixels: &mut Vec<u8>) -> bool {
    let mut decode = || {
        let handle = Handle::new(raw::TJINIT_TJINIT_DECOMPRESS)?;
        let frame = read_header(&handle, encoded)?;
        pixels.resize(frame.width.div_ceil(8) as usize * frame.height.div_ceil(8) as usize * 4, 0);
        // SAFETY: a living handle; a factor that is not one of libjpeg-turbo's is refused.
        handle.check(unsafe {
            raw::tj3SetScalingFactor(handle.0, raw::tjscalingfactor { num: 1, denom: 8 })
        })?;
        let format = if frame.cmyk { raw::TJPF_TJPF_CMYK } else { raw::TJPF_TJPF_RGBX } as c_int;
        let length = encoded.len() as raw::size_t;
        // SAFETY: a living handle and slice; both formats have the four bytes a pixel that there is room for.
        handle.check(unsafe {
            raw::tj3Decompress8(handle.0, encoded.as_ptr(), length, pixels.as_mut_ptr(), 0, format)
        })
    };
    decode().is_ok()
}

/// The same coefficients as a baseline JPEG with optimised Huffman tables, a restart marker every `interval` blocks of all
/// components, and nothing but the picture.
pub(crate) fn transcode(encoded: &[u8], interval: u16) -> Result<Vec<u8>, Fault> {
    let handle = Handle::new(raw::TJINIT_TJINIT_TRANSFORM)?;
    handle.set(raw::TJPARAM_TJPARAM_SCANLIMIT, MOST_SCANS)?;
    handle.set(raw::TJPARAM_TJPARAM_RESTARTBLOCKS, interval.into())?;
    let options = (raw::TJXOPT_COPYNONE | raw::TJXOPT_OPTIMIZE) as c_int;
    let region = raw::tjregion { x: 0, y: 0, w: 0, h: 0 };
    let plan = raw::tjtransform {
        r: region,
        op: raw::TJXOP_TJXOP_NONE as c_int,
        options,
        data: ptr::null_mut(),
        customFilter: None,
    };
    let (mut made, mut length) = (ptr::null_mut(), 0);
    // SAFETY: a living handle and slice, arrays of one. The buffer is the library's own, given back below.
    let done = unsafe {
        raw::tj3Transform(
            handle.0,
            encoded.as_ptr(),
            encoded.len() as raw::size_t,
            1,
            &mut made,
            &mut length,
            &plan,
        )
    };
    let result = handle.check(done).map(|()| {
        // SAFETY: where it succeeded, `made` holds `length` bytes.
        unsafe { std::slice::from_raw_parts(made, length as usize) }.to_vec()
    });
    // SAFETY: made by tj3Transform, or null; freed once.
    unsafe { raw::tj3Free(made.cast()) };
    result
}
