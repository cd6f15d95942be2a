//! What a pipeline needs in the broker: streams, buckets and consumers.
//!
//! Two ways, and no third: [`Bus::provision`] creates what is missing and leaves what stands as it is; everybody may call it, at
//! any time. [`Bus::apply`] also changes what stands, and is for those only who are asked to change a pipeline. What somebody
//! else set on a stream (where it is placed, whether it is compressed) stays in both.

mod consumers;
pub mod electing;
mod keep;
pub mod settings;
mod streams;
pub(crate) mod wanted;

pub use self::wanted::Change;
