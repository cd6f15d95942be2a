//! The beginning of a run: everything is drawn, and broker, workers and gateways start.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::Mutex;

use super::{
    ACK_WAIT, Error, Options,
    broker::{Broker, free_port},
    clock,
    inflict::{Pipeline, Place},
    kind::{Kind, Kinds, Role},
    processes::{Program, Worker},
    proxy::Proxy,
    run::Run,
    schedule,
    store::Directory,
    workload::{Shape, Workload},
};

impl<'a> Run<'a> {
    /// Draws everything, and starts broker and workers below `place`.
    pub async fn prepare(options: &'a Options, seed: u64, place: &Path) -> Result<Self, Error> {
        let lasts = Duration::from_secs_f64(options.minutes * 60.0);
        let mean = Duration::from_secs_f64(options.fault_every);
        let workers = options.workers as usize;
        let faketime = clock::library().await;
        let kinds = Kinds::choose(&options.only, &options.without, options.surroundings(faketime.is_some()));
        let shape = Shape {
            jobs: options.jobs as usize,
            distinct: options.distinct() as usize,
            lasts,
            max_tokens: options.max_tokens,
            copies: kinds.has(Kind::Copies),
            large: kinds.has(Kind::LargeResults),
        };
        let workload = Workload::draw(seed, shape)?;
        let logs = place.join("logs");
        std::fs::create_dir(&logs).map_err(|source| Error::Directory { path: logs.clone(), source })?;
        let baton = options.baton.clone().unwrap_or_else(beside_this_program);
        let (mut settings, mut environment) = (options.settings(), Vec::new());
        let (mut store, mut store_link) = (None, None);
        match &options.store {
            Some(url) => {
                settings.push(format!("store.url={url}"));
                store_link = endpoint_proxy(&mut environment).await?;
            }
            None => {
                let unusable = |source| Error::Directory { path: place.to_owned(), source };
                let directory = Directory::create(place).map_err(unusable)?;
                settings.push(format!("store.url=file://{}", directory.root().display()));
                store = Some(Mutex::new(directory));
            }
        }
        let program = Program::new(baton, settings, environment, logs);
        let nats_server = match &options.nats_server {
            Some(path) => path.clone(),
            None => brought_nats_server(&program).await?,
        };
        let (mut places, mut gateways) = (Vec::new(), Vec::new());
        for role in Role::ALL {
            let mut of_role = Vec::new();
            for number in 0..workers {
                let link = Proxy::start().await.map_err(Error::Proxy)?;
                let port = free_port().await?;
                let broker = format!("nats://{}", link.address());
                let worker = Worker::new(program.clone(), role, number, broker, port);
                of_role.push(Place { worker: Mutex::new(worker), link });
                if role == Role::Gateway {
                    gateways.push(format!("http://127.0.0.1:{port}"));
                }
            }
            places.push(of_role);
        }
        // nats-server's own limit, and that of the broker that `baton up` starts.
        let max_payload = if shape.large { "1MB" } else { "8MB" };
        let broker = Broker::new(&program, nats_server, place, options.cluster, max_payload).await?;
        let pipeline = Pipeline {
            program: program.clone(),
            faketime,
            places,
            broker: Mutex::new(broker),
            submitter: Proxy::start().await.map_err(Error::Proxy)?,
            watcher: Proxy::start().await.map_err(Error::Proxy)?,
            store,
            store_link,
        };
        pipeline.start_broker(&mut *pipeline.broker.lock().await).await?;
        if options.store.is_some() {
            // A store that refuses everything would look like one that is disturbed.
            program.baton(&["doctor"], &format!("nats://{}", pipeline.watcher.address())).await?;
        }
        pipeline.start_workers().await?;
        let faults = schedule::draw(seed, lasts, mean, workers, ACK_WAIT, &kinds);
        let (pipeline, workload) = (Arc::new(pipeline), Arc::new(workload));
        Ok(Self { options, seed, program, pipeline, gateways, kinds, faults, workload })
    }
}

/// If the store's endpoint can be put behind a proxy, does so.
async fn endpoint_proxy(environment: &mut Vec<(String, String)>) -> Result<Option<Proxy>, Error> {
    const ENDPOINT: &str = "AWS_ENDPOINT_URL";
    let Some(host) = std::env::var(ENDPOINT).ok().and_then(|url| url.strip_prefix("http://").map(str::to_owned)) else {
        return Ok(None);
    };
    let proxy = Proxy::start().await.map_err(Error::Proxy)?;
    proxy.lead_to(vec![host.trim_end_matches('/').to_owned()]);
    environment.push((ENDPOINT.to_owned(), format!("http://{}", proxy.address())));
    Ok(Some(proxy))
}

async fn brought_nats_server(program: &Program) -> Result<PathBuf, Error> {
    let output = program.bare(&["setup", "--json"]).await?;
    let paths: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let path = paths["nats_server"].as_str().map(PathBuf::from);
    path.ok_or_else(|| Error::Command { command: "setup --json".into(), problem: "it names no nats_server".into() })
}

fn beside_this_program() -> PathBuf {
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name("baton"));
    beside.filter(|path| path.exists()).unwrap_or_else(|| "baton".into())
}
