//! The command line as people and scripts meet it: exit codes, contexts, lists, screens, completions.

use std::{os::unix::fs::PermissionsExt, path::Path, process::Stdio, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::Command,
    time::{sleep, timeout},
};

use crate::support::{BATON, Ground, PATIENCE, lines};

fn objects(output: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(output).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// Runs a command of a user with this configuration folder.
async fn of_user(folder: &Path, words: &[&str], variables: &[(&str, &str)]) -> (i32, String, String) {
    let mut command = Command::new(BATON);
    command.args(words).env("XDG_CONFIG_HOME", folder).envs(variables.iter().copied()).stdin(Stdio::null());
    let output = timeout(PATIENCE, command.kill_on_drop(true).output()).await.expect("too slow").unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// Runs a shell line on a terminal of its own, types `keys` once `cue` has appeared, and returns all that was shown.
async fn on_a_terminal(line: &str, cue: &str, keys: &str) -> String {
    let mut script = Command::new("script");
    script.args(["-qec", line, "/dev/null"]).env("TERM", "xterm-256color").kill_on_drop(true);
    let mut script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut typed, mut shown) = (script.stdin.take().unwrap(), script.stdout.take().unwrap());
    let all = timeout(PATIENCE, async {
        let (mut all, mut told, mut block) = (Vec::new(), false, [0; 4096]);
        loop {
            let read = shown.read(&mut block).await.unwrap();
            if read == 0 {
                return all;
            }
            all.extend_from_slice(&block[..read]);
            if !told && String::from_utf8_lossy(&all).contains(cue) {
                told = true;
                typed.write_all(keys.as_bytes()).await.unwrap();
            }
        }
    });
    let all = all.await.expect("the terminal did not end");
    assert!(script.wait().await.unwrap().success(), "{line}");
    String::from_utf8_lossy(&all).into_owned()
}

#[tokio::test]
async fn jobs_are_listed_by_their_last_change_and_followed() {
    let ground = Ground::sim(&["models.sim.sim.context=512"]).await;
    let list = async |words: &[&str]| objects(&ground.baton(&[&["jobs", "--json"], words].concat()).await.stdout);
    let _ingest = ground.worker("ingest", "ingest-1").await;
    assert!(
        ground.baton(&["submit", "x", "--id", "open", "--lane", "batch", "--tenant", "else"]).await.status.success()
    );
    let open = async {
        loop {
            match list(&["--status", "open", "--lane", "batch", "--model", "sim"]).await.pop() {
                Some(job) => return job,
                None => sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let open = timeout(PATIENCE, open).await.expect("the job is not listed");
    assert_eq!((&open["id"], &open["state"], &open["tenant"]), (&json!("open"), &json!("accepted"), &json!("else")));
    let _prefill = ground.worker("prefill", "prefill-1").await;
    let _decode = ground.worker("decode", "decode-1").await;
    assert!(ground.baton(&["result", "open", "--tenant", "else", "--wait"]).await.status.success());

    let request = |i: usize| json!({ "id": format!("j{i}"), "prompt": "a question", "max_tokens": 4 });
    let mut requests: Vec<Value> = (0..30).map(request).collect();
    requests.push(json!({ "id": "bad", "prompt": "x".repeat(600) }));
    let file = ground.directory.path().join("requests.jsonl");
    std::fs::write(&file, lines(&requests)).unwrap();
    let submit = ["submit", "--wait", "--json", "--tenant", "acme", "--lane", "batch", "--jsonl"];
    let done = ground.baton(&[&submit[..], &[file.to_str().unwrap()]].concat()).await;
    assert_eq!(done.status.code(), Some(3), "one of them fails");
    let mut last = ground.baton(&["submit", "later", "--id", "last", "--max-tokens", "2", "--wait"]).await;
    assert_eq!(last.status.code(), Some(0));

    let all = list(&[]).await;
    assert_eq!((all.len(), &all[0]["id"]), (33, &json!("last")), "the latest comes first");
    assert!(all.windows(2).all(|pair| pair[0]["changed"].as_str() >= pair[1]["changed"].as_str()), "{all:?}");
    assert_eq!(all[0]["usage"]["completion_tokens"], 2);
    assert_eq!((list(&["--limit", "5"]).await.len(), list(&["--limit", "0"]).await.len()), (5, 33));
    assert_eq!(list(&["--tenant", "acme"]).await.len(), 31);
    assert_eq!(list(&["--lane", "batch", "--model", "sim"]).await.len(), 31, "what was refused has no model");
    assert!(list(&["--status", "open"]).await.is_empty() && list(&["--lane", "elsewhere"]).await.is_empty());
    assert_eq!(list(&["--since", "1h", "--status", "ended"]).await.len(), 33);
    let failed = list(&["--status", "failed,expired"]).await;
    assert_eq!((failed.len(), &failed[0]["error"]["code"]), (1, &json!("prompt_too_long")));
    let table = ground.baton(&["jobs", "--limit", "3"]).await;
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.lines().count() == 5 && table.contains("last") && !table.contains('\u{1b}'), "{table}");

    let mut follow = ground.command(&["jobs", "--follow", "--json", "--status", "completed"]);
    let mut follow = follow.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut told = BufReader::new(follow.stdout.take().unwrap()).lines();
    // It follows from some moment on, so jobs come until one is told.
    let line = async {
        for number in 0.. {
            let id = format!("followed-{number}");
            last = ground.baton(&["submit", "x", "--id", &id, "--max-tokens", "3", "--wait"]).await;
            if let Ok(line) = timeout(Duration::from_millis(300), told.next_line()).await {
                return line.unwrap().unwrap();
            }
        }
        unreachable!("numbers don't end")
    };
    let line: Value = serde_json::from_str(&timeout(PATIENCE, line).await.expect("nothing was told")).unwrap();
    assert_eq!((&line["state"], &line["usage"]["completion_tokens"]), (&json!("completed"), &json!(3)), "{line}");
    follow.kill().await.unwrap();
}

#[tokio::test]
async fn top_shows_stages_and_workers_as_json_text_and_screen() {
    let ground = Ground::sim(&[]).await;
    let _workers = ground.workers().await;
    let view: Value = serde_json::from_slice(&ground.baton(&["top", "--once", "--json"]).await.stdout).unwrap();
    let stages = view["stages"].as_array().unwrap();
    let names: Vec<&Value> = stages.iter().map(|stage| &stage["stage"]).collect();
    assert_eq!(names, ["ingest", "prefill", "decode"]);
    assert!(stages.iter().all(|stage| stage["workers"] == 1 && stage["busy"] == 0 && stage["waiting"] == 0), "{view}");
    assert!(view["workers"].as_array().unwrap().iter().any(|worker| worker["worker"] == "decode-1"), "{view}");
    let page = ground.baton(&["top", "--once"]).await;
    let page = String::from_utf8(page.stdout).unwrap();
    assert!(page.contains("decode-1") && page.contains("KV put/s") && !page.contains('\u{1b}'), "{page}");

    let mut piped = ground.command(&["top"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut told = BufReader::new(piped.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let line = timeout(PATIENCE, told.next_line()).await.expect("no line").unwrap().unwrap();
        let parts = ["decode: 0 waiting", "slots of 1 workers"];
        assert!(parts.iter().all(|part| line.contains(part)) && !line.contains('\u{1b}'), "{line}");
    }
    piped.kill().await.unwrap();

    let url = ground.server.url();
    let shown = on_a_terminal(&format!("stty rows 40 cols 120; {BATON} top --nats {url}"), "decode-1", "q").await;
    assert!(shown.contains("q quit") && shown.contains("\u{1b}[?1049h") && shown.contains("\u{1b}[?1049l"), "{shown}");
    assert!(shown.contains("\u{1b}[38;5;"), "no colour on a terminal: {shown}");
    let line = format!("stty rows 40 cols 120; NO_COLOR=1 {BATON} top --nats {url}");
    let plain = on_a_terminal(&line, "decode-1", "q").await;
    assert!(!plain.contains("\u{1b}[38;5;"), "a colour in spite of NO_COLOR: {plain}");
}

#[tokio::test]
async fn a_batch_shows_a_bar_on_a_terminal_only() {
    let ground = Ground::sim(&["models.sim.sim.decode_s_per_step=0.02"]).await;
    let _workers = ground.workers().await;
    let file = |name: &str| ground.directory.path().join(name).to_str().unwrap().to_owned();
    let request =
        |i: usize| json!({ "id": format!("bar-{i}"), "prompt": "a question", "max_tokens": 40, "model": "sim" });
    std::fs::write(file("in.jsonl"), lines(&(0..40).map(request).collect::<Vec<_>>())).unwrap();
    let url = ground.server.url();
    let line =
        format!("stty rows 40 cols 160; {BATON} batch run --nats {url} {} {}", file("in.jsonl"), file("out.jsonl"));
    let shown = on_a_terminal(&line, "never", "").await;
    for part in ["/40", "output", "tok/s", "left", "40 completed"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let piped = ground.baton(&["batch", "run", &file("in.jsonl"), "-"]).await;
    assert_eq!(piped.status.code(), Some(0));
    assert_eq!(objects(&piped.stdout).len(), 40, "answers on standard output");
    assert!(!String::from_utf8_lossy(&piped.stderr).contains('\u{1b}'));
    let quiet = ground.baton(&["batch", "run", &file("in.jsonl"), "-", "--quiet"]).await;
    assert!(quiet.stderr.is_empty(), "{}", String::from_utf8_lossy(&quiet.stderr));
}

#[tokio::test]
async fn a_context_names_a_pipeline_below_environment_and_flags() {
    let ground = Ground::sim(&[]).await;
    let _workers = ground.workers().await;
    let url = ground.server.url().to_owned();
    for (tenant, id) in [("acme", "of-acme"), ("default", "of-default")] {
        let done = ground.baton(&["submit", "x", "--max-tokens", "2", "--wait", "--tenant", tenant, "--id", id]).await;
        assert!(done.status.success());
    }
    let home = tempfile::tempdir().unwrap();
    let user = async |words: &[&str], variables: &[(&str, &str)]| of_user(home.path(), words, variables).await;
    let none = [("BATON_HOME", home.path().to_str().unwrap())];

    let (code, _, error) = user(&["context", "add", "empty"], &none).await;
    assert!(code == 2 && error.contains("at least one of"), "{error}");
    let secret = url.replace("nats://", "nats://me:hidden@");
    let added = ["context", "add", "good", "--nats", &secret, "--tenant", "acme", "--select"];
    let (code, shown, error) = user(&added, &none).await;
    assert!(code == 0 && shown.contains("good (selected)") && !shown.contains("hidden"), "{shown}{error}");
    let path = home.path().join("baton/contexts/good.toml");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(std::fs::read_to_string(&path).unwrap().contains("hidden"), "the password is kept");
    assert_eq!(user(&added, &none).await.0, 1, "one of that name is there");
    let bad = ["context", "add", "bad", "--nats", "nats://127.0.0.1:1"];
    assert_eq!(user(&bad, &none).await.0, 0);
    let (_, listed, _) = user(&["context", "ls", "--json"], &none).await;
    let names: Vec<_> =
        objects(listed.as_bytes()).iter().map(|it| (it["name"].clone(), it["selected"].clone())).collect();
    assert_eq!(names, [(json!("bad"), json!(false)), (json!("good"), json!(true))]);

    // The selected one, with its tenant; then each layer above it.
    let ids = |(code, out, error): (i32, String, String)| {
        assert_eq!(code, 0, "{error}");
        objects(out.as_bytes()).iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let jobs = ["jobs", "--json"];
    assert_eq!(ids(user(&jobs, &none).await), ["of-acme"]);
    let environment = [none[0], ("BATON_TENANT", "default")];
    assert_eq!(ids(user(&jobs, &environment).await), ["of-default"]);
    assert_eq!(ids(user(&["jobs", "--json", "--tenant", "acme"], &environment).await), ["of-acme"]);
    let unreachable = [none[0], ("BATON__BROKER__URL", "nats://127.0.0.1:1")];
    assert_eq!(user(&jobs, &unreachable).await.0, 1, "the environment is above the context");
    assert_eq!(ids(user(&["jobs", "--json", "--nats", &url], &unreachable).await), ["of-acme"], "a flag is above both");
    let other = [none[0], ("BATON_CONTEXT", "bad")];
    assert_eq!(user(&jobs, &other).await.0, 1);
    assert_eq!(ids(user(&["jobs", "--json", "--context", "good"], &other).await), ["of-acme"]);
    let embedded = [none[0], ("BATON_CONTEXT", "")];
    let (code, _, error) = user(&jobs, &embedded).await;
    assert!(code == 1 && error.contains("no embedded pipeline runs"), "{error}");
    // A pipeline file stands for itself.
    let file = home.path().join("pipeline.toml");
    std::fs::write(&file, "[broker]\nurl = \"nats://127.0.0.1:1\"\n").unwrap();
    assert_eq!(user(&["jobs", "--pipeline", file.to_str().unwrap()], &none).await.0, 1);

    assert_eq!(user(&["context", "select", "gone"], &none).await.0, 1);
    assert_eq!(user(&["context", "rm", "good"], &none).await.0, 0);
    assert!(user(&["context", "show"], &none).await.2.contains("no context is selected"));
    assert!(user(&["context", "show", "../bad"], &none).await.2.contains("no name of a context"));
}

#[tokio::test]
async fn exit_codes_tell_what_became_of_a_command() {
    let ground = Ground::sim(&[]).await;
    let _workers = ground.workers().await;
    let file = ground.directory.path().join("two.jsonl");
    std::fs::write(&file, "{\"prompt\": \"a\"}\n{\"prompt\": \"b\"}\n").unwrap();
    let table = ground.directory.path().join("table.csv");
    std::fs::write(&table, "custom_id,prompt\na,hello\nb,there\n").unwrap();
    let (file, table) = (file.to_str().unwrap(), table.to_str().unwrap());
    for (words, code) in [
        (&["submit", "x", "--id", "fine", "--max-tokens", "2", "--wait"][..], 0),
        (&["submit", "x", "--id", "wrong", "--model", "gpt-7", "--wait"], 3),
        // Without waiting for the result: what becomes no job is told.
        (&["submit", "other words", "--id", "fine"], 3),
        (&["submit", "x", "--regex", "("], 3),
        (&["submit", "x", "--model", "gpt-7"], 3),
        (&["submit", "x", "--id", "taken"], 0),
        (&["result", "fine"], 0),
        (&["result", "wrong"], 3),
        (&["result", "nothing"], 1),
        (&["cancel", "fine", "nothing"], 1),
        (&["submit", "--stream", "--jsonl", file], 2),
        (&["batch", "run", file, file], 2),
        (&["batch", "run", "/nowhere", "-"], 1),
        (&["batch", "run", table, "-"], 1),
        (&["submit", "--no-such-flag"], 2),
        (&["jobs", "--status", "nonsense"], 2),
        (&["jobs", "--nats", "nats://127.0.0.1:1"], 1),
        (&["jobs", "--context", "not-there"], 1),
    ] {
        let output = ground.baton(words).await;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {errors}");
        assert!(!errors.contains('\u{1b}') && (code != 1 || errors.starts_with("error: ")), "{words:?}: {errors}");
    }
    let several = ground.baton(&["cancel", "fine", "nothing", "--json"]).await;
    let told = objects(&several.stdout);
    assert_eq!((&told[0]["answer"], &told[0]["state"]), (&json!("ended"), &json!("completed")));
    assert_eq!((&told[1]["answer"], &told[1]["state"]), (&json!("unknown"), &Value::Null));
    // A reader that has seen enough is no error, on neither stream.
    let line = format!("{BATON} completions zsh | head -c 1 > /dev/null; exit ${{PIPESTATUS[0]}}");
    assert!(Command::new("bash").args(["-c", &line]).status().await.unwrap().success());
    let closed = ground.command(&["jobs", "--status", "expired"]).stderr(Stdio::piped()).spawn();
    let mut closed = closed.unwrap();
    drop(closed.stderr.take());
    assert_eq!(closed.wait().await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn what_is_submitted_without_an_ingest_worker_is_queued_and_said_to_be() {
    let ground = Ground::sim(&[]).await;
    ground.worker("ingest", "ingest-1").await.drain().await;
    let done = ground.baton(&["submit", "x", "--id", "early", "--max-tokens", "2"]).await;
    let told = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!((done.status.code(), String::from_utf8_lossy(&done.stdout).trim()), (Some(0), "early"), "{told}");
    assert!(told.contains("queued") && told.contains("no ingest worker runs"), "{told}");
    let _workers = ground.workers().await;
    assert!(ground.baton(&["result", "early", "--wait"]).await.status.success());
}

#[tokio::test]
async fn a_terminal_shows_what_others_wrote_and_does_not_obey_it() {
    let ground = Ground::sim(&[]).await;
    let _ingest = ground.worker("ingest", "ingest-1").await;
    // The model's name is the sender's, and comes back in the reason.
    let refused = ground.baton(&["submit", "x", "--id", "evil", "--regex", "(\u{1b}[2J", "--wait"]).await;
    assert_eq!(refused.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("\u{1b}[2J"), "piped, every byte comes as it is");
    let url = ground.server.url();
    let line = format!("{BATON} result evil --nats {url} --set models.sim.source=sim --set default_model=sim; true");
    let shown = on_a_terminal(&line, "never shown", "").await;
    assert!(shown.contains("\\u{1b}[2J") && !shown.contains("\u{1b}[2J"), "{shown:?}");
}

#[tokio::test]
async fn completions_are_scripts_that_their_shell_can_read() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = Command::new(BATON).args(["completions", shell]).output().await.unwrap();
        assert!(script.status.success());
        let text = String::from_utf8(script.stdout).unwrap();
        assert!(text.contains("retry-failed") && text.contains("reconcile"), "{shell}");
        if shell == "bash" {
            let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
            bash.stdin.take().unwrap().write_all(text.as_bytes()).await.unwrap();
            assert!(bash.wait().await.unwrap().success(), "bash can't read its script");
        }
    }
}
