//! Encoding of images, for importers.

use turbojpeg::{Compressor, Image, PixelFormat, Subsamp};

use crate::decode::Channels;
use crate::error::{Error, Result};

/// How images are stored in shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// JPEG without chroma subsampling.
    Jpeg {
        /// libjpeg's quality, 1 to 100.
        quality: u8,
    },
    /// PNG, lossless.
    Png,
}

impl Encoding {
    /// The extension of the image member in a shard.
    pub fn extension(self) -> &'static str {
        match self {
            Encoding::Jpeg { .. } => "jpg",
            Encoding::Png => "png",
        }
    }
}

/// Encodes images one after another.
pub struct Encoder {
    encoding: Encoding,
    jpeg: Compressor,
}

impl Encoder {
    /// # Errors
    /// A quality outside 1 to 100.
    pub fn new(encoding: Encoding) -> Result<Encoder> {
        let start = || {
            let mut jpeg = Compressor::new()?;
            if let Encoding::Jpeg { quality } = encoding {
                jpeg.set_quality(quality.into())?;
            }
            Ok(jpeg)
        };
        let jpeg = start().map_err(|error: turbojpeg::Error| invalid(&error))?;
        Ok(Encoder { encoding, jpeg })
    }

    /// Encodes `pixels`, u8 [height, width, channels].
    ///
    /// # Errors
    /// Fewer or more pixels than the size says, or a size the format can't hold.
    pub fn encode(&mut self, pixels: &[u8], width: u32, height: u32, channels: Channels) -> Result<Vec<u8>> {
        let expected = width as usize * height as usize * channels.count();
        if pixels.len() != expected || expected == 0 {
            let found = pixels.len();
            return Err(invalid(&format!("{found} bytes for {width}x{height}x{}", channels.count())));
        }
        match self.encoding {
            Encoding::Jpeg { .. } => {
                let sampling = match channels {
                    Channels::Grey => Subsamp::Gray,
                    Channels::Rgb => Subsamp::None,
                };
                self.encode_jpeg(pixels, (width, height), channels, sampling)
            }
            Encoding::Png => encode_png(pixels, width, height, channels),
        }
    }

    /// Encodes a JPEG as [`encode`](Self::encode) does, with this chroma sampling.
    pub(crate) fn encode_jpeg(
        &mut self,
        pixels: &[u8],
        (width, height): (u32, u32),
        channels: Channels,
        sampling: Subsamp,
    ) -> Result<Vec<u8>> {
        let format = match channels {
            Channels::Grey => PixelFormat::GRAY,
            Channels::Rgb => PixelFormat::RGB,
        };
        let width = width as usize;
        let height = height as usize;
        let image = Image { pixels, width, pitch: width * channels.count(), height, format };
        let encoded = self.jpeg.set_subsamp(sampling).and_then(|()| self.jpeg.compress_to_vec(image));
        encoded.map_err(|error| invalid(&error))
    }
}

fn encode_png(pixels: &[u8], width: u32, height: u32, channels: Channels) -> Result<Vec<u8>> {
    let mut encoded = Vec::new();
    let mut encoder = png::Encoder::new(&mut encoded, width, height);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_color(match channels {
        Channels::Grey => png::ColorType::Grayscale,
        Channels::Rgb => png::ColorType::Rgb,
    });
    let written = encoder.write_header().and_then(|mut writer| {
        writer.write_image_data(pixels)?;
        writer.finish()
    });
    written.map_err(|error| invalid(&error))?;
    Ok(encoded)
}

fn invalid(reason: &dyn std::fmt::Display) -> Error {
    Error::InvalidArgument(format!("cannot encode an image: {reason}"))
}
