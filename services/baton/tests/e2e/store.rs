//! The object store over time: what nobody uses goes, what a waiting job needs stays.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Output,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use baton_bus::{Bus, duty::chore::Turn, inspect::queue_peek::Read};
use baton_contract::{
    envelope::{self, DecodeTask},
    outcome::Status,
    subject::Stage,
};
use futures::TryStreamExt;
use serde_json::{Value, json};
use tokio::{
    task::yield_now,
    time::{interval, timeout},
};

use crate::{
    refusals,
    seaweed::Seaweed,
    support::{self, Ground, PATIENCE, job_id, name, result},
};

const DAY: Duration = Duration::from_secs(86_400);

/// The jobs in the decode queue, once they are as many as expected.
async fn waiting(bus: &Bus, expected: usize) -> Vec<DecodeTask> {
    let reached = async {
        loop {
            let tasks = bus.waiting::<DecodeTask>(Stage::Decode).await.unwrap().tasks.map_ok(|read| match read {
                Read::Task(task) => *task,
                Read::Unread(message) => panic!("a message that could not be read: {}", message.error),
            });
            match tasks.try_collect::<Vec<_>>().await {
                Ok(tasks) if tasks.len() == expected => return tasks,
                _ => yield_now().await,
            }
        }
    };
    timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("there were never {expected} jobs in the queue"))
}

fn parsed(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Chunks and tails, by name.
fn pieces(ground: &Ground) -> Vec<PathBuf> {
    let mut all = [chunks(ground), tails(ground)].concat();
    all.sort_by_key(|path| path.file_name().unwrap().to_owned());
    all
}

fn chunks(ground: &Ground) -> Vec<PathBuf> {
    support::files(&ground.store().join("kv"))
}

fn tails(ground: &Ground) -> Vec<PathBuf> {
    support::files(&ground.store().join("tails"))
}

/// Returns once nothing is left of the jobs that have ended but what others can use.
async fn until_no_tail(ground: &Ground) {
    let gone = async {
        let mut tick = interval(Duration::from_millis(20));
        while !tails(ground).is_empty() {
            tick.tick().await;
        }
    };
    timeout(PATIENCE, gone).await.unwrap_or_else(|_| panic!("{:?} are still there", tails(ground)));
}

#[tokio::test]
async fn what_a_waiting_job_names_stays_and_everything_else_goes() {
    let ground = Ground::sim(&[]).await;
    let [_ingest, _prefill, decode] = ground.workers().await;
    let bus = ground.bus().await;
    let (tenant, lane) = (name("acme"), name("batch"));
    let mut follower = bus.follow(&tenant).await.unwrap();
    let request = |id: &str| {
        let prompt = format!("{id}: {}", "a word and another one. ".repeat(60));
        json!({ "id": id, "prompt": prompt, "max_tokens": 5 }).to_string().into_bytes()
    };
    bus.submit(&tenant, &lane, request("done")).await.unwrap();
    assert_eq!(result(&mut follower, &job_id("done")).await.status, Status::Completed);
    waiting(&bus, 0).await;
    until_no_tail(&ground).await;
    let unused = chunks(&ground).len() as u64;
    decode.drain().await;
    bus.submit(&tenant, &lane, request("waits")).await.unwrap();
    let mut task = waiting(&bus, 1).await.remove(0);
    let named = task.pieces.len() as u64;
    assert!(unused >= 2 && named >= 2, "{unused} and {named} chunks");

    let before = pieces(&ground);
    assert_eq!((before.len() as u64, tails(&ground).len()), (unused + named, 1));
    let stat = parsed(&ground.baton(&["kv", "stat", "--json"]).await);
    assert_eq!((&stat["stored"]["chunks"], &stat["tails"]["chunks"]), (&json!(unused + named), &json!(1)));
    assert!(stat["max_bytes"].as_u64().unwrap() > stat["stored"]["bytes"].as_u64().unwrap(), "{stat}");
    assert_eq!(
        (&stat["waiting_jobs"], &stat["live"]["chunks"], &stat["missing"]),
        (&json!(1), &json!(named), &json!(0))
    );
    assert_eq!(stat["would_remove"]["age"]["chunks"], 0, "all are young");
    let listed = ground.baton(&["kv", "ls", "--json"]).await;
    let listed = String::from_utf8(listed.stdout).unwrap();
    let mut ids: Vec<String> = listed
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().into())
        .collect();
    ids.sort();
    let file_name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(ids, before.iter().map(file_name).collect::<Vec<_>>());

    let everything = ["kv", "gc", "--json", "--max-age", "0s", "--grace", "0s"];
    let dry = parsed(&ground.baton(&[&everything[..], &["--dry-run"]].concat()).await);
    assert_eq!((&dry["removed"]["age"]["chunks"], &dry["dry_run"]), (&json!(unused), &json!(true)));
    assert_eq!(pieces(&ground), before);
    // A message that nobody can read may name anything.
    task.job.id = job_id("foreign");
    let subject = bus.layout().decode(&task.job.model, &task.job.lane, &task.job.tenant);
    let unreadable = [envelope::encode(&task).unwrap(), b"and more".to_vec()].concat();
    bus.forward(subject, &task.job, (Stage::Prefill, 1), unreadable).await.unwrap();
    aged(&ground, &"ab".repeat(32), DAY);
    let careful = parsed(&ground.baton(&everything).await);
    assert_eq!((&careful["unread"], &careful["removed"]["age"]["chunks"]), (&json!(1), &json!(1)), "{careful}");
    assert_eq!(pieces(&ground), before, "all but what was not used for long before that message");

    // A worker puts that message aside; the job finds its chunks, and then they are of no more use.
    let decode = ground.worker("decode", "decode-2").await;
    let outcome = result(&mut follower, &job_id("waits")).await;
    assert_eq!((outcome.status, outcome.timings.recomputed_tokens), (Status::Completed, 0));
    waiting(&bus, 0).await;
    until_no_tail(&ground).await;
    decode.drain().await;
    bus.submit(&tenant, &lane, request("last")).await.unwrap();
    let last = waiting(&bus, 1).await.remove(0);
    let gone = parsed(&ground.baton(&everything).await);
    assert_eq!((&gone["removed"]["age"]["chunks"], &gone["failed"]), (&json!(unused + named - 1), &json!(0)), "{gone}");
    assert_eq!(pieces(&ground).len(), last.pieces.len());
    let _decode = ground.worker("decode", "decode-3").await;
    let outcome = result(&mut follower, &job_id("last")).await;
    assert_eq!((outcome.status, outcome.timings.recomputed_tokens), (Status::Completed, 0));
    waiting(&bus, 0).await;
    until_no_tail(&ground).await;
    let again = ground.baton(&["kv", "gc", "--max-age", "0s", "--grace", "0s"]).await;
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert_eq!(chunks(&ground), Vec::<PathBuf>::new());
}

/// A file in the store that was last used some time ago.
fn aged(ground: &Ground, name: &str, age: Duration) -> PathBuf {
    aged_in(ground, "kv", name, age)
}

fn aged_in(ground: &Ground, place: &str, name: &str, age: Duration) -> PathBuf {
    let path = ground.store().join(place).join(&name[..2]).join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = File::create(&path).unwrap();
    file.set_modified(SystemTime::now() - age).unwrap();
    path
}

async fn until_gone(path: &Path) {
    let gone = async {
        let mut tick = interval(Duration::from_millis(20));
        while path.exists() {
            tick.tick().await;
        }
    };
    timeout(PATIENCE, gone).await.unwrap_or_else(|_| panic!("{} is still there", path.display()));
}

#[tokio::test]
async fn a_worker_removes_by_itself_what_was_forgotten() {
    let ground = Ground::sim(&["store.max_age=2d"]).await;
    let (id, half) = ("ab".repeat(32), format!("{}#1", "cd".repeat(32)));
    let (old, crashed) = (aged(&ground, &id, 3 * DAY), aged(&ground, &half, DAY));
    // The tail of a job whose worker died: no message names it.
    let tail = aged_in(&ground, "tails", &id, DAY);
    let kept = [
        aged(&ground, &"cd".repeat(32), DAY),
        aged(&ground, &format!("{id}#7"), Duration::ZERO),
        aged_in(&ground, "tails", &"cd".repeat(32), Duration::ZERO),
    ];
    let _worker = ground.worker("decode", "decode-1").await;
    for path in [old, crashed, tail] {
        until_gone(&path).await;
    }
    assert!(kept.iter().all(|path| path.exists()));
    // The turn is taken: whoever comes next leaves it alone until the interval has passed.
    let bus = ground.bus().await;
    let turn = bus.jobs().await.unwrap().turn("gc", DAY).await.unwrap();
    assert!(matches!(turn, Turn::In(wait) if wait > DAY / 2), "{turn:?}");
    let asked = [(); 5].map(|()| async { bus.jobs().await.unwrap().turn("other", DAY).await.unwrap() });
    let turns = futures::future::join_all(asked).await;
    assert_eq!(turns.iter().filter(|turn| **turn == Turn::Mine).count(), 1, "{turns:?}");
}

#[tokio::test]
async fn the_words_of_a_store_that_refuses_reach_the_job_and_the_doctor() {
    let seaweed = Seaweed::start().await;
    let (denies, mut vars) = (Arc::new(AtomicBool::new(false)), seaweed.vars());
    let denied = denies.clone();
    let refuse = move |_: &refusals::Request| denied.load(Relaxed).then_some((403, "AccessDenied"));
    vars[0].1 = refusals::in_front_of(&vars[0].1, refuse).await;
    let url = format!("store.url={}", seaweed.url("refuses"));
    let ground = Ground::sim(&[&url]).await.environment(vars);
    let _workers = ground.workers().await;
    denies.store(true, Relaxed);
    assert!(ground.baton(&["submit", "hello there", "--id", "told", "--max-tokens", "2"]).await.status.success());
    let reason = async {
        loop {
            let job = parsed(&ground.baton(&["job", "told", "--json"]).await);
            if let Some(reason) = job["waiting"]["reason"].as_str() {
                return reason.to_owned();
            }
        }
    };
    let reason = timeout(PATIENCE, reason).await.expect("the job never told what it waits for");
    assert!(reason.contains("403"), "{reason}");
    let doctor = ground.baton(&["doctor", "--json"]).await;
    let told = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(doctor.status.code() == Some(1) && told.contains("403 Forbidden"), "{told}");
    denies.store(false, Relaxed);
    assert!(ground.baton(&["result", "told", "--wait"]).await.status.success());
}
