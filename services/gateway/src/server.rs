//! Connections: what each may cost in time and memory, and how they end.

mod stall;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use baton_bus::Bus;
use baton_contract::{Name, causes};
use baton_storage::files::Files;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use stall::Stall;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Error, Options, State,
    auth::{Entry, Key, KeysFile},
    batches::{self, BatchStores},
    budget::Budget,
    files,
    metrics::Metrics,
    routes,
    sites::Sites,
    webhooks,
};

/// How long the head of a request may take, also on a connection that is kept open for it.
const HEAD_WITHIN: Duration = Duration::from_secs(20);
const MAX_HEADERS: usize = 64;
/// Bytes of a request's head, and those of an answer that wait for the reader.
const BUFFER_BYTES: usize = 64 << 10;
/// A reader that takes nothing for this long is gone.
const READ_WITHIN: Duration = Duration::from_secs(60);
/// How long requests that are open at the end may go on.
const DRAIN: Duration = Duration::from_secs(20);
/// After an error of the system's, such as too many open files.
const PAUSE: Duration = Duration::from_millis(200);

/// A gateway that listens.
#[derive(Debug)]
pub struct Gateway {
    listener: TcpListener,
    address: SocketAddr,
    max_connections: usize,
    /// How it drives batches.
    batches: batches::Options,
    state: State,
}

impl Gateway {
    /// Begins to listen; the pipeline's streams must be there.
    pub async fn bind(bus: Bus, options: Options) -> Result<Self, Error> {
        let Options {
            listen,
            keys_file,
            open,
            hosts,
            cors_origins,
            max_connections,
            body_memory,
            facts,
            store,
            seal,
            batches,
            webhooks,
        } = options;
        if keys_file.is_none() && !open && !listen.ip().is_loopback() {
            return Err(Error::Unguarded { address: listen });
        }
        let keys = keys_file.as_deref().map(KeysFile::open).transpose()?;
        let unheard = |source| Error::Listen { address: listen, source };
        let listener = TcpListener::bind(listen).await.map_err(unheard)?;
        let address = listener.local_addr().map_err(unheard)?;
        // Of the bytes that may be in memory, readers of streams may be behind with a part; the rest is for everything else.
        let behind = body_memory / 4;
        let (jobs, client, stores) = tokio::try_join!(bus.jobs(), bus.answers(), BatchStores::open(&bus, &batches))?;
        let sites = Sites::new(keys.is_some(), address, hosts, cors_origins);
        let clock = bus.clock();
        let started = clock.now_ms().await? / 1_000;
        let state = State {
            budget: Budget::new(body_memory - behind),
            sites: Arc::new(sites),
            clock,
            bus,
            jobs,
            client: client.within(behind as usize),
            facts: Arc::new(facts),
            files: store.map(Files::new).map(|files| match seal {
                Some(key) => files.sealed(key),
                None => files,
            }),
            stores,
            webhooks: webhooks.map(Arc::new),
            metrics: Metrics::new(),
            watch: Arc::default(),
            keys: keys.map(Arc::new),
            everybody: Arc::new(Key::new(everybody())),
            started,
            closing: CancellationToken::new(),
        };
        Ok(Self { listener, address, max_connections, batches, state })
    }

    /// Where it is found.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Serves until `shutdown`, then lets open requests end for a while.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { listener, max_connections, batches, state, .. } = self;
        let mut chores = JoinSet::new();
        chores.spawn(batches::run(state.clone(), batches.clone(), shutdown.clone()));
        chores.spawn(batches::sweep_regularly(state.clone(), batches, shutdown.clone()));
        chores.spawn(webhooks::run(state.clone(), shutdown.clone()));
        chores.spawn(files::sweep_regularly(state.clone(), shutdown.clone()));
        let closing = state.closing.clone();
        let router = routes::router(state);
        let free = Arc::new(Semaphore::new(max_connections));
        let open = GracefulShutdown::new();
        loop {
            let accepted = async {
                // Never closed.
                let permit = free.clone().acquire_owned().await.ok();
                (listener.accept().await, permit)
            };
            let (accepted, permit) = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = accepted => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let served = serve(stream, router.clone(), &open);
                    tokio::spawn(async move {
                        served.await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(error = %causes(&error), "a connection was not accepted");
                    sleep(PAUSE).await;
                }
            }
        }
        drop(listener);
        closing.cancel();
        if timeout(DRAIN, open.shutdown()).await.is_err() {
            tracing::warn!("requests were still open at the end; their clients are cut off");
        }
        chores.join_all().await;
    }
}

fn serve(stream: TcpStream, router: Router, open: &GracefulShutdown) -> impl Future<Output = ()> + use<> {
    // The first token is not to wait for a second one.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(error = %causes(&error), "a connection delays its packets");
    }
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).max_headers(MAX_HEADERS).max_buf_size(BUFFER_BYTES);
    let io = TokioIo::new(Stall::new(stream, READ_WITHIN));
    let connection = open.watch(http.serve_connection(io, TowerToHyperService::new(router)));
    async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = %causes(&error), "a connection was cut");
        }
    }
}

/// The caller where there are no keys.
fn everybody() -> Entry {
    Entry {
        name: "everybody".into(),
        sha256: String::new(),
        tenant: Name::default_tenant(),
        requests_per_minute: None,
        max_open: None,
    }
}
