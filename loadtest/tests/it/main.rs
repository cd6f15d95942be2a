//! What the load client does, by its library and its program.

mod chaos;
mod peers;
mod prefixes;
