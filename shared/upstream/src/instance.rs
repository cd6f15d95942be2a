//! One instance of an engine: a request goes out, its answer comes back in pieces.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};

use baton_contract::{
    outcome::Code,
    upstream::{Ask, Engine},
};
use reqwest::{Method, Url};
use serde_json::{Map, Value};
use tokio::sync::OnceCell;

use crate::{
    Error, Fault, Options, Retry,
    dialect::{self, Asked, Meeting, Next, Resume},
    http::{Http, Limit, Sent, body},
    reader::Reader,
    refusal,
    reply::{Base, Beside, Reply, patience, until_failed, without},
};

/// SGLang's bootstrap server listens here unless it is told otherwise.
const BOOTSTRAP_PORT: u16 = 8998;
/// An answer of an instance that only prefills.
const MOST_PREFILL_BYTES: usize = 4 << 20;

/// An instance that has prefilled keeps the KV cache for so long at least (vLLM's `kv_lease_duration`, 30 seconds unless it is told
/// otherwise), and until it has been fetched. No handover may be used later.
pub const HANDOVER_KEPT: Duration = Duration::from_secs(20);

/// A request to an instance.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// What is asked.
    pub ask: &'a Ask,
    /// Where the answer stands, if the instance [resumes](Instance::resumes) it; of several answers none is resumed.
    pub resume: Option<&'a Resume>,
    /// Headers of the trace that the engine's spans join: `traceparent` and `tracestate`.
    pub trace: &'a [(String, String)],
}

/// One instance of an engine. Cheap to clone.
#[derive(Clone)]
pub struct Instance {
    engine: Engine,
    model: Arc<str>,
    /// For people: without user, password, query.
    shown: Arc<str>,
    base: Url,
    http: Arc<Http>,
    bootstrap_port: Arc<OnceCell<u16>>,
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Instance({} {} at {})", self.engine, self.model, self.shown)
    }
}

impl Instance {
    /// All instances of a model: those that decode, and those that only prefill.
    pub(crate) fn all(options: &Options) -> Result<(Vec<Self>, Vec<Self>), Error> {
        let http = Arc::new(Http::new(options)?);
        let one = |url: &String| {
            let base: Option<Url> = url.parse().ok().filter(|url: &Url| url.has_host() && !url.cannot_be_a_base());
            let base = base.ok_or_else(|| Error::Url { model: options.name.clone() })?;
            Ok(Self {
                engine: options.engine,
                model: options.model.as_str().into(),
                shown: shown(&base).into(),
                base,
                http: http.clone(),
                bootstrap_port: Arc::default(),
            })
        };
        let all = |urls: &[String]| urls.iter().map(one).collect::<Result<_, _>>();
        Ok((all(&options.urls)?, all(&options.prefill_urls)?))
    }

    /// Its URL, without secrets.
    pub fn url(&self) -> &str {
        &self.shown
    }

    /// What it is.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// The model's name there.
    pub fn model(&self) -> &str {
        &self.model
    }

    pub(crate) fn http(&self) -> &Http {
        &self.http
    }

    /// The URL of a path that begins with a slash.
    pub(crate) fn at(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        url
    }

    /// Whether an answer that was left so can go on where it stopped, instead of beginning again.
    pub fn resumes(&self, ask: &Ask, resume: &Resume) -> bool {
        dialect::resumes(self.engine, ask, resume)
    }

    /// Puts a request. Returns once the engine has begun to answer.
    ///
    /// With an `ask.handover` (vLLM), the instance fetches the KV cache that another one keeps for it. A handover is good for one call, within
    /// [`HANDOVER_KEPT`]: what lies in the cache's place after that is another prompt's, and the instance would answer that
    /// without a word. A call that goes on with an answer does without.
    ///
    /// # Errors
    ///
    /// [`Retry::Recompute`] where the request built on a handover or on a beginning: another without it may do.
    pub async fn ask(&self, call: Call<'_>) -> Result<Reply, Fault> {
        let asked = match self.next(call)? {
            Next::Ask(asked) => asked,
            Next::Over(reason, usage) => {
                return Ok(Reply::over(self.http.clone(), self.shown.clone(), self.engine, reason, usage));
            }
        };
        let builds_on = match asked.begun {
            Some(_) => Some(Base::Beginning),
            None => asked.body.contains_key("kv_transfer_params").then_some(Base::Handover),
        };
        let limit = Limit::within(patience(self.http.timeout, builds_on));
        match self.begin(&asked, call.trace, limit).await {
            Ok(reply) => Ok(reply.on(builds_on)),
            Err(fault) => Err(without(builds_on, limit, fault)),
        }
    }

    /// Puts a request to this instance, which decodes, and to one that prefills at once (SGLang): they meet at the latter's bootstrap
    /// server, and the KV cache goes from one to the other. The answer is this instance's; it fails if either fails.
    ///
    /// # Errors
    ///
    /// Those of either.
    pub async fn ask_both(&self, prefill: &Self, call: Call<'_>) -> Result<Reply, Fault> {
        let mut asked = match self.next(call)? {
            Next::Ask(asked) => asked,
            Next::Over(reason, usage) => {
                return Ok(Reply::over(self.http.clone(), self.shown.clone(), self.engine, reason, usage));
            }
        };
        let room = RandomState::new().hash_one(0) >> 1;
        let host = prefill.base.host_str().unwrap_or_default().to_owned();
        Meeting { host, port: prefill.bootstrap_port().await?, room }.tell(&mut asked.body);
        let (other, same, trace) = (prefill.clone(), asked.clone(), call.trace.to_vec());
        let limit = Limit::within(self.http.timeout);
        let mut beside: Option<Beside> = Some(Box::pin(async move {
            let mut reply = other.begin(&same, &trace, limit).await?;
            while reply.next().await?.is_some() {}
            Ok(())
        }));
        let reply = until_failed(&mut beside, self.begin(&asked, call.trace, limit)).await?;
        Ok(match beside {
            Some(beside) => reply.beside(beside),
            None => reply,
        })
    }

    /// Has an instance that only prefills compute a prompt (vLLM), and returns what the instance that decodes is to be told, as JSON of
    /// at most 512 KiB: see [`Ask::handover`].
    ///
    /// # Errors
    ///
    /// Also if the instance hands nothing over.
    pub async fn prefill(&self, call: Call<'_>) -> Result<String, Fault> {
        let asked = dialect::prefill(&self.model, call.ask);
        let limit = Limit::within(self.http.timeout);
        let response = self.http.send(&self.shown, &self.sent(&asked, call.trace, limit)).await?;
        let answer = body(&self.shown, response, MOST_PREFILL_BYTES, limit).await?;
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
        if refusal::is_error(&answer) {
            return Err(self.http.told(refusal::failed(self.http.site(&self.shown), &answer)));
        }
        let handover = dialect::handed_over(&answer).ok_or_else(|| {
            Fault::elsewhere(format!(
                "{} computed the prompt and told no kv_transfer_params of NixlConnector; start it with --kv-transfer-config, or name it \
                 among urls instead of prefill_urls",
                self.shown
            ))
        })?;
        if handover.len() > dialect::MOST_HANDOVER_BYTES {
            let (bytes, most) = (handover.len(), dialect::MOST_HANDOVER_BYTES);
            return Err(Fault::elsewhere(format!(
                "{} told {bytes} bytes of kv_transfer_params; {most} fit",
                self.shown
            )));
        }
        Ok(handover)
    }

    fn next(&self, call: Call<'_>) -> Result<Next, Fault> {
        let begins = || Fault::new(Retry::Recompute, Code::Internal, "this answer can't go on; it begins anew");
        dialect::ask(self.engine, &self.model, call.ask, call.resume).ok_or_else(begins)
    }

    async fn begin(&self, asked: &Asked, trace: &[(String, String)], limit: Limit) -> Result<Reply, Fault> {
        let sent = self.sent(asked, trace, limit);
        let response = self.http.send(&self.shown, &sent).await?;
        let reader = Reader::new(self.engine, asked.choices, asked.begun);
        Reply::new(self.http.clone(), self.shown.clone(), response, reader)
    }

    fn sent<'a>(&self, asked: &Asked, trace: &'a [(String, String)], limit: Limit) -> Sent<'a> {
        let body = serde_json::to_vec(&asked.body).unwrap_or_default().into();
        Sent { method: Method::POST, url: self.at(asked.path), body, trace, limit }
    }

    /// Where SGLang's bootstrap server listens, as the instance itself says; asked once.
    async fn bootstrap_port(&self) -> Result<u16, Fault> {
        let told = self.bootstrap_port.get_or_try_init(|| async {
            for path in ["/server_info", "/get_server_info"] {
                let limit = Limit::within(self.http.timeout);
                let sent =
                    Sent { method: Method::GET, url: self.at(path), body: Default::default(), trace: &[], limit };
                match self.http.send(&self.shown, &sent).await {
                    Ok(response) => {
                        let info = body(&self.shown, response, MOST_PREFILL_BYTES, limit).await?;
                        let info: Map<String, Value> = serde_json::from_slice(&info).unwrap_or_default();
                        let port = info.get("disaggregation_bootstrap_port").and_then(Value::as_u64);
                        if let Some(port) = port.and_then(|port| u16::try_from(port).ok()) {
                            return Ok(port);
                        }
                    }
                    // Releases differ in whether they have it, and under which name.
                    Err(Fault { retry: Retry::Elsewhere | Retry::Never, .. }) => {}
                    Err(fault) => return Err(fault),
                }
            }
            Ok(BOOTSTRAP_PORT)
        });
        told.await.copied()
    }
}

/// A URL without what may be a secret.
fn shown(url: &Url) -> String {
    let mut shown = url.clone();
    // Fails only for URLs that can have neither.
    let _ = (shown.set_username(""), shown.set_password(None));
    shown.set_query(None);
    shown.set_fragment(None);
    shown.as_str().trim_end_matches('/').to_owned()
}
