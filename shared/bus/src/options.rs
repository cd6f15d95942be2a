//! How to reach the broker, and how a pipeline's streams are kept.

use std::{path::PathBuf, time::Duration};

use baton_contract::{Name, subject::Layout};

use crate::connection::pressure::Backlog;

/// How to reach the broker.
#[derive(Clone, Debug)]
pub struct Options {
    /// `nats://` or `tls://` URLs, separated by commas; `user:password@` or `token@` before a host is whom to come as.
    pub url: String,
    /// A NATS credentials file (JWT and seed), read for every connection.
    pub credentials: Option<PathBuf>,
    /// Names the connection in the broker's monitoring.
    pub name: String,
    /// The names of the pipeline's subjects, streams and keys.
    pub layout: Layout,
}

/// How the streams are kept.
#[derive(Clone, Debug)]
pub struct Retention {
    /// Copies of each stream in a cluster: 1, 3 or 5.
    pub replicas: usize,
    /// How long results and job records are kept.
    pub results: Duration,
    /// How much may wait for each stage.
    pub backlog: Backlog,
    /// The lanes whose requests are taken.
    pub lanes: Vec<Name>,
}
