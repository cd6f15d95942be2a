//! How the bf16 values of one layer become bytes and come back.

mod entropy;
mod grid;
mod lossless;
mod planes;
mod quantized;
mod raw;
mod reader;
mod rows;
#[cfg(test)]
mod tests;

use std::{fmt, str::FromStr};

/// How a chunk's frames are packed. `Display` and `FromStr` use `raw`, `lossless`, `near` and `balanced`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Values as they are, little-endian.
    Raw,
    /// Exponents entropy-coded, signs and mantissas as they are: every bit comes back.
    Lossless,
    /// Values rounded to steps of about a fifth of their deviation, less so the tokens that matter most: aimed at a mean KL
    /// divergence of the next tokens below 0.001 on prose; it depends on the model and the text.
    Near,
    /// As `Near` with wider steps: aimed at a mean KL divergence below 0.003 on prose.
    Balanced,
}

impl Codec {
    /// All codecs, by their numbers.
    pub const ALL: [Self; 4] = [Self::Raw, Self::Lossless, Self::Near, Self::Balanced];

    /// Whether every bit comes back. Chunks of a codec that loses some need names of their own, since what is computed after
    /// them differs.
    pub fn is_lossless(self) -> bool {
        match self {
            Self::Raw | Self::Lossless => true,
            Self::Near | Self::Balanced => false,
        }
    }

    /// The codec's number in a chunk's header.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Lossless => 1,
            Self::Near => 2,
            Self::Balanced => 3,
        }
    }

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|codec| codec.number() == number)
    }

    /// The most bytes that a frame of `values` values may take. `None` if that fits no `usize`.
    pub(crate) fn max_frame(self, values: usize) -> Option<usize> {
        match self {
            Self::Raw => raw::frame_len(values),
            Self::Lossless => lossless::max_frame(values),
            Self::Near | Self::Balanced => quantized::max_frame(values),
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Lossless => "lossless",
            Self::Near => "near",
            Self::Balanced => "balanced",
        })
    }
}

/// A text that names no codec.
#[derive(Debug, thiserror::Error)]
#[error("unknown codec {found:?}: expected \"raw\", \"lossless\", \"near\" or \"balanced\"")]
pub struct ParseCodecError {
    found: String,
}

impl FromStr for Codec {
    type Err = ParseCodecError;

    fn from_str(text: &str) -> Result<Self, ParseCodecError> {
        (Self::ALL.into_iter())
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
    /// The entropy-coded part holds another number of values than it should.
    #[error("expected {expected} packed values, found {found}")]
    Symbols {
        /// The values that the shape demands.
        expected: usize,
        /// The values that came out.
        found: usize,
    },
    /// The entropy coder refused the bytes.
    #[error("the values cannot be unpacked or packed")]
    Zstd(#[source] std::io::Error),
    /// A frame does not tell how each of its tokens is stored.
    #[error("a {codec} frame does not tell how its {tokens} tokens are stored")]
    Care {
        /// How the frame says it is packed.
        codec: Codec,
        /// The tokens that the shape demands.
        tokens: usize,
    },
    /// What values were rounded to can't be.
    #[error("a {codec} frame lacks a positive step or its channels' means")]
    Grid {
        /// How the frame says it is packed.
        codec: Codec,
    },
}

/// Packs layers, one after another, and keeps the codec's tables and buffers between them.
pub(crate) struct Encoder {
    /// Values of a token in K, and as many in V.
    width: usize,
    by_codec: ByCodec,
}

enum ByCodec {
    Raw,
    Lossless(lossless::Encoder),
    Quantized(Box<quantized::Encoder>),
}

impl Encoder {
    /// For layers whose K and V hold `width` values a token each.
    pub(crate) fn new(codec: Codec, width: usize) -> Result<Self, Error> {
        let quantized = |levels| Ok(ByCodec::Quantized(Box::new(quantized::Encoder::new(codec, levels)?)));
        let by_codec = match codec {
            Codec::Raw => ByCodec::Raw,
            Codec::Lossless => ByCodec::Lossless(lossless::Encoder::new()?),
            Codec::Near => quantized(quantized::NEAR)?,
            Codec::Balanced => quantized(quantized::BALANCED)?,
        };
        Ok(Self { width, by_codec })
    }

    /// Appends the frame of one layer to `out`: K, then V, `[tokens, width]` each.
    pub(crate) fn encode(&mut self, values: &[u16], out: &mut Vec<u8>) -> Result<(), Error> {
        match &mut self.by_codec {
            ByCodec::Raw => raw::encode(values, out),
            ByCodec::Lossless(encoder) => encoder.encode(values, self.width, out)?,
            ByCodec::Quantized(encoder) => encoder.encode(values, self.width, out)?,
        }
        Ok(())
    }
}

/// Unpacks frames of any codec, one after another, and keeps tables and buffers between them.
#[derive(Default)]
pub struct Decoder {
    lossless: Option<lossless::Decoder>,
    quantized: Option<Box<quantized::Decoder>>,
}

impl Decoder {
    /// The `values` values of a frame, `2 * tokens * width`. Nothing larger is allocated, whatever the frame claims.
    pub(crate) fn decode(
        &mut self,
        codec: Codec,
        frame: &[u8],
        values: usize,
        width: usize,
    ) -> Result<Vec<u16>, Error> {
        match codec {
            Codec::Raw => raw::decode(frame, values),
            Codec::Lossless => {
                let decoder = match &mut self.lossless {
                    Some(decoder) => decoder,
                    none => none.insert(lossless::Decoder::new()?),
                };
                decoder.decode(frame, values, width)
            }
            Codec::Near | Codec::Balanced => {
                let decoder = match &mut self.quantized {
                    Some(decoder) => decoder,
                    none => none.insert(Box::new(quantized::Decoder::new()?)),
                };
                decoder.decode(codec, frame, values, width)
            }
        }
    }
}
