//! Hand-written CPU kernels behind the engine's operations on `flex`.
//!
//! Every output is one fixed sequence of IEEE operations: the order of a reduction depends on nothing but the reduction
//! itself, never on the number of rows, the tiling, the threads or the instruction set. So AVX-512, AVX2 and portable code
//! agree to the bit, and so does a row whatever its neighbours.
//!
//! The bodies are generic over [`Isa`] and safe; [`isa`] alone touches intrinsics.

mod activations;
mod attention;
mod bytes_tile;
mod exact_attention;
mod fast_attention;
mod heads;
mod isa;
mod linear;
mod packed;
mod pages;
mod rectangle;
mod rows;
mod tile;
mod vectors;

pub(crate) use attention::{attention, copy_imported};
pub(crate) use heads::{Attention, HeadNorms, Rotation};
pub(crate) use isa::Level;
pub(crate) use linear::{Activation, Mode, Normed, Then, linear};
pub(crate) use packed::{BLOCK, Format, Matrix, PANEL, Quantized, Rows, pack};
pub(crate) use pages::{PAGE, Pages, Quantized as QuantizedPages, Segment, page_bytes};
pub(crate) use rows::rms_norm;

#[cfg(test)]
mod tests;
