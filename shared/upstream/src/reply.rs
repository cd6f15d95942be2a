//! An answer on its way.

use std::{pin::Pin, sync::Arc, time::Duration};

use baton_contract::outcome::{FinishReason, Usage};
use baton_contract::upstream::Engine;
use bytes::Bytes;
use futures::FutureExt;
use reqwest::{Response, header::CONTENT_TYPE};
use tokio::time::timeout;

use crate::{
    Event, Fault, Retry,
    http::{Http, Limit, body, lost},
    reader::{Broken, Reader},
    refusal::failed,
    sse::{Events, Malformed},
};

/// An answer that is not streamed may have so many bytes.
const MOST_WHOLE_BYTES: usize = 16 << 20;
/// How long the first word of an answer may take for which a KV cache has to come first. vLLM waits for one without end if the instance that has it
/// is gone.
const TRANSFER: Duration = Duration::from_secs(60);
/// How long the usage may take after the last word of an answer.
const USAGE: Duration = Duration::from_secs(10);
/// What may come after an answer's end, and for how long, before its connection is given up.
const REST_BYTES: usize = 64 << 10;
const REST: Duration = Duration::from_secs(2);

/// What goes on beside an answer, and may fail it.
pub(crate) type Beside = Pin<Box<dyn Future<Output = Result<(), Fault>> + Send>>;

/// An answer on its way. Dropping it closes the connection, which ends the engine's work.
pub struct Reply {
    http: Arc<Http>,
    url: Arc<str>,
    source: Source,
    reader: Reader,
    beside: Option<Beside>,
    /// What another request for it would do without.
    /// What it is built on, until that is known to have worked.
    builds_on: Option<Base>,
}

/// What an answer is built on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    /// The KV cache of another instance.
    Handover,
    /// Its own beginning.
    Beginning,
}

enum Source {
    /// A stream of events.
    Stream { response: Response, events: Events },
    /// An answer in one piece.
    Whole(Response),
    /// Nothing is to come any more.
    Over,
}

impl Reply {
    /// Of a response that has begun.
    pub(crate) fn new(http: Arc<Http>, url: Arc<str>, response: Response, reader: Reader) -> Result<Self, Fault> {
        let kind = response.headers().get(CONTENT_TYPE).map_or(&b""[..], |kind| kind.as_bytes());
        let kind = String::from_utf8_lossy(kind).to_ascii_lowercase();
        if kind.starts_with("text/html") {
            return Err(Fault::elsewhere(format!("{url} answered with an HTML page; check the model's urls")));
        }
        let source = match kind.contains("json") {
            true => Source::Whole(response),
            false => Source::Stream { response, events: Events::default() },
        };
        Ok(Self { http, url, source, reader, beside: None, builds_on: None })
    }

    /// One that is whole already.
    pub(crate) fn over(http: Arc<Http>, url: Arc<str>, engine: Engine, reason: FinishReason, usage: Usage) -> Self {
        let reader = Reader::over(engine, reason, usage);
        Self { http, url, source: Source::Over, reader, beside: None, builds_on: None }
    }

    /// The same while something goes on beside it.
    pub(crate) fn beside(mut self, beside: Beside) -> Self {
        self.beside = Some(beside);
        self
    }

    /// The same if it builds on something.
    pub(crate) fn on(mut self, builds_on: Option<Base>) -> Self {
        self.builds_on = builds_on;
        self
    }

    /// The next event; none once the answer is whole.
    ///
    /// # Errors
    ///
    /// The answer will not become whole. An engine that says nothing but comments for the model's timeout is silent.
    pub async fn next(&mut self) -> Result<Option<Event>, Fault> {
        let limit = Limit::within(patience(self.http.timeout, self.builds_on));
        loop {
            if let Some(event) = self.reader.next() {
                // What it was to build on was there.
                self.builds_on.take_if(|_| matches!(event, Event::Piece(_)));
                return Ok(Some(event));
            }
            if self.reader.is_over() {
                self.leave();
                return Ok(None);
            }
            if let Err(fault) = self.read(limit).await {
                self.source = Source::Over;
                return Err(without(self.builds_on, limit, self.http.told(fault)));
            }
        }
    }

    /// Reads on until there is more, or until it is over.
    async fn read(&mut self, limit: Limit) -> Result<(), Fault> {
        let url = &*self.url;
        match &mut self.source {
            Source::Over => self.reader.end().map_err(|broken| fault(&self.http, url, broken)),
            Source::Whole(_) => {
                let Source::Whole(response) = std::mem::replace(&mut self.source, Source::Over) else { return Ok(()) };
                let bytes = until_failed(&mut self.beside, body(url, response, MOST_WHOLE_BYTES, limit)).await?;
                self.reader.whole(&bytes).map_err(|broken| fault(&self.http, url, broken))
            }
            Source::Stream { response, events } => {
                let odd = |malformed: Malformed| Fault::elsewhere(format!("{url}: {malformed}"));
                if let Some(message) = events.next().map_err(odd)? {
                    let read = self.reader.read(&message.data, message.is_error);
                    return read.map_err(|broken| fault(&self.http, url, broken));
                }
                // An answer that has ended wants nothing but its usage.
                let is_finished = self.reader.is_finished();
                let limit = if is_finished { Limit::within(USAGE) } else { limit };
                match until_failed(&mut self.beside, piece(url, response, limit)).await {
                    Ok(Some(bytes)) => events.feed(&bytes),
                    Err(fault) if !is_finished => return Err(fault),
                    Ok(None) | Err(_) => {
                        if let Some(message) = events.end().map_err(odd)? {
                            let read = self.reader.read(&message.data, message.is_error);
                            read.map_err(|broken| fault(&self.http, url, broken))?;
                        }
                        self.source = Source::Over;
                    }
                }
                Ok(())
            }
        }
    }

    /// Leaves the connection to others once its last bytes have come, which no answer waits for.
    fn leave(&mut self) {
        let source = std::mem::replace(&mut self.source, Source::Over);
        let Source::Stream { mut response, .. } = source else { return };
        let mut rest = Box::pin(async move {
            let mut left = REST_BYTES;
            while let Ok(Some(bytes)) = response.chunk().await {
                let Some(less) = left.checked_sub(bytes.len()) else { return };
                left = less;
            }
        });
        if rest.as_mut().now_or_never().is_none() {
            tokio::spawn(timeout(REST, rest));
        }
    }
}

async fn piece(url: &str, response: &mut Response, limit: Limit) -> Result<Option<Bytes>, Fault> {
    limit.wait(url, response.chunk()).await?.map_err(|error| lost(url, &error))
}

/// What comes of a wait, unless what goes on beside it fails first.
pub(crate) async fn until_failed<T>(
    beside: &mut Option<Beside>,
    wait: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    let mut wait = std::pin::pin!(wait);
    if let Some(running) = beside {
        tokio::select! {
            biased;
            found = &mut wait => return found,
            ended = running => {
                *beside = None;
                ended?;
            }
        }
    }
    wait.await
}

fn fault(http: &Http, url: &str, broken: Broken) -> Fault {
    match broken {
        Broken::Error(error) => failed(http.site(url), &error),
        Broken::CutOff => Fault::later(format!("{url}: {broken}")),
        _ => Fault::elsewhere(format!("{url}: {broken}")),
    }
}

/// How long the wait for an answer's beginning may be.
pub(crate) fn patience(timeout: Duration, builds_on: Option<Base>) -> Duration {
    if builds_on == Some(Base::Handover) { timeout.min(TRANSFER) } else { timeout }
}

/// A fault of a request that built on something. The engine does not say whether it was this that failed, and keeps silent where a KV cache
/// does not come.
pub(crate) fn without(builds_on: Option<Base>, limit: Limit, fault: Fault) -> Fault {
    let is_silent = builds_on == Some(Base::Handover) && limit.is_over();
    match fault.retry {
        Retry::Never | Retry::Elsewhere if builds_on.is_some() => Fault { retry: Retry::Recompute, ..fault },
        Retry::Later(None) if is_silent => Fault { retry: Retry::Recompute, ..fault },
        _ => fault,
    }
}
