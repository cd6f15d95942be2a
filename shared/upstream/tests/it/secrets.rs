use std::fs;

use baton_contract::{causes, upstream::Engine};
use baton_upstream::{Options, Retry, Upstream};
use serde_json::json;

use crate::support::*;

const KEY: &str = "sk-not-to-be-seen";

#[tokio::test]
async fn a_key_is_sent_and_never_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    fs::write(&path, format!("{KEY}\n")).unwrap();
    // Repeats what it was sent, in every way.
    let engine = Scripted::new(|count, seen| {
        let said =
            json!({ "error": { "message": format!("no: {}", seen.header("authorization").unwrap()), "code": 500 } });
        match count {
            0 => json("401 Unauthorized", said),
            1 => json("400 Bad Request", said),
            2 => json("200 OK", said),
            _ => vec![chunked(), chunk(&event(&said))],
        }
    })
    .await;
    let options = Options { api_key_file: Some(path.clone()), ..options(&engine.url, Engine::OpenAi) };
    let upstream = Upstream::new(options.clone()).unwrap();
    let instance = only(options).await;
    for retry in [Retry::Later(None), Retry::Never, Retry::Elsewhere, Retry::Elsewhere] {
        let fault = answer(&instance).await.unwrap_err();
        assert_eq!(fault.retry, retry, "{fault}");
        let shown = format!("{fault} {fault:?} {:?} {upstream:?} {instance:?}", fault.failure());
        assert!(!shown.contains(KEY) && fault.message.contains("no: Bearer [key]"), "{shown}");
        assert_eq!(fault.message.contains(path.to_str().unwrap()), retry == Retry::Later(None), "{fault}");
    }
    assert!(engine.seen().iter().all(|seen| seen.header("authorization") == Some(&format!("Bearer {KEY}"))));
}

#[tokio::test]
async fn a_key_that_was_replaced_is_used_once_the_old_one_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    fs::write(&path, "old").unwrap();
    let engine = Scripted::new(|_, seen| match seen.header("authorization") {
        Some("Bearer new") => hello(),
        _ => json("401 Unauthorized", json!({})),
    })
    .await;
    let instance = only(Options { api_key_file: Some(path.clone()), ..options(&engine.url, Engine::Vllm) }).await;
    assert_eq!(answer(&instance).await.unwrap_err().retry, Retry::Later(None));
    fs::write(&path, "new").unwrap();
    assert_eq!(text(&answer(&instance).await.unwrap()), "hello");
}

#[tokio::test]
async fn a_urls_user_and_password_are_not_shown() {
    let engine = Scripted::always(json("500 Internal Server Error", json!({}))).await;
    let url = engine.url.replace("http://", "http://user:password@");
    let instance = only(options(&url, Engine::Vllm)).await;
    let fault = answer(&instance).await.unwrap_err();
    let gone = only(options("http://user:password@127.0.0.1:1", Engine::Vllm)).await;
    let lost = answer(&gone).await.unwrap_err();
    let shown = format!("{fault:?} {lost:?} {instance:?} {}", instance.url());
    assert!(!shown.contains("password") && shown.contains(&engine.url), "{shown}");
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let (gone, empty) = (directory.path().join("gone"), directory.path().join("empty"));
    fs::write(&empty, "").unwrap();
    let refused = |change: &dyn Fn(&mut Options)| {
        let mut options = options("http://127.0.0.1:1", Engine::Vllm);
        change(&mut options);
        causes(&Upstream::new(options).unwrap_err())
    };
    for (told, says) in [
        (refused(&|options| options.api_key_file = Some(gone.clone())), "cannot read"),
        (refused(&|options| options.api_key_file = Some(empty.clone())), "expected a key"),
        (refused(&|options| options.ca_file = Some(gone.clone())), "cannot read"),
        (refused(&|options| options.ca_file = Some(empty.clone())), "expected certificates"),
        (refused(&|options| options.urls = vec!["mailto:a@b".into()]), "expected URLs such as"),
    ] {
        assert!(told.contains(says), "{told}");
    }
}
