//! The KV memory of a model: for every layer, pages that the open sequences share out among them.

use baton_contract::kv;
use baton_model::config::Heads;
use burn::tensor::{DType, Device, Tensor, TensorData};
use half::bf16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::vec::HalfBitsVecExt;
use rayon::prelude::*;

use super::failure::{Failure, caught};
use super::operators::Operators;
use super::stock_cache::{self, StockCache};
use crate::kernels::{self, Level, Mode, PAGE, Pages, QuantizedPages, Segment};

/// The KV cache of one layer.
pub(super) enum Cache {
    Kernels(KernelCache),
    Stock(Box<StockCache>),
}

/// Plain memory, as the kernels read it.
pub(super) struct KernelCache {
    heads: Heads,
    pages: Pages<Vec<bf16>>,
    copies: Option<QuantizedPages<Vec<u8>, Vec<f32>>>,
}

/// A cache's copies in 8 bits, as the kernels write them.
type CopiesMut<'a> = QuantizedPages<&'a mut [u8], &'a mut [f32]>;

/// Bytes that one page takes in all layers.
pub(super) fn page_bytes(operators: Operators, device: &Device, heads: Heads, layers: usize) -> usize {
    let values = 2 * PAGE * heads.kv_width();
    let bytes = match operators {
        Operators::Kernels(Mode::Exact) => values * size_of::<bf16>(),
        Operators::Kernels(Mode::Fast) => {
            let copies = 2 * (kernels::page_bytes(heads) + heads.kv * PAGE * size_of::<f32>());
            values * size_of::<bf16>() + copies
        }
        Operators::Stock => values * stock_cache::kv_dtype(device).size(),
    };
    layers * bytes
}

impl Cache {
    /// A layer's cache of so many pages. On the CPU memory is taken from the system when a page is first written.
    pub(super) fn new(operators: Operators, device: &Device, heads: Heads, pages: usize) -> Cache {
        let (slots, width) = (pages * PAGE, heads.kv_width());
        match operators {
            Operators::Kernels(mode) => Cache::Kernels(KernelCache {
                heads,
                pages: Pages { keys: zeros(slots * width), values: zeros(slots * width) },
                copies: (mode == Mode::Fast).then(|| {
                    let bytes = || vec![0; pages * kernels::page_bytes(heads)];
                    let scales = || vec![0.0; slots * heads.kv];
                    QuantizedPages { keys: bytes(), values: bytes(), key_scales: scales(), value_scales: scales() }
                }),
            }),
            Operators::Stock => {
                let zeros = || Tensor::zeros([slots, width], (device, stock_cache::kv_dtype(device)));
                Cache::Stock(Box::new(StockCache { keys: zeros(), values: zeros() }))
            }
        }
    }

    /// Writes the positions of a segment: bf16 bit patterns, all keys and then all values.
    pub(super) fn write(&mut self, segment: &Segment, bits: &[u16]) {
        match self {
            Cache::Kernels(cache) => cache.write(segment, bits),
            Cache::Stock(cache) => {
                let (device, [_, width]) = (cache.keys.device(), cache.keys.dims());
                let (keys, values) = bits.split_at(bits.len() / 2);
                let tensor = |bits: &[u16]| {
                    let values = bits.reinterpret_cast::<bf16>().iter().map(|value| value.to_f32());
                    let values = TensorData::new(values.collect::<Vec<f32>>(), [segment.rows, width]);
                    Tensor::from_data(values, (&device, DType::F32))
                };
                cache.write(&stock_cache::slots(std::slice::from_ref(segment)), tensor(keys), tensor(values));
            }
        }
    }

    /// Reads the positions of a segment, as [`Self::write`] takes them.
    pub(super) fn read(&self, segment: &Segment) -> Result<Vec<u16>, Failure> {
        match self {
            Cache::Kernels(KernelCache { heads, pages: Pages { keys, values }, .. }) => {
                let width = heads.kv_width();
                let part = |from: &[bf16], to: &mut Vec<u16>| {
                    for (slot, rows) in segment.runs() {
                        to.extend_from_slice(from[slot * width..(slot + rows.len()) * width].reinterpret_cast());
                    }
                };
                let mut bits = Vec::with_capacity(2 * segment.rows * width);
                part(keys, &mut bits);
                part(values, &mut bits);
                Ok(bits)
            }
            Cache::Stock(cache) => caught(|| {
                let mut bits = Vec::new();
                for tensor in [&cache.keys, &cache.values] {
                    for (slot, rows) in segment.runs() {
                        let part = tensor.clone().slice(slot..slot + rows.len()).cast(DType::F32);
                        let part = part.try_into_data().map_err(Failure::new)?;
                        let part = part.as_slice::<f32>().map_err(Failure::new)?;
                        bits.extend(part.iter().map(|value| bf16::from_f32(*value).to_bits()));
                    }
                }
                Ok(bits)
            }),
        }
    }
}

impl KernelCache {
    /// What the attention kernels write and read.
    pub(super) fn parts(&mut self) -> (Pages<&mut [bf16]>, Option<CopiesMut<'_>>) {
        let Pages { keys, values } = &mut self.pages;
        let copies = self.copies.as_mut().map(|copies| QuantizedPages {
            keys: &mut copies.keys[..],
            values: &mut copies.values[..],
            key_scales: &mut copies.key_scales[..],
            value_scales: &mut copies.value_scales[..],
        });
        (Pages { keys, values }, copies)
    }

    fn write(&mut self, segment: &Segment, bits: &[u16]) {
        let (heads, width) = (self.heads, self.heads.kv_width());
        let (pages, copies) = self.parts();
        let (keys, values) = bits.split_at(bits.len() / 2);
        for (to, bits) in [(&mut *pages.keys, keys), (&mut *pages.values, values)] {
            for (slot, rows) in segment.runs() {
                let from = bits[rows.start * width..rows.end * width].reinterpret_cast();
                to[slot * width..(slot + rows.len()) * width].copy_from_slice(from);
            }
        }
        if let Some(copies) = copies {
            let pages = Pages { keys: &*pages.keys, values: &*pages.values };
            kernels::copy_imported(Level::best(), heads, segment, &pages, copies);
        }
    }
}

/// Writes a block to the caches of all layers.
pub(super) fn import(
    operators: Operators,
    caches: &mut [Cache],
    segment: &Segment,
    block: &kv::Block,
) -> Result<(), Failure> {
    let write = |(cache, bits): (&mut Cache, &Vec<u16>)| cache.write(segment, bits);
    match operators {
        Operators::Kernels(_) => {
            caches.par_iter_mut().zip(&block.layers).for_each(write);
            Ok(())
        }
        Operators::Stock => caught(|| {
            caches.iter_mut().zip(&block.layers).for_each(write);
            check(caches)
        }),
    }
}

/// Fails if any of the caches has lost its contents.
pub(super) fn check(caches: &[Cache]) -> Result<(), Failure> {
    let tensors = caches.iter().flat_map(|cache| match cache {
        Cache::Kernels(_) => Vec::new(),
        Cache::Stock(cache) => vec![&cache.keys, &cache.values],
    });
    // One read for all: a sum has no contents if one of its parts has none.
    let firsts = tensors.map(|tensor| tensor.clone().slice([0..1, 0..1]).cast(DType::F32));
    let Some(sum) = firsts.reduce(|sum, first| sum + first) else { return Ok(()) };
    let sum = sum.try_into_data().map_err(Failure::new)?;
    sum.as_slice::<f32>().map_err(Failure::new)?;
    Ok(())
}

/// Memory that the system gives when it is first written.
fn zeros(len: usize) -> Vec<bf16> {
    vec![0u16; len].reinterpret_into()
}
