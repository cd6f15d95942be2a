//! The services beside the stages: the gateway and the planner.

use core::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

use crate::Bytes;

/// The HTTP interface.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gateway {
    /// Gateways that `baton up` starts: one or none. More are started elsewhere.
    pub replicas: usize,
    /// Address and port; port 0 takes any that is free.
    pub listen: SocketAddr,
    /// Path of the file of API keys. Without it everybody is the tenant `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys_file: Option<String>,
    /// Whether others than this machine may come without keys.
    pub open: bool,
    /// Names of hosts under which requests may come without keys, besides this machine's own and `listen`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Sites whose pages a browser may show the answers to, as in `https://app.example.org`; `*` is every site.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cors_origins: Vec<String>,
    /// Connections at a time.
    pub max_connections: usize,
    /// Bytes of requests and answers that are in memory at a time.
    pub body_memory: Bytes,
    /// Batches that a gateway drives at a time; 0 leaves them to others.
    pub batches: usize,
    /// A batch or webhook whose gateway has not been heard of for this long goes to another.
    #[serde(serialize_with = "super::duration")]
    pub ack_wait: Duration,
    /// Bytes that a batch's output file may have, and its error file: a batch whose answers have more ends as failed, with
    /// those that fit.
    pub max_output: Bytes,
    /// Ranges of internal addresses, as in `10.0.0.0/8`, that webhooks may call all the same.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub webhook_allow: Vec<String>,
}

/// What decides how many workers serve prefill and how many decode.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Planner {
    /// Whether `baton up` starts a planner.
    pub enabled: bool,
    /// Whether the workers that `baton up` starts for prefill and decode may change to the other.
    pub roles: Roles,
    /// Between two decisions.
    #[serde(serialize_with = "super::duration")]
    pub interval: Duration,
    /// About how long a worker that changes its role serves neither.
    #[serde(serialize_with = "super::duration")]
    pub drain: Duration,
    /// Path of a profile that `baton calibrate` wrote. Without it the planner judges jobs by how busy their workers were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// How many workers may prefill.
    pub prefill: Bounds,
    /// How many workers may decode.
    pub decode: Bounds,
}

/// What prefill's and decode's workers may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Roles {
    /// Each worker serves its stage for as long as it lives.
    Fixed,
    /// Each may serve either stage, one at a time.
    Flexible,
}

/// Workers of a stage that the planner keeps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bounds {
    /// The planner leaves at least this many.
    pub floor: usize,
    /// The planner makes no more than this many.
    pub ceiling: usize,
}
