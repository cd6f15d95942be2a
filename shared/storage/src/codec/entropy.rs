//! zstd as a mere Huffman coder of bytes. Bytes that don't shrink are stored as they are, which their length tells.

use zstd::{
    bulk::{Compressor, Decompressor},
    zstd_safe::{self, CParameter, Strategy},
};

use super::Error;

pub(super) struct Packer {
    compressor: Compressor<'static>,
    packed: Vec<u8>,
}

impl Packer {
    /// The match finder is made so weak that nearly all bytes are literals, since our symbols repeat in frequency and not
    /// in sequence, and the search would cost most of the time.
    pub(super) fn new() -> Result<Self, Error> {
        let mut compressor = Compressor::new(1).map_err(Error::Zstd)?;
        for parameter in [
            CParameter::Strategy(Strategy::ZSTD_fast),
            CParameter::HashLog(6),
            CParameter::MinMatch(7),
            CParameter::TargetLength(0),
        ] {
            compressor.set_parameter(parameter).map_err(Error::Zstd)?;
        }
        Ok(Self { compressor, packed: Vec::new() })
    }

    /// At most as many bytes as there are symbols.
    pub(super) fn pack<'a>(&'a mut self, symbols: &'a [u8]) -> Result<&'a [u8], Error> {
        self.packed.clear();
        self.packed.reserve(zstd_safe::compress_bound(symbols.len()));
        self.compressor.compress_to_buffer(symbols, &mut self.packed).map_err(Error::Zstd)?;
        Ok(if self.packed.len() < symbols.len() { &self.packed } else { symbols })
    }
}

pub(super) struct Unpacker {
    decompressor: Decompressor<'static>,
}

impl Unpacker {
    pub(super) fn new() -> Result<Self, Error> {
        Ok(Self { decompressor: Decompressor::new().map_err(Error::Zstd)? })
    }

    /// Fills `symbols` exactly; bytes that hold more or fewer are refused.
    pub(super) fn unpack(&mut self, packed: &[u8], symbols: &mut [u8]) -> Result<(), Error> {
        if packed.len() == symbols.len() {
            symbols.copy_from_slice(packed);
            return Ok(());
        }
        let found = self.decompressor.decompress_to_buffer(packed, symbols).map_err(Error::Zstd)?;
        if found != symbols.len() {
            return Err(Error::Symbols { expected: symbols.len(), found });
        }
        Ok(())
    }
}
