//! What people see of figures on a terminal.
//!
//! [`table`] renders plain tables; [`figures`] writes a pipeline's figures as a line or a page; [`screen`] shows them live. [`output`] keeps what
//! others have written from steering the terminal.
//!
//! It gathers nothing: whoever calls it brings the figures.
#![forbid(unsafe_code)]
#![warn(missing_docs, unreachable_pub)]

pub mod figures;
pub mod output;
pub mod screen;
pub mod table;
