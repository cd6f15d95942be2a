//! A TCP proxy that misbehaves on demand: it delays, cuts, refuses, or goes deaf, as a network does.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::sleep,
};
use tokio_util::task::AbortOnDropHandle;

const BUFFER_BYTES: usize = 64 << 10;

/// What the proxy does with connections. Counters only grow: a connection lives under the values it was opened with.
#[derive(Clone, Debug)]
struct Weather {
    /// Where connections lead to in turn, each `host:port`; none while nobody is there.
    upstreams: Vec<String>,
    /// What each read adds to the way of its bytes, in both directions.
    delay: Duration,
    refuses: bool,
    /// Connections from before the last cut have ended.
    cuts: u64,
    /// Connections from before the last silence are open and carry nothing any more.
    silences: u64,
}

/// A listener on this machine that forwards to one address. Ends, with its connections, when dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    weather: Arc<watch::Sender<Weather>>,
    _accepting: AbortOnDropHandle<()>,
}

impl Proxy {
    /// Listens on any free port of this machine. Connections end at once until [`Proxy::lead_to`] says where to.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let fair = Weather { upstreams: Vec::new(), delay: Duration::ZERO, refuses: false, cuts: 0, silences: 0 };
        let weather = Arc::new(watch::Sender::new(fair));
        // Not all begin with the same one.
        let accepting = tokio::spawn(accept(listener, weather.subscribe(), address.port().into()));
        Ok(Self { address, weather, _accepting: AbortOnDropHandle::new(accepting) })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where connections lead to in turn from now on, each `host:port`; those that are open stay.
    pub fn lead_to(&self, upstreams: Vec<String>) {
        self.weather.send_modify(|weather| weather.upstreams = upstreams);
    }

    /// Bytes take this much longer; zero for none.
    pub fn delay(&self, delay: Duration) {
        self.weather.send_modify(|weather| weather.delay = delay);
    }

    /// Ends all connections.
    pub fn cut(&self) {
        self.weather.send_modify(|weather| weather.cuts += 1);
    }

    /// Whether new connections end at once.
    pub fn refuse(&self, refuses: bool) {
        self.weather.send_modify(|weather| weather.refuses = refuses);
    }

    /// All connections stay open, and nothing passes them ever again: each side must find out by itself.
    pub fn silence(&self) {
        self.weather.send_modify(|weather| weather.silences += 1);
    }

    /// Fair weather for connections to come; those that went silent stay so.
    pub fn calm(&self) {
        self.weather.send_modify(|weather| (weather.delay, weather.refuses) = (Duration::ZERO, false));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
    }
}

async fn accept(listener: TcpListener, weather: watch::Receiver<Weather>, first: usize) {
    for turn in first.. {
        match listener.accept().await {
            Ok((client, _)) => drop(tokio::spawn(carry(client, weather.clone(), turn))),
            // Too many open files, for example: it passes.
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

/// One connection from its first byte to its last.
async fn carry(client: TcpStream, mut weather: watch::Receiver<Weather>, turn: usize) {
    let born = weather.borrow().clone();
    if born.refuses || born.upstreams.is_empty() {
        return;
    }
    let upstream = &born.upstreams[turn % born.upstreams.len()];
    let Ok(server) = TcpStream::connect(upstream).await else { return };
    // As without a proxy: whether small messages wait is up to the two ends.
    let (_, _) = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        _ = forward(from_client, to_server, weather.clone(), born.silences) => {}
        _ = forward(from_server, to_client, weather.clone(), born.silences) => {}
        // An error means that the proxy is gone.
        _ = weather.wait_for(|weather| weather.cuts > born.cuts) => {}
    }
}

/// Copies one direction until its sender ends it.
async fn forward(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    weather: watch::Receiver<Weather>,
    silences: u64,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let bytes = from.read(&mut buffer).await?;
        if bytes == 0 {
            return Ok(());
        }
        let (delay, silent) = {
            let weather = weather.borrow();
            (weather.delay, weather.silences > silences)
        };
        if silent {
            continue;
        }
        if !delay.is_zero() {
            sleep(delay).await;
        }
        to.write_all(&buffer[..bytes]).await?;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    /// A server that sends back what it gets, and a proxy before it.
    async fn echo() -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let proxy = Proxy::start().await.unwrap();
        proxy.lead_to(vec![listener.local_addr().unwrap().to_string()]);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        proxy
    }

    async fn ask(stream: &mut TcpStream) -> io::Result<()> {
        stream.write_all(b"hello").await?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).await?;
        assert_eq!(&answer, b"hello");
        Ok(())
    }

    #[tokio::test]
    async fn weather_comes_and_goes() {
        let proxy = echo().await;
        let open = async || TcpStream::connect(proxy.address()).await.unwrap();
        let mut stream = open().await;
        timeout(SOON, ask(&mut stream)).await.unwrap().unwrap();

        proxy.delay(Duration::from_millis(30));
        let started = Instant::now();
        timeout(SOON, ask(&mut stream)).await.unwrap().unwrap();
        assert!(started.elapsed() >= Duration::from_millis(60), "there and back");
        proxy.calm();

        let mut silent = open().await;
        timeout(SOON, ask(&mut silent)).await.unwrap().unwrap();
        proxy.silence();
        timeout(Duration::from_millis(100), ask(&mut silent))
            .await
            .expect_err("a silent connection is neither open nor closed");
        timeout(SOON, ask(&mut open().await)).await.unwrap().unwrap();

        let mut stream = open().await;
        timeout(SOON, ask(&mut stream)).await.unwrap().unwrap();
        proxy.cut();
        timeout(SOON, ask(&mut stream)).await.unwrap().unwrap_err();
        proxy.refuse(true);
        timeout(SOON, ask(&mut open().await)).await.unwrap().unwrap_err();
        proxy.calm();
        timeout(SOON, ask(&mut open().await)).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn connections_take_turns_among_several_servers() {
        let (one, other) = (echo().await, echo().await);
        let proxy = Proxy::start().await.unwrap();
        proxy.lead_to([&one, &other].map(|server| server.address().to_string()).to_vec());
        // Of any two in a row one leads to a server that has become silent, and the other answers.
        for _ in 0..2 {
            let mut streams = Vec::new();
            for _ in 0..2 {
                let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
                timeout(SOON, ask(&mut stream)).await.unwrap().unwrap();
                streams.push(stream);
            }
            one.silence();
            let mut answered = 0;
            for stream in &mut streams {
                answered += u32::from(timeout(Duration::from_millis(200), ask(stream)).await.is_ok());
            }
            assert_eq!(answered, 1);
        }
    }
}
