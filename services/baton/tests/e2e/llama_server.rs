//! Baton before a foreign engine that others wrote: the server of llama.cpp itself, with a template that knows tools.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Output, Stdio},
    sync::OnceLock,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    process::Command,
    time::{sleep, timeout},
};

use crate::{
    http::{Answer, Connection, events, get, post, streamed},
    sdks,
    support::{BATON, Ground, PATIENCE, Worker, provisioned},
};

const CHAT: &str = "/v1/chat/completions";
const PROMPT: &str = "/v1/completions";

fn client(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/clients").join(file)
}

/// The URL of a server that all tests share. It ends with this process, whose pipe it reads.
fn engine() -> &'static str {
    static ENGINE: OnceLock<(String, Child)> = OnceLock::new();
    let (url, _) = ENGINE.get_or_init(|| {
        let mut server = std::process::Command::new("python3")
            .args([&client("../../../../../shared/upstream/tests/it/llama_server.py"), &provisioned().1])
            .arg("4")
            .arg(client("llama_tools.jinja"))
            .env("PYTHONPATH", sdks::llama_cpp())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(server.stdout.take().unwrap()).lines();
        let told = lines.map(Result::unwrap).find_map(|line| line.strip_prefix("ready ").map(str::to_owned));
        (told.expect("llama.cpp's server did not begin"), server)
    });
    url
}

/// A pipeline whose model the engine serves, without a worker that prefills, and its gateway.
async fn pipeline() -> (Ground, Vec<Worker>, String) {
    let urls = format!("models.smol.urls={}", engine());
    let model = ["models.smol.source=openai", "models.smol.engine=llama.cpp", &urls, "default_model=smol"];
    let ground = Ground::new(&model).await;
    let mut workers = vec![ground.worker("ingest", "ingest-1").await, ground.worker("decode", "decode-1").await];
    let (gateway, url) = ground.gateway(&[]).await;
    workers.push(gateway);
    (ground, workers, url)
}

fn ask(question: &str, more: Value) -> Value {
    let message = json!({ "role": "user", "content": question });
    // What another request left in its cache changes the last bits of an answer's numbers.
    let mut ask =
        json!({ "model": "smol", "messages": [message], "max_tokens": 6, "temperature": 0, "cache_prompt": false });
    ask.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    ask
}

fn answered(answer: &Answer) -> Value {
    assert_eq!(answer.head.status, 200, "{}", answer.text());
    answer.json()
}

fn weather() -> Value {
    let parameters =
        json!({ "type": "object", "properties": { "city": { "enum": ["Rome", "Paris"] } }, "required": ["city"] });
    json!({ "type": "function", "function": { "name": "get_weather", "description": "Tells the weather", "parameters": parameters } })
}

#[tokio::test]
async fn answers_are_the_foreign_engines_own() {
    let (_ground, _workers, url) = pipeline().await;
    let models = get(&url, "/v1/models").await.json();
    assert_eq!((&models["data"][0]["id"], &models["data"][0]["owned_by"]), (&json!("smol"), &json!("llama.cpp")));

    let both = async |path: &str, ask: &Value| {
        let (theirs, ours) = tokio::join!(post(engine(), path, "", ask), post(&url, path, "", ask));
        (answered(&theirs), answered(&ours))
    };
    let told = json!({ "logprobs": true, "top_logprobs": 2 });
    let (theirs, ours) = both(CHAT, &ask("Name a colour.", told.clone())).await;
    let (their, our) = (&theirs["choices"][0], &ours["choices"][0]);
    assert_eq!(our["message"]["content"], their["message"]["content"]);
    assert_eq!((&our["finish_reason"], &our["finish_reason"]), (&their["finish_reason"], &json!("length")));
    for count in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(ours["usage"][count], theirs["usage"][count], "{count}");
    }
    let logprobs = |choice: &Value| choice["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(logprobs(our).len(), 6);
    for (our, their) in logprobs(our).iter().zip(logprobs(their)) {
        assert_eq!((&our["token"], &our["bytes"]), (&their["token"], &their["bytes"]));
        assert!((our["logprob"].as_f64().unwrap() - their["logprob"].as_f64().unwrap()).abs() < 0.05, "{our} {their}");
        assert_eq!(our["top_logprobs"].as_array().unwrap().len(), 2);
    }
    let content = our["message"]["content"].as_str().unwrap();

    let mut stream = ask("Name a colour.", told);
    (stream["stream"], stream["stream_options"]) = (json!(true), json!({ "include_usage": true }));
    let (chunks, done) = events(&post(&url, CHAT, "", &stream).await.body);
    assert!(done && streamed(&chunks, 0) == content && chunks.len() > 4, "{chunks:?}");
    assert_eq!(chunks.last().unwrap()["usage"]["completion_tokens"], 6);
    let told = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
    let told = told.filter_map(|choice| choice["logprobs"]["content"].as_array()).map(Vec::len);
    assert_eq!(told.sum::<usize>(), 6);

    // The engine's forms, by OpenAI's and by vLLM's words; several answers; the older endpoint.
    let schema = json!({ "type": "object", "properties": { "wet": { "type": "boolean" } }, "required": ["wet"] });
    let form = json!({ "type": "json_schema", "json_schema": { "name": "water", "schema": schema } });
    let (theirs, ours) = both(CHAT, &ask("Is water wet?", json!({ "response_format": form, "max_tokens": 20 }))).await;
    let content = &ours["choices"][0]["message"]["content"];
    assert_eq!(content, &theirs["choices"][0]["message"]["content"]);
    let object: Value = serde_json::from_str(content.as_str().unwrap()).unwrap();
    assert!(object["wet"].is_boolean(), "{object}");
    let choice = ask("Which?", json!({ "structured_outputs": { "choice": ["red", "blue"] } }));
    let chosen = answered(&post(&url, CHAT, "", &choice).await);
    assert!(["red", "blue"].map(Value::from).contains(&chosen["choices"][0]["message"]["content"]), "{chosen}");
    let many = answered(&post(&url, CHAT, "", &ask("Hi", json!({ "n": 2, "temperature": 1, "seed": -1 }))).await);
    assert_eq!(many["choices"].as_array().unwrap().len(), 2, "{many}");
    let prompt = json!({ "prompt": "The sky is", "max_tokens": 4, "temperature": 0, "logprobs": 1, "repetition_penalty": 1.1,
        "cache_prompt": false });
    let ours = answered(&post(&url, PROMPT, "", &prompt).await);
    let theirs = json!({ "prompt": "The sky is", "max_tokens": 4, "temperature": 0, "repeat_penalty": 1.1, "cache_prompt": false });
    let theirs = answered(&post(engine(), PROMPT, "", &theirs).await);
    assert_eq!(ours["choices"][0]["text"], theirs["choices"][0]["text"]);
    assert_eq!(ours["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len(), 4, "{ours}");
}

#[tokio::test]
async fn an_engines_refusal_arrives_in_its_own_words() {
    let (_ground, _workers, url) = pipeline().await;
    for stream in [false, true] {
        let bad = ask("Hi", json!({ "grammar": "root ::= (", "stream": stream }));
        let theirs = post(engine(), CHAT, "", &bad).await.json();
        let ours = post(&url, CHAT, "", &bad).await;
        let (words, told) = (theirs["error"]["message"].as_str().unwrap(), ours.json());
        assert_eq!((ours.head.status, &told["error"]["type"]), (400, &json!("invalid_request_error")), "{told}");
        assert!(told["error"]["message"].as_str().unwrap().contains(words), "{told}");
    }
    // What it is known not to have does not reach it.
    for (fields, param) in
        [(json!({ "guided_regex": "a" }), "guided_regex"), (json!({ "frobnicate": 1 }), "frobnicate")]
    {
        let ours = post(&url, CHAT, "", &ask("Hi", fields)).await;
        let told = &ours.json()["error"];
        assert_eq!((ours.head.status, &told["param"]), (400, &json!(param)), "{told}");
        assert_eq!(told["code"], "unsupported_parameter");
    }
}

/// The slot of the engine in which requests are that ask for it.
async fn slot() -> Value {
    get(engine(), "/slots").await.json()[3].take()
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_engines_work() {
    let (ground, _workers, url) = pipeline().await;
    let long = json!({ "stream": true, "max_tokens": 1900, "ignore_eos": true, "id_slot": 3 });
    let mut connection = Connection::open(&url).await;
    connection.request("POST", CHAT, &[], ask("Count.", long).to_string().as_bytes()).await;
    let head = connection.head().await.unwrap();
    for _ in 0..3 {
        connection.chunk().await.unwrap();
    }
    let busy = slot().await;
    assert_eq!(busy["is_processing"], true, "{busy}");
    drop(connection);
    let generated = timeout(PATIENCE, async {
        let mut generated = 0;
        loop {
            let slot = slot().await;
            if slot["is_processing"] == false || slot["id_task"] != busy["id_task"] {
                return generated;
            }
            generated = slot["next_token"][0]["n_decoded"].as_u64().unwrap();
            sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(generated.await.expect("it still runs") < 1_500, "it ran to its end");
    let result = ground.baton(&["result", &head.headers["baton-job-id"], "--json"]).await;
    let result: Value = serde_json::from_slice(&result.stdout).unwrap();
    assert_eq!(result["status"], "cancelled", "{result}");
}

#[tokio::test]
async fn a_batch_has_an_answer_for_each_line_that_the_engine_takes_and_its_words_for_the_others() {
    const LINES: usize = 20;
    let (ground, _workers, _) = pipeline().await;
    let line = |number: usize| {
        let more = match number {
            7 => json!({ "grammar": "root ::= (" }),
            13 => json!({ "guided_regex": "a+" }),
            _ => json!({ "max_tokens": 2 }),
        };
        let body = ask(&format!("Is {number} even?"), more);
        json!({ "custom_id": format!("line-{number}"), "method": "POST", "url": CHAT, "body": body })
    };
    let call = json!({ "id": "own", "messages": [{ "role": "user", "content": "Weather in Rome?" }], "max_tokens": 60,
        "temperature": 0, "engine": { "tools": [weather()], "tool_choice": "required" } });
    let lines: String = (0..LINES).map(line).chain([call]).map(|line| format!("{line}\n")).collect();
    let (input, output) = (ground.directory.path().join("in.jsonl"), ground.directory.path().join("out.jsonl"));
    std::fs::write(&input, lines).unwrap();
    let paths = [&input, &output].map(|path| path.to_str().unwrap());
    let ran = ground.baton(&["batch", "run", "--quiet", "--in-order", paths[0], paths[1]]).await;
    assert_eq!(ran.status.code(), Some(3), "{}", String::from_utf8_lossy(&ran.stderr));
    let text = std::fs::read_to_string(&output).unwrap();
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let own = lines.pop().unwrap();
    assert_eq!(lines.len(), LINES);
    for (number, line) in lines.iter().enumerate() {
        assert_eq!(line["custom_id"], format!("line-{number}"));
        let words = match number {
            7 => "failed to parse grammar",
            13 => "guided_regex: llama.cpp has no regular expressions",
            _ => {
                assert_eq!(line["response"]["body"]["usage"]["completion_tokens"], 2, "{line}");
                continue;
            }
        };
        assert!(line["error"]["message"].as_str().unwrap().contains(words), "{line}");
    }
    let function = &own["message"]["tool_calls"][0]["function"];
    assert_eq!((&own["finish_reason"], &function["name"]), (&json!("tool_calls"), &json!("get_weather")), "{own}");
    let printed = ground.baton(&["result", "own"]).await;
    let (printed, arguments) = (String::from_utf8(printed.stdout).unwrap(), function["arguments"].as_str().unwrap());
    let first = arguments.lines().next().unwrap();
    assert!(printed.starts_with(&format!("calls get_weather {first}")), "{printed}");
}

#[tokio::test]
async fn the_vendors_clients_use_the_engines_tools() {
    let (_ground, _workers, url) = pipeline().await;
    for (script, packages) in [("foreign_sdk.py", sdks::python_sdk()), ("foreign_agents.py", sdks::agents())] {
        let mut run = Command::new("python3");
        run.arg(client(script))
            .env("PYTHONPATH", packages)
            .env("GATEWAY", &url)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = timeout(PATIENCE, run.output()).await.expect("too slow").unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && stdout.contains("all is well"), "{script}: {stdout}\n{stderr}");
    }
}

#[tokio::test]
async fn the_doctor_calibrate_and_plan_know_a_foreign_engine() {
    let (ground, _workers, _) = pipeline().await;
    let said = |output: Output| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let run = async |arguments: &[&str]| {
        let mut command = Command::new(BATON);
        command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        said(timeout(PATIENCE, command.output()).await.expect("the command did not end").unwrap())
    };
    let told = said(ground.baton(&["doctor", "--json"]).await);
    let checks = told.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let check = checks.into_iter().find(|check| check["check"] == format!("model smol at {}", engine())).unwrap();
    let detail = check["detail"].as_str().unwrap();
    assert!(detail.starts_with("llama.cpp serves") && detail.contains("tells its queue"), "{check}");

    let (pipeline, profile) = (ground.directory.path().join("foreign.toml"), ground.directory.path().join("p.toml"));
    let model = format!("[models.smol]\nsource = \"openai\"\nengine = \"llama.cpp\"\nurls = [\"{}\"]\n", engine());
    std::fs::write(&pipeline, model).unwrap();
    let [pipeline, profile] = [&pipeline, &profile].map(|path| path.to_str().unwrap());
    let calibrate = ["calibrate", "--pipeline", pipeline, "--model", "smol", "--repeat", "1", "--json", "-o", profile];
    let measured: Value = serde_json::from_str(&run(&calibrate).await).unwrap();
    let positive = |key: &str| measured.pointer(key).unwrap().as_f64().unwrap() > 0.0;
    assert!(positive("/decode/slots") && positive("/prefill/slots") && positive("/bus/hop_s"), "{measured}");
    let load = ["--workload", "prompts", "--num-prompts", "50", "--workers", "2", "--json"];
    let plan = [&["plan", "--pipeline", pipeline, "--profile", profile][..], &load].concat();
    let planned: Value = serde_json::from_str(&run(&plan).await).unwrap();
    let splits: Vec<_> = planned["splits"].as_array().unwrap().iter().map(|split| &split["split"]["decode"]).collect();
    assert_eq!(splits, [&json!(1), &json!(2)], "{planned}");
}
