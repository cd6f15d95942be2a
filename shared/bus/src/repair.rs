//! What went wrong: jobs that no worker could finish, messages that no client can take, jobs that have lost their message.

pub mod dead;
pub mod described;
pub mod letter_id;
pub mod reconcile;
pub mod retry;
pub(crate) mod screen;
