//! What a whole process does with its telemetry. Each case runs in a child process, since a process starts it once: the
//! child is this very test binary, told by its environment to play one stage.

#[path = "support/receiver.rs"]
mod receiver;

use std::collections::HashMap;
use std::process::Output;
use std::time::Duration;

use baton_telemetry::{Error, LogFormat, Options, SHUTDOWN_DEADLINE, start};
use opentelemetry::global::get_text_map_propagator;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::time::Instant;
use tracing::{Instrument, Span, debug, info, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::receiver::Receiver;

const CLIENT_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT_SPAN: &str = "b7ad6b7169203331";

/// What a message carries from stage to stage.
type Headers = HashMap<String, String>;

fn client_headers() -> Headers {
    HashMap::from([
        ("traceparent".to_owned(), format!("00-{CLIENT_TRACE}-{CLIENT_SPAN}-01")),
        ("tracestate".to_owned(), "vendor=opaque".to_owned()),
    ])
}

/// Runs `stage` in a process of its own on a message with `headers`.
async fn play(stage: &str, headers: &Headers, endpoint: Option<&str>, log: &str, format: LogFormat) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "stage_in_a_child_process", "--nocapture"]);
    command.env("STAGE", stage).env("LOG", log).env("LOG_FORMAT", format.to_string());
    command.envs(headers).kill_on_drop(true);
    if let Some(endpoint) = endpoint {
        command.env("ENDPOINT", endpoint);
    }
    let output = command.output().await.unwrap();
    assert!(output.status.success(), "{stage} failed: {output:?}");
    output
}

/// The headers that a child printed as those of its successor message.
fn next_headers(output: &Output) -> Headers {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let pairs = text.lines().filter_map(|line| line.strip_prefix("header ")?.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn stderr_lines(output: &Output) -> Vec<&str> {
    str::from_utf8(&output.stderr).unwrap().lines().collect()
}

/// The child's side; does nothing in an ordinary run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stage_in_a_child_process() {
    let Ok(stage) = std::env::var("STAGE") else { return };
    let options = Options {
        otlp_endpoint: std::env::var("ENDPOINT").ok(),
        log: std::env::var("LOG").unwrap(),
        log_format: std::env::var("LOG_FORMAT").unwrap().parse().unwrap(),
        ..Options::new(format!("baton-{stage}"), format!("{stage}-1"))
    };
    let guard = start(options).unwrap();

    let received: Headers = ["traceparent", "tracestate"]
        .into_iter()
        .filter_map(|name| Some((name.into(), std::env::var(name).ok()?)))
        .collect();
    let root = if stage == "ingest" { "job" } else { "stage" };
    let span = info_span!("root", otel.name = root, job = "j-1", tenant = "acme");
    span.set_parent(get_text_map_propagator(|propagator| propagator.extract(&received))).unwrap();
    async {
        let work = info_span!("work", otel.name = stage, tokens = 7);
        async { info!(chunks = 2, "finished the work") }.instrument(work).await;
        debug!("told in detail");
        let mut headers = Headers::new();
        get_text_map_propagator(|propagator| propagator.inject_context(&Span::current().context(), &mut headers));
        headers.iter().for_each(|(name, value)| println!("header {name}={value}"));
    }
    .instrument(span)
    .await;

    let begun = Instant::now();
    // One stage ends as a process does that forgot to shut down.
    if stage == "prefill" {
        drop(guard);
    } else {
        guard.shutdown().await;
    }
    assert!(begun.elapsed() < SHUTDOWN_DEADLINE + Duration::from_secs(1), "took {:?}", begun.elapsed());
}

#[tokio::test]
async fn spans_of_three_processes_arrive_as_one_tree() {
    let receiver = Receiver::start().await;
    let mut headers = client_headers();
    for stage in ["ingest", "prefill", "decode"] {
        // The filter of the lines silences everything, and must not touch the spans.
        let output = play(stage, &headers, Some(receiver.endpoint()), "off", LogFormat::Text).await;
        assert_eq!(stderr_lines(&output), [""; 0]);
        headers = next_headers(&output);
        assert_eq!(headers["tracestate"], "vendor=opaque");
    }

    let spans = receiver.wait_for(|spans| spans.len() == 6).await;
    let mut parent = CLIENT_SPAN;
    for (outer, inner) in [("job", "ingest"), ("stage", "prefill"), ("stage", "decode")] {
        let inner = spans.iter().find(|span| span.name == inner).unwrap();
        let outer = spans.iter().find(|span| span.name == outer && span.parent == parent).unwrap();
        assert_eq!(inner.parent, outer.id);
        assert_eq!(inner.attributes["tokens"], "7");
        assert_eq!(inner.events, ["finished the work"]);
        assert_eq!(outer.attributes["job"], "j-1");
        for span in [inner, outer] {
            assert_eq!(span.trace, CLIENT_TRACE);
            assert_eq!(span.trace_state, "vendor=opaque");
            assert_eq!(span.resource["service.name"], format!("baton-{}", inner.name));
            assert_eq!(span.resource["service.instance.id"], format!("{}-1", inner.name));
            assert_eq!(span.resource["service.version"], env!("CARGO_PKG_VERSION"));
        }
        parent = &outer.id;
    }
    assert!(headers["traceparent"].contains(parent), "{headers:?} does not name the last stage");
}

#[tokio::test]
async fn without_an_endpoint_contexts_pass_on_and_lines_name_job_tenant_and_trace() {
    let output = play("prefill", &client_headers(), None, "processes=debug", LogFormat::Json).await;
    let headers = next_headers(&output);
    let traceparent: Vec<&str> = headers["traceparent"].split('-').collect();
    assert_eq!((traceparent[1], traceparent[3]), (CLIENT_TRACE, "01"));
    assert_ne!(traceparent[2], CLIENT_SPAN);
    assert_eq!(headers["tracestate"], "vendor=opaque");

    let lines = stderr_lines(&output);
    let [finished, detail] = lines[..] else { panic!("expected two lines, found {lines:#?}") };
    let about = r#""job":"j-1","tenant":"acme","trace":"0af7651916cd43dd8448eb211c80319c""#;
    let process = r#""service":"baton-prefill","instance":"prefill-1","target":"processes""#;
    let (_, rest) = finished.split_once(r#"Z","#).unwrap();
    assert_eq!(
        rest,
        format!(
            r#""level":"INFO",{process},"message":"finished the work",{about},"span":"work","fields":{{"chunks":2}}}}"#
        )
    );
    let (_, rest) = detail.split_once(r#"Z","#).unwrap();
    assert_eq!(rest, format!(r#""level":"DEBUG",{process},"message":"told in detail",{about},"span":"root"}}"#));

    // A message without a trace begins one.
    let output = play("ingest", &Headers::new(), None, "warn", LogFormat::Text).await;
    assert!(next_headers(&output)["traceparent"].ends_with("-01"));
}

#[tokio::test]
async fn an_endpoint_that_takes_nothing_costs_one_warning_and_a_bounded_shutdown() {
    // Never accepted from: connections stand, and nobody ever answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = silent.local_addr().unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let cases = [format!("http://{closed}"), format!("http://{silent}"), format!("https://{silent}")];
    let headers = client_headers();
    let play = |endpoint: usize| play("decode", &headers, Some(&cases[endpoint]), "info", LogFormat::Text);
    let outputs: [Output; 3] = tokio::join!(play(0), play(1), play(2)).into();
    for (endpoint, output) in cases.iter().zip(&outputs) {
        let lines = stderr_lines(output);
        let [finished, lost] = lines[..] else { panic!("expected two lines for {endpoint}, found {lines:#?}") };
        assert!(finished.contains(" INFO decode-1 processes: finished the work chunks=2 job=j-1 tenant=acme trace="));
        assert!(
            lost.contains(&format!("could not export spans endpoint={endpoint} lost=2 error=")),
            "{endpoint} warned: {lost}"
        );
    }
}

#[tokio::test]
async fn what_is_malformed_is_refused_before_anything_is_installed() {
    for endpoint in [
        "",
        "localhost:4317",
        "ftp://localhost:4317",
        "http://",
        "https://:4317",
        "http://host:port",
        "http://host:0",
        "http://host:70000",
        "http://host:4318/v1/traces",
        "http://me:secret@host:4317",
        "http://two hosts:1",
    ] {
        let options = Options { otlp_endpoint: Some(endpoint.to_owned()), ..Options::new("baton-test", "test-1") };
        let refused = start(options).expect_err(endpoint);
        assert!(matches!(&refused, Error::Endpoint { found, .. } if found == endpoint), "{endpoint}: {refused}");
    }
    for log in ["", "verbose", "info,baton_decode=loud", "info,baton_decode"] {
        let refused = start(Options { log: log.to_owned(), ..Options::new("baton-test", "test-1") }).expect_err(log);
        assert!(matches!(&refused, Error::LogFilter { found, .. } if found == log), "{log}: {refused}");
    }
    assert!(!tracing::dispatcher::has_been_set());
}
