//! A connection to the plan's broker, and how the plan wants the broker's streams kept.

use std::path::PathBuf;

use baton_bus::{Bus, Retention, connection::pressure::Backlog};
use baton_contract::{Name, subject::Layout};
use baton_topology::{Broker, BrokerUrl, Plan};

use crate::Error;

/// Connects to the plan's broker, whose URL must be known. `name` names the connection.
pub async fn connect(plan: &Plan, name: &str) -> Result<Bus, Error> {
    reach(&plan.root, &plan.broker, name).await
}

/// Connects to a broker whose URL must be known.
pub async fn reach(root: &Name, broker: &Broker, name: &str) -> Result<Bus, Error> {
    let BrokerUrl::Servers(url) = &broker.url else { return Err(Error::NoBroker) };
    let options = baton_bus::Options {
        url: url.clone(),
        credentials: broker.credentials.clone().map(PathBuf::from),
        name: name.to_owned(),
        layout: Layout::new(root.clone()),
    };
    Ok(Bus::connect(options).await?)
}

/// Does a process's work, and makes again meanwhile what it needs of the broker. It fails when the connection dies, without
/// which the work cannot be done.
pub async fn keeping<T, E: From<Error>>(
    plan: &Plan,
    bus: &Bus,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let retention = retention(plan);
    tokio::select! {
        biased;
        done = work => done,
        died = bus.died() => Err(Error::from(died).into()),
        never = bus.keep(&retention) => match never {},
    }
}

/// How the plan wants its streams kept.
pub fn retention(plan: &Plan) -> Retention {
    let backlog = Backlog {
        messages: plan.limits.backlog_messages as u64,
        bytes: plan.limits.backlog_bytes.map(|bytes| bytes.0),
        of_tenant: plan.limits.tenant_backlog.map(|messages| messages as u64),
    };
    Retention { replicas: plan.broker.replicas, results: plan.results.keep, backlog, lanes: plan.lanes.clone() }
}
