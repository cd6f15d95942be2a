//! Whether everything works that a pipeline needs, on this machine and in its broker. What these checks find is for people.

mod check;
mod engines;
mod pipeline;

use std::path::PathBuf;

use baton_provision::{
    guard,
    home::{self, PipelineHome},
    private::open_to_others,
    server::{self, Server},
    setup::Setup,
};
use baton_topology::{BrokerUrl, Model, Plan, StoreUrl, Told};
use tokio::task::spawn_blocking;

pub use self::{
    check::{Check, Fault},
    engines::engines,
};
use crate::{Found, bus};

/// Checks a pipeline whose broker is known. With it comes the plan, if there is one to go by.
pub async fn running(found: &Found) -> (Vec<Check>, Option<Plan>) {
    let url = &found.reach.broker.url;
    let reached = async {
        let bus = bus::reach(&found.reach.root, &found.reach.broker, "baton-doctor").await?;
        let version = bus.check().await?;
        Ok::<_, Fault>((bus, version))
    };
    let (bus, version) = match reached.await {
        Ok(reached) => reached,
        Err(error) => return (vec![Check::new("broker", Err(error))], None),
    };
    let mut checks = vec![Check::new("broker", Ok(format!("nats-server {version} at {url}, JetStream on")))];
    let plan = pipeline::checks(found, &bus, &mut checks).await;
    if let Some(plan) = &plan {
        checks.push(Check::new("private files", private(plan)));
    }
    (checks, plan)
}

/// Checks, where no pipeline runs, whether an embedded one could.
pub async fn idle(told: Told, plan: &Plan) -> Vec<Check> {
    let mut checks = vec![Check::new("broker", embedded_broker(plan).await)];
    let store = async {
        let found = Found { reach: told.reach()?, told, embedded: Some(PipelineHome::new(&plan.root)?) };
        let mut plan = plan.clone();
        found.place_store(&mut plan);
        pipeline::store(&plan, None).await
    };
    checks.push(Check::new("store", store.await));
    checks.push(Check::new("private files", private(plan)));
    checks
}

/// An embedded broker starts, and has JetStream on.
async fn embedded_broker(plan: &Plan) -> Result<String, Fault> {
    let binary = spawn_blocking(|| Setup::from_environment(false)?.ensure_nats_server()).await??;
    let directory = home::home()?.join("doctor").join(std::process::id().to_string());
    let options = server::Options {
        binary: binary.clone(),
        directory: directory.clone(),
        launcher: guard::launcher()?,
        sync_always: false,
    };
    let server = Server::start(options).await?;
    let mut plan = plan.clone();
    plan.broker.url = BrokerUrl::Servers(server.url().to_owned());
    let checked = async { Ok::<_, Fault>(bus::connect(&plan, "baton-doctor").await?.check().await?) }.await;
    server.stop().await?;
    // What is left is small and in Baton's own folder.
    let _ = std::fs::remove_dir_all(&directory);
    Ok(format!("embedded nats-server {} ({}) starts, JetStream on", checked?, binary.display()))
}

/// Nobody but their owner can read the files that hold what users said, or secrets. Where secrets are mounted for everybody to
/// read, as in containers, that is told and not counted as a fault.
fn private(plan: &Plan) -> Result<String, Fault> {
    let home = PipelineHome::new(&plan.root)?;
    let mut kept = vec![home.directory];
    match &plan.store.url {
        StoreUrl::Embedded => {}
        StoreUrl::Url(url) => kept.extend(url.strip_prefix("file://").map(PathBuf::from)),
    }
    kept.extend(plan.store.cache_path.as_ref().map(PathBuf::from));
    let open = |paths: &[PathBuf]| {
        let open = paths.iter().filter_map(|path| Some(format!("{} ({:03o})", path.display(), open_to_others(path)?)));
        open.collect::<Vec<_>>().join(", ")
    };
    let found = open(&kept);
    if !found.is_empty() {
        return Err(Fault(format!("others may read {found}: chmod 700 keeps them out")));
    }
    let of_engines = plan.models.values().filter_map(|model| match model {
        Model::Upstream(upstream) => upstream.api_key_file.as_ref(),
        _ => None,
    });
    let secrets = [&plan.gateway.keys_file, &plan.broker.credentials].into_iter().flatten().chain(of_engines);
    let found = open(&secrets.map(PathBuf::from).collect::<Vec<_>>());
    Ok(match found.is_empty() {
        true => "only their owner can read them".into(),
        false => format!("others may read {found}: chmod 600 keeps them out"),
    })
}
