//! The KV memory of a model: for every layer, pages that the open sequences share out among them.

use baton_contract::kv;
use burn::tensor::{DType, Device, Tensor, TensorData};
use half::bf16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::vec::HalfBitsVecExt;
use rayon::prelude::*;

use super::ops::Operators;
use crate::kernels::{self, Heads, Level, Mode, PAGE, Pages, QuantizedPages, Segment};

/// The KV cache of one layer.
pub(super) enum Cache {
    Kernels(KernelCache),
    Stock(StockCache),
}

/// Plain memory, as the kernels read it.
pub(super) struct KernelCache {
    heads: Heads,
    pages: Pages<Vec<bf16>>,
    copies: Option<QuantizedPages<Vec<u8>, Vec<f32>>>,
}

/// Both `[slots, kv * size]` in bf16.
pub(super) struct StockCache {
    pub(super) keys: Tensor<2>,
    pub(super) values: Tensor<2>,
}

/// Bytes that one page takes in all layers.
pub(super) fn page_bytes(operators: Operators, heads: Heads, layers: usize) -> usize {
    let exact = 2 * PAGE * heads.kv_width() * size_of::<bf16>();
    let copies = match operators {
        Operators::Kernels(Mode::Fast) => 2 * (kernels::page_bytes(heads) + heads.kv * PAGE * size_of::<f32>()),
        _ => 0,
    };
    layers * (exact + copies)
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
                let zeros = || Tensor::zeros([slots, width], (device, DType::BF16));
                Cache::Stock(StockCache { keys: zeros(), values: zeros() })
            }
        }
    }

    /// Writes the positions of a segment: bf16 bit patterns, all keys and then all values.
    pub(super) fn write(&mut self, segment: &Segment, bits: &[u16]) {
        match self {
            Cache::Kernels(cache) => cache.write(segment, bits),
            Cache::Stock(cache) => {
                let (keys, values) = bits.split_at(bits.len() / 2);
                for (tensor, bits) in [(&mut cache.keys, keys), (&mut cache.values, values)] {
                    let [_, width] = tensor.dims();
                    let new = TensorData::new(bits.reinterpret_cast::<bf16>().to_vec(), [segment.rows, width]);
                    let new = Tensor::from_data(new, (&tensor.device(), DType::BF16));
                    StockCache::put(tensor, segment, new);
                }
            }
        }
    }

    /// Reads the positions of a segment, as [`Self::write`] takes them.
    pub(super) fn read(&self, segment: &Segment) -> Vec<u16> {
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
                bits
            }
            Cache::Stock(cache) => {
                let mut bits = Vec::new();
                for tensor in [&cache.keys, &cache.values] {
                    for (slot, rows) in segment.runs() {
                        let data = tensor.clone().slice([slot..slot + rows.len()]).into_data();
                        bits.extend(data.iter::<bf16>().map(bf16::to_bits));
                    }
                }
                bits
            }
        }
    }
}

impl KernelCache {
    /// What the attention kernels write and read.
    pub(super) fn parts(&mut self) -> (Pages<&mut [bf16]>, Option<QuantizedPages<&mut [u8], &mut [f32]>>) {
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

impl StockCache {
    /// Writes the rows of a segment, `[rows, width]`.
    pub(super) fn put(to: &mut Tensor<2>, segment: &Segment, new: Tensor<2>) {
        let [_, width] = to.dims();
        for (slot, rows) in segment.runs() {
            let part = new.clone().slice([rows.clone()]);
            to.inplace(|to| to.slice_assign([slot..slot + rows.len(), 0..width], part));
        }
    }
}

/// Writes a block to the caches of all layers.
pub(super) fn import(caches: &mut [Cache], segment: &Segment, block: &kv::Block) {
    caches.par_iter_mut().zip(&block.layers).for_each(|(cache, bits)| cache.write(segment, bits));
}

/// Memory that the system gives when it is first written.
fn zeros(len: usize) -> Vec<bf16> {
    vec![0u16; len].reinterpret_into()
}
