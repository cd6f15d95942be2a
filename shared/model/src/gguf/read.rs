//! Reads the metadata and the tensor directory of one GGUF file.

use std::collections::BTreeMap;

use super::error::{Error, MAGIC, damaged};
use crate::checkpoint::{self, Bytes, Entry, Value};
use crate::quants::Type;

const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 20;
const MAX_DIMENSIONS: usize = 4;
const MAX_DEPTH: usize = 4;
/// Values in all arrays together: a vocabulary of 256k has under a million, and each costs 32 bytes of memory.
const MAX_VALUES: u64 = 1 << 23;

/// The metadata and the tensors of a file.
pub(super) type Contents = (BTreeMap<String, Value>, BTreeMap<String, Entry>);

/// Reads the file that has this place among the model's.
pub(super) fn parse(bytes: &[u8], file: usize) -> Result<Contents, Error> {
    if !bytes.starts_with(MAGIC) {
        return Err(Error::Magic { found: bytes.iter().take(MAGIC.len()).copied().collect() });
    }
    let mut reader = Reader { bytes, at: MAGIC.len(), values: 0 };
    let version = reader.u32("the version")?;
    if !(2..=3).contains(&version) {
        return Err(Error::Version { found: version });
    }
    let tensor_count = reader.u64("the tensor count")?;
    let pair_count = reader.u64("the metadata count")?;

    let mut metadata = BTreeMap::new();
    for _ in 0..pair_count {
        let key = reader.string("a metadata key")?;
        let kind = reader.u32("a metadata type")?;
        let value = reader.value(kind, 0)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(damaged("a metadata key must occur once", key));
        }
    }
    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(value) => value
            .as_u64()
            .filter(|alignment| alignment.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(alignment))
            .ok_or_else(|| damaged("general.alignment must be a power of two of at least 8", format!("{value:?}")))?,
    };

    let mut directory = Vec::new();
    for _ in 0..tensor_count {
        directory.push(reader.tensor()?);
    }
    let data = (reader.at as u64).next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for info in directory {
        let (name, entry) = info.locate(data, alignment, bytes.len(), file)?;
        if tensors.contains_key(&name) {
            return Err(damaged("a tensor must occur once", name));
        }
        tensors.insert(name, entry);
    }
    match checkpoint::overlapping(&tensors) {
        Some([one, other]) => Err(damaged("tensors must not overlap", format!("{one} and {other}"))),
        None => Ok((metadata, tensors)),
    }
}

/// A line of the tensor directory, not yet checked against the file's size.
struct Info {
    name: String,
    dims: Vec<u64>,
    kind: u32,
    offset: u64,
}

impl Info {
    fn locate(self, data: u64, alignment: u64, file_len: usize, file: usize) -> Result<(String, Entry), Error> {
        let Info { name, dims, kind, offset } = self;
        let Some(dtype) = Type::from_ggml(kind) else {
            return Err(Error::UnsupportedType { tensor: name, found: Type::describe_ggml(kind) });
        };
        if !offset.is_multiple_of(alignment) {
            return Err(damaged(
                "a tensor's offset must be a multiple of the alignment",
                format!("{offset} for {name}"),
            ));
        }
        let range = || {
            let row = dims.first().copied().filter(|row| row.is_multiple_of(dtype.block_len() as u64))?;
            let rows = dims[1..].iter().try_fold(1u64, |product, dim| product.checked_mul(*dim))?;
            let len = (row / dtype.block_len() as u64).checked_mul(dtype.block_bytes() as u64)?.checked_mul(rows)?;
            let start = data.checked_add(offset)?;
            let end = start.checked_add(len).filter(|end| *end <= file_len as u64)?;
            let dims = dims.iter().map(|dim| usize::try_from(*dim).ok()).collect::<Option<Vec<_>>>()?;
            // Dimensions of zero would let the others be of any size.
            dims.iter().all(|dim| *dim > 0).then_some((usize::try_from(start).ok()?..usize::try_from(end).ok()?, dims))
        };
        let Some((range, dims)) = range() else {
            let found = format!("{name} with {dims:?} {dtype:?} elements at {offset} in a file of {file_len} bytes");
            return Err(damaged("a tensor must consist of whole blocks inside the file", found));
        };
        Ok((name, Entry { dtype, dims, bytes: Bytes::Mapped { file, range } }))
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Array elements read so far.
    values: u64,
}

impl<'a> Reader<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, len: u64, what: &'static str) -> Result<&'a [u8], Error> {
        let truncated = Error::Truncated { what, at: self.at, needed: len, left: self.left() };
        let len = usize::try_from(len).ok().filter(|len| *len <= self.left()).ok_or(truncated)?;
        let taken = &self.bytes[self.at..self.at + len];
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Error> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn string(&mut self, what: &'static str) -> Result<String, Error> {
        let len = self.u64(what)?;
        let bytes = self.take(len, what)?;
        match str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => Err(damaged("a string must be UTF-8", format!("{error} in {what}"))),
        }
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value, Error> {
        const WHAT: &str = "a metadata value";
        Ok(match kind {
            0 => Value::Unsigned(u8::from_le_bytes(self.array(WHAT)?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.array(WHAT)?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array(WHAT)?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array(WHAT)?).into()),
            4 => Value::Unsigned(self.u32(WHAT)?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array(WHAT)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array(WHAT)?).into()),
            7 => match u8::from_le_bytes(self.array(WHAT)?) {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                other => return Err(damaged("a bool must be 0 or 1", other.to_string())),
            },
            8 => Value::String(self.string(WHAT)?),
            9 => Value::Array(self.values(depth + 1)?),
            10 => Value::Unsigned(self.u64(WHAT)?),
            11 => Value::Signed(i64::from_le_bytes(self.array(WHAT)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(WHAT)?)),
            other => return Err(damaged("a metadata type must be 0 to 12", other.to_string())),
        })
    }

    fn values(&mut self, depth: usize) -> Result<Vec<Value>, Error> {
        if depth > MAX_DEPTH {
            return Err(damaged("arrays may nest 4 deep", format!("depth {depth}")));
        }
        let kind = self.u32("an array's type")?;
        let count = self.u64("an array's length")?;
        self.values = self.values.saturating_add(count);
        if self.values > MAX_VALUES {
            return Err(damaged("arrays may hold 8388608 values together", self.values.to_string()));
        }
        // Every value takes at least one byte, which bounds the count before it is trusted.
        if count > self.left() as u64 {
            return Err(Error::Truncated { what: "an array", at: self.at, needed: count, left: self.left() });
        }
        let mut values = Vec::with_capacity(count as usize);
        for _ in 0..count {
            values.push(self.value(kind, depth)?);
        }
        Ok(values)
    }

    fn tensor(&mut self) -> Result<Info, Error> {
        let name = self.string("a tensor's name")?;
        let count = self.u32("a tensor's dimension count")?;
        if !(1..=MAX_DIMENSIONS).contains(&(count as usize)) {
            return Err(damaged("a tensor must have 1 to 4 dimensions", format!("{count} for {name}")));
        }
        let mut dims = Vec::new();
        for _ in 0..count {
            dims.push(self.u64("a tensor's dimensions")?);
        }
        let kind = self.u32("a tensor's type")?;
        let offset = self.u64("a tensor's offset")?;
        Ok(Info { name, dims, kind, offset })
    }
}
