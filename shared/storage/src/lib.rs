//! Where the KV cache of a prompt rests between prefill and decode: names for runs of tokens, a packed format with
//! codecs, and object stores that hold it.
//!
//! Users' files, such as batches of requests and their answers, lie in the same stores ([`files`]).
//!
//! This crate owns the KV chunk format, its codecs, the naming of chunks, and every access to an object store. It is the
//! only user of `object_store` and `zstd`.
//!
//! It must never:
//! * allocate by a number that stored bytes claim: every size comes from the model's [`Shape`](baton_contract::kv::Shape)
//!   and is checked first;
//! * return values that differ from those put: a damaged object is an error, and the caller recomputes;
//! * report an object as put before it is durable (see [`Store`]);
//! * build a path from anything but a hash ([`ObjectPath`]);
//! * know about jobs, tenants or messages beyond the bytes that go into a hash.

#![forbid(unsafe_code)]
#![warn(missing_docs, unreachable_pub)]

pub mod cache;
pub mod chunk;
pub mod codec;
pub mod collect;
pub mod files;
mod id;
pub mod key;
pub mod kv;
pub mod seal;
pub mod store;

pub use cache::Cache;
pub use codec::Codec;
pub use key::{ChunkId, Piece, PieceKind, Root};
pub use kv::KvStore;
pub use seal::SealKey;
pub use store::{ObjectPath, Put, Store};
