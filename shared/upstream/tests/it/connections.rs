use baton_contract::upstream::Engine;
use baton_upstream::Options;

use crate::support::*;

#[tokio::test]
async fn an_answers_connection_takes_the_next_request() {
    let engine = Scripted::always(hello()).await;
    let instance = engine.instance(Engine::Vllm).await;
    for _ in 0..30 {
        answer(&instance).await.unwrap();
    }
    let connections: Vec<usize> = engine.seen().iter().map(|seen| seen.connection).collect();
    // It is free a moment after the answer; the next request may have begun another meanwhile.
    assert!(connections.iter().all(|connection| *connection < 3), "{connections:?}");
}

#[tokio::test]
async fn a_connection_that_the_engine_closed_meanwhile_costs_no_try() {
    // The engine closes each connection as the second request comes.
    let engine = Scripted::new(|count, _| if count == 1 { vec![Step::Close] } else { hello() }).await;
    let instance = engine.instance(Engine::Vllm).await;
    for _ in 0..2 {
        assert_eq!(text(&answer(&instance).await.unwrap()), "hello");
    }
    let connections: Vec<usize> = engine.seen().iter().map(|seen| seen.connection).collect();
    assert_eq!(connections, [0, 0, 1]);
}

#[tokio::test]
async fn an_answer_that_nobody_wants_ends_at_the_engine() {
    let engine = Scripted::always(vec![chunked(), chunk(&delta("a")), Step::Hold]).await;
    let instance = engine.instance(Engine::Vllm).await;
    let mut reply = ask(&instance).await.unwrap();
    reply.next().await.unwrap();
    drop(reply);
    engine.wait_left().await;
}

#[tokio::test]
async fn a_certificate_is_checked_against_the_ca_file_too() {
    let engine = Scripted::start(Some(tls()), |_, _| hello()).await;
    let trusting = Options { ca_file: Some(ca_file()), ..options(&engine.url, Engine::Vllm) };
    assert_eq!(text(&answer(&only(trusting).await).await.unwrap()), "hello");
    let fault = answer(&only(options(&engine.url, Engine::Vllm)).await).await.unwrap_err();
    assert!(fault.message.contains("certificate") && fault.message.contains("ca_file"), "{fault}");
    assert_eq!(engine.seen().len(), 1);
}
