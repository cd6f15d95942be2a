//! Each bad engine is one job's clear error or a passing fault, and holds no slot.

use std::time::Duration;

use baton_contract::{outcome::Code, upstream::Engine};
use baton_upstream::{Event, Fault, Retry};
use serde_json::json;
use tokio::net::TcpListener;

use crate::support::*;

/// The fault of an engine that always answers so.
async fn fault(steps: Vec<Step>) -> Fault {
    let engine = Scripted::always(steps).await;
    let instance = engine.instance(Engine::OpenAi).await;
    let fault = answer(&instance).await.expect_err("an answer");
    assert!(fault.retry == Retry::Never || fault.message.contains(&engine.url), "{fault} does not say who");
    fault
}

#[track_caller]
fn check(fault: &Fault, retry: Retry, says: &str) {
    assert!(fault.retry == retry && fault.message.contains(says), "{fault:?}");
}

const LATER: Retry = Retry::Later(None);

#[tokio::test]
async fn what_is_no_http_server_is_waited_for() {
    check(&fault(vec![say("SSH-2.0-OpenSSH_9.6\r\n"), Step::Hold]).await, LATER, "does not speak HTTP/1.1");
    check(&fault(vec![Step::Close]).await, LATER, "was lost");
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let instance = only(options(&format!("http://{gone}"), Engine::Vllm)).await;
    check(&answer(&instance).await.unwrap_err(), LATER, "can't be reached");
}

#[tokio::test]
async fn pages_for_people_are_no_answers() {
    let page = "<!doctype html><h1>It works!</h1>";
    check(&fault(response("200 OK", "text/html", page)).await, Retry::Elsewhere, "an HTML page");
    check(&fault(response("200 OK", "text/plain", page)).await, Retry::Elsewhere, "expected an event stream");
    check(&fault(response("200 OK", "application/json", page)).await, Retry::Elsewhere, "expected JSON");
    check(&fault(response("200 OK", "text/event-stream", "data: <html>\n\n")).await, Retry::Elsewhere, "expected JSON");
    check(&fault(response("502 Bad Gateway", "text/html", page)).await, LATER, "502: (an HTML page)");
    check(&fault(json("200 OK", json!({ "status": "ok" }))).await, Retry::Elsewhere, "expected a completion");
}

#[tokio::test]
async fn an_error_within_a_success_is_an_error() {
    let error = |code: u32| json!({ "error": { "message": "too hot", "code": code } });
    check(&fault(json("200 OK", error(400))).await, Retry::Never, "too hot");
    check(&fault(json("200 OK", error(500))).await, Retry::Elsewhere, "too hot");
    let streamed = |text: String| vec![chunked(), chunk(&delta("a")), chunk(&text), chunk(DONE), say("0\r\n\r\n")];
    check(&fault(streamed(event(&error(400)))).await, Retry::Never, "too hot");
    check(&fault(streamed(event(&error(503)))).await, Retry::Later(Some(Duration::from_secs(1))), "too hot");
    check(&fault(streamed("event: error\ndata: too hot\n\n".into())).await, Retry::Elsewhere, "too hot");
    check(&fault(streamed(finish("abort"))).await, Retry::Elsewhere, "gave the answer up");
}

#[tokio::test]
async fn a_stream_that_stops_is_whole_only_after_its_finish_reason() {
    check(&fault(vec![chunked(), chunk(&delta("a")), say("0\r\n\r\n")]).await, LATER, "in the middle of the answer");
    check(&fault(vec![chunked(), chunk(&delta("a")), Step::Close]).await, LATER, "was lost");
    check(&fault(vec![chunked(), Step::Close]).await, LATER, "was lost");
    let unfinished = vec![chunked(), chunk(&delta("a")), chunk(DONE), say("0\r\n\r\n")];
    check(&fault(unfinished).await, Retry::Elsewhere, "without a finish_reason");
    for end in [say("0\r\n\r\n"), Step::Close] {
        let engine = Scripted::always(vec![chunked(), chunk(&delta("hello")), chunk(&finish("stop")), end]).await;
        assert_eq!(text(&answer(&engine.instance(Engine::OpenAi).await).await.unwrap()), "hello");
    }
}

#[tokio::test]
async fn silence_ends_whatever_keeps_the_connection_alive() {
    let beats = Step::Repeat(b"7\r\n: beat\n\r\n".to_vec());
    let empty = event(&json!({ "choices": [] }));
    let empties = Step::Repeat(format!("{:x}\r\n{empty}\r\n", empty.len()).into_bytes());
    for steps in [vec![Step::Hold], vec![chunked(), Step::Hold], vec![chunked(), beats], vec![chunked(), empties]] {
        let engine = Scripted::always(steps).await;
        let short = Duration::from_millis(300);
        let instance = only(baton_upstream::Options { timeout: short, ..options(&engine.url, Engine::Vllm) }).await;
        check(&answer(&instance).await.unwrap_err(), LATER, "said nothing of use for 300ms");
        engine.wait_left().await;
    }
}

#[tokio::test]
async fn a_stream_faster_than_its_reader_waits_for_it() {
    let piece = delta(&"a".repeat(8_000));
    let steps = vec![chunked(), Step::Repeat(format!("{:x}\r\n{piece}\r\n", piece.len()).into_bytes()), Step::Hold];
    let engine = Scripted::always(steps).await;
    let mut reply = ask(&engine.instance(Engine::Vllm).await).await.unwrap();
    engine.wait_stalled().await;
    for _ in 0..10 {
        assert!(matches!(reply.next().await, Ok(Some(Event::Piece(_)))));
    }
}

#[tokio::test]
async fn nothing_that_an_engine_says_grows_without_end() {
    let large = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", 1u64 << 40);
    check(&fault(vec![say(large), Step::Hold]).await, Retry::Elsewhere, "more than 16777216 bytes");
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n";
    let endless = || Step::Repeat(vec![b' '; 1 << 16]);
    check(&fault(vec![say(head), endless()]).await, Retry::Elsewhere, "more than 16777216 bytes");
    check(&fault(vec![stream(), say("data: "), endless()]).await, Retry::Elsewhere, "an event has more than");
    let answer = delta(&"a".repeat(1 << 20)).into_bytes();
    check(&fault(vec![stream(), Step::Repeat(answer)]).await, Retry::Elsewhere, "the answer has more than");
    let header = format!("HTTP/1.1 200 OK\r\nx-large: {}\r\n\r\n", "a".repeat(1 << 20));
    check(&fault(vec![say(header)]).await, Retry::Elsewhere, "headers that are too large");
    let headers = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x-many: a\r\n".repeat(10_000));
    check(&fault(vec![say(headers)]).await, Retry::Elsewhere, "headers that are too large");
    // A refusal is told without what is too much of it.
    let refusal = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n";
    check(&fault(vec![say(refusal), endless()]).await, Retry::Never, "refused the request (400)");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let other = Scripted::always(hello()).await;
    for status in ["301 Moved Permanently", "307 Temporary Redirect"] {
        let head = format!("HTTP/1.1 {status}\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n", other.url);
        check(&fault(vec![say(head)]).await, LATER, "a redirect, which is not followed");
    }
    assert!(other.seen().is_empty());
}

#[tokio::test]
async fn refusals_are_told_in_the_engines_own_words() {
    let error = |code: &str| json!({ "error": { "message": "no, and why", "code": code, "param": null } });
    let told = fault(json("400 Bad Request", error("context_length_exceeded"))).await;
    check(&told, Retry::Never, "no, and why");
    assert_eq!(told.code, Code::PromptTooLong);
    let told = fault(json("404 Not Found", error("model_not_found"))).await;
    check(&told, Retry::Elsewhere, "no, and why");
    assert_eq!(told.code, Code::UnknownModel);
    let later = "HTTP/1.1 429 Too Many Requests\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n";
    check(&fault(vec![say(later)]).await, Retry::Later(Some(Duration::from_secs(7))), "has no room (429)");
}
