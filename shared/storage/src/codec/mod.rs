//! How the bf16 values of one layer become bytes and come back.

mod lossless;
mod raw;

use std::{fmt, str::FromStr};

/// How a chunk's frames are packed. `Display` and `FromStr` use `raw` and `lossless`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Values as they are, little-endian.
    Raw,
    /// Exponents entropy-coded, signs and mantissas as they are: every bit comes back.
    Lossless,
}

impl Codec {
    /// The codec's number in a chunk's header.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Lossless => 1,
        }
    }

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        [Self::Raw, Self::Lossless].into_iter().find(|codec| codec.number() == number)
    }

    /// The most bytes that a frame of `values` values may take. `None` if that fits no `usize`.
    pub(crate) fn max_frame(self, values: usize) -> Option<usize> {
        match self {
            Self::Raw => raw::frame_len(values),
            Self::Lossless => lossless::max_frame(values),
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Lossless => "lossless",
        })
    }
}

/// A text that names no codec.
#[derive(Debug, thiserror::Error)]
#[error("unknown codec {found:?}: expected \"raw\" or \"lossless\"")]
pub struct ParseCodecError {
    found: String,
}

impl FromStr for Codec {
    type Err = ParseCodecError;

    fn from_str(text: &str) -> Result<Self, ParseCodecError> {
        [Self::Raw, Self::Lossless]
            .into_iter()
            .find(|codec| codec.to_string() == text)
            .ok_or_else(|| ParseCodecError { found: text.to_owned() })
    }
}

/// Why a frame could not be packed or unpacked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The frame has another length than its values demand.
    #[error("a {codec} frame of {values} values has an impossible length of {found} bytes")]
    Length {
        /// How the frame says it is packed.
        codec: Codec,
        /// The values that the shape demands.
        values: usize,
        /// The frame's bytes.
        found: usize,
    },
    /// The entropy-coded exponents hold another number of values than they should.
    #[error("expected {expected} exponents, found {found}")]
    Exponents {
        /// The values that the shape demands.
        expected: usize,
        /// The values that came out.
        found: usize,
    },
    /// The entropy coder refused the bytes.
    #[error("the exponents cannot be unpacked or packed")]
    Zstd(#[source] std::io::Error),
}

/// Packs layers, one after another, and keeps the codec's tables and buffers between them.
pub(crate) enum Encoder {
    Raw,
    Lossless(lossless::Encoder),
}

impl Encoder {
    pub(crate) fn new(codec: Codec) -> Result<Self, Error> {
        Ok(match codec {
            Codec::Raw => Self::Raw,
            Codec::Lossless => Self::Lossless(lossless::Encoder::new()?),
        })
    }

    /// Appends the frame of one layer to `out`.
    pub(crate) fn encode(&mut self, values: &[u16], out: &mut Vec<u8>) -> Result<(), Error> {
        match self {
            Self::Raw => raw::encode(values, out),
            Self::Lossless(encoder) => encoder.encode(values, out)?,
        }
        Ok(())
    }
}

/// Unpacks frames of any codec, one after another, and keeps tables and buffers between them.
#[derive(Default)]
pub struct Decoder {
    lossless: Option<lossless::Decoder>,
}

impl Decoder {
    /// The `values` values of a frame. A frame whose length cannot hold that many is refused before anything is allocated.
    pub(crate) fn decode(&mut self, codec: Codec, frame: &[u8], values: usize) -> Result<Vec<u16>, Error> {
        match codec {
            Codec::Raw => raw::decode(frame, values),
            Codec::Lossless => {
                let decoder = match &mut self.lossless {
                    Some(decoder) => decoder,
                    none => none.insert(lossless::Decoder::new()?),
                };
                decoder.decode(frame, values)
            }
        }
    }
}
