//! Where admitted jobs wait for their turn, so that no tenant's backlog is in another's way.
//!
//! The queues of prefill and decode are first come, first served, and therefore kept short: [`Gate`] passes an admitted job
//! on to them while they are, and lets it wait otherwise, in a stream where each model, lane and tenant has its own subject.
//! One worker at a time ([`Releaser`]) moves what waits to the queues as room comes, taking the tenants in turn
//! (`rounds`, which is pure). A job is moved by storing it in the queue, under the id that ingest would have used, and then
//! removing it here: at every moment it is somewhere, and if it is in two places, one of them is settled by the job's claim.
//!
//! How many jobs of a tenant are past this point is what the queues hold under its subjects, for a message leaves a queue
//! when its successor is durable: no count that a crash could falsify is kept anywhere.

pub(crate) mod backlog;
mod gate;
mod heads;
pub(crate) mod model_lane;
mod reading;
mod releaser;
mod rounds;
mod share;

pub use self::{
    gate::Gate,
    releaser::Releaser,
    share::{Options, Share},
};
