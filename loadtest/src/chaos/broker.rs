//! The broker of a run: one nats-server, or a cluster of three. Its ports and directories stay whoever has them now.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use baton_contract::causes;
use baton_load::target::http;
use nix::sys::signal::Signal;
use rand::RngExt;
use serde_json::Value;
use tokio::{
    net::TcpListener,
    process::Child,
    time::{Instant, sleep, timeout},
};

use super::{
    Error,
    processes::{Program, end, send},
    wire::Wire,
};

const START_WITHIN: Duration = Duration::from_secs(60);
const STOP_WITHIN: Duration = Duration::from_secs(10);
const ROUND: Duration = Duration::from_millis(20);
const NODES: usize = 3;
/// Below the ports that systems give to connections on their way out, so that a node that is down finds its own free again.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// One nats-server's place.
#[derive(Debug)]
struct Node {
    directory: PathBuf,
    /// For clients.
    port: u16,
    /// For the other nodes, and for questions over HTTP.
    route: u16,
    monitor: u16,
    child: Option<Child>,
}

/// All nodes, one or three.
#[derive(Debug)]
pub struct Broker {
    program: Program,
    binary: PathBuf,
    max_payload: &'static str,
    nodes: Vec<Node>,
}

/// A port that nobody has now.
pub async fn free_port() -> Result<u16, Error> {
    loop {
        let port = rand::rng().random_range(PORTS);
        if TcpListener::bind(("127.0.0.1", port)).await.is_ok() {
            return Ok(port);
        }
    }
}

impl Broker {
    /// A broker that keeps its data below `place`.
    pub async fn new(
        program: &Program,
        binary: PathBuf,
        place: &Path,
        cluster: bool,
        max_payload: &'static str,
    ) -> Result<Self, Error> {
        let mut nodes = Vec::new();
        for number in 0..if cluster { NODES } else { 1 } {
            let directory = place.join(format!("nats-{}", number + 1));
            let unusable = |source| Error::Directory { path: directory.clone(), source };
            std::fs::create_dir_all(&directory).map_err(unusable)?;
            let (port, route, monitor) = (free_port().await?, free_port().await?, free_port().await?);
            nodes.push(Node { directory, port, route, monitor, child: None });
        }
        let it = Self { program: program.clone(), binary, max_payload, nodes };
        for number in 0..it.nodes.len() {
            let path = it.nodes[number].directory.join("nats.conf");
            std::fs::write(&path, it.configuration(number)).map_err(|source| Error::Directory { path, source })?;
        }
        Ok(it)
    }

    /// As infra/nats/embedded.conf, but for the limit and the cluster.
    fn configuration(&self, number: usize) -> String {
        let Node { directory, port, route, monitor, .. } = &self.nodes[number];
        let mut text = format!(
            "listen: \"127.0.0.1:{port}\"\nmax_payload: {}\njetstream {{ store_dir: \"{}\", max_memory_store: 64MB, \
             max_file_store: 16GB, sync_interval: \"10s\" }}\n",
            self.max_payload,
            directory.join("streams").display()
        );
        if self.nodes.len() > 1 {
            let others: Vec<_> = self.nodes.iter().map(|node| format!("\"nats://127.0.0.1:{}\"", node.route)).collect();
            // Clients know the proxies alone.
            text += &format!(
                "server_name: node-{number}\nhttp: \"127.0.0.1:{monitor}\"\ncluster {{ name: chaos, listen: \
                 \"127.0.0.1:{route}\", no_advertise: true, routes: [{}] }}\n",
                others.join(", ")
            );
        }
        text
    }

    /// The `host:port` of every node.
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect()
    }

    /// A connection to a node that answers, as an operator has one.
    pub async fn operator(&self) -> Result<Wire, Error> {
        let mut failed = None;
        for address in self.addresses() {
            match Wire::connect(&address).await {
                Ok(wire) => return Ok(wire),
                Err(error) => failed = Some(error),
            }
        }
        Err(Error::Operator(failed.unwrap_or_else(|| std::io::ErrorKind::NotConnected.into())))
    }

    /// Starts all nodes that do not run, and waits until the broker takes messages.
    pub async fn start(&mut self) -> Result<(), Error> {
        for number in 0..self.nodes.len() {
            self.start_node(number)?;
        }
        self.usable().await
    }

    fn start_node(&mut self, number: usize) -> Result<(), Error> {
        let Self { program, binary, nodes, .. } = self;
        let node = &mut nodes[number];
        if node.child.is_none() {
            let directory = &node.directory;
            let words = program.launcher().into_iter().chain([binary.clone().into(), "-c".into()]);
            let words =
                words.chain([directory.join("nats.conf").into(), "-l".into(), directory.join("nats.log").into()]);
            let mut command = program.command(words);
            command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null());
            let failed =
                |error: std::io::Error| Error::Node { log: directory.join("nats.log"), problem: causes(&error) };
            node.child = Some(command.spawn().map_err(failed)?);
        }
        Ok(())
    }

    async fn usable(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + START_WITHIN;
        loop {
            let mut well = true;
            for node in &self.nodes {
                well &= node.well(self.nodes.len() > 1).await;
            }
            if well {
                return Ok(());
            }
            for node in &mut self.nodes {
                if node.ended() {
                    return Err(node.failed("it ended"));
                }
            }
            if Instant::now() > deadline {
                return Err(self.nodes[0].failed("the broker was not usable in time"));
            }
            sleep(ROUND).await;
        }
    }

    /// The nodes that a fault about the node of a number hits.
    fn one(&self, number: usize) -> usize {
        number % self.nodes.len()
    }

    /// Asks a node to end, and waits until it has.
    pub async fn stop_node(&mut self, number: usize) {
        let number = self.one(number);
        if let Some(mut child) = self.nodes[number].child.take() {
            send(&child, Signal::SIGTERM);
            if timeout(STOP_WITHIN, child.wait()).await.is_err() {
                end(&mut child).await;
            }
        }
    }

    /// Ends a node at once, as a crash would.
    pub async fn kill_node(&mut self, number: usize) {
        let number = self.one(number);
        if let Some(mut child) = self.nodes[number].child.take() {
            end(&mut child).await;
        }
    }

    pub async fn stop(&mut self) {
        for number in 0..self.nodes.len() {
            self.stop_node(number).await;
        }
    }

    /// Ends all nodes at once, and removes all that they have stored.
    pub async fn wipe(&mut self) -> Result<(), Error> {
        for number in 0..self.nodes.len() {
            self.kill_node(number).await;
        }
        for node in &self.nodes {
            let path = node.directory.join("streams");
            std::fs::remove_dir_all(&path).map_err(|source| Error::Directory { path, source })?;
        }
        Ok(())
    }

    /// Stops all nodes where they are, and has them go on.
    pub fn pause(&self) {
        self.nodes.iter().for_each(|node| node.send(Signal::SIGSTOP));
    }

    pub fn resume(&self) {
        self.nodes.iter().for_each(|node| node.send(Signal::SIGCONT));
    }

    /// Stops the cluster's leader where it is, or the follower of a number; which node it was, if there is a leader.
    pub async fn freeze(&self, follower: Option<usize>) -> Option<usize> {
        let leader = self.leader().await?;
        let number = match follower {
            None => leader,
            Some(number) => (leader + 1 + number % (self.nodes.len() - 1)) % self.nodes.len(),
        };
        self.nodes[number].send(Signal::SIGSTOP);
        Some(number)
    }

    /// The node that leads the cluster, by its own account.
    async fn leader(&self) -> Option<usize> {
        for node in &self.nodes {
            let told = node.ask("jsz").await.and_then(|told| Some(told["meta_cluster"]["leader"].as_str()?.to_owned()));
            let number = told.and_then(|name| name.strip_prefix("node-")?.parse().ok());
            if let Some(number) = number.filter(|number| *number < self.nodes.len()) {
                return Some(number);
            }
        }
        None
    }
}

impl Node {
    /// Whether it takes messages; in a cluster it says so itself.
    async fn well(&self, cluster: bool) -> bool {
        let connected = Wire::connect(&format!("127.0.0.1:{}", self.port)).await.is_ok();
        connected && (!cluster || self.ask("healthz").await.is_some_and(|told| told["status"] == "ok"))
    }

    async fn ask(&self, what: &str) -> Option<Value> {
        let url = format!("http://127.0.0.1:{}/{what}", self.monitor);
        let client = http().timeout(Duration::from_secs(2)).build().ok()?;
        let text = client.get(url).send().await.ok()?.text().await.ok()?;
        serde_json::from_str(&text).ok()
    }

    fn ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
    }

    fn send(&self, signal: Signal) {
        self.child.iter().for_each(|child| send(child, signal));
    }

    fn failed(&self, problem: &str) -> Error {
        Error::Node { log: self.directory.join("nats.log"), problem: problem.into() }
    }
}
