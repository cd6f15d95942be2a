use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use baton_contract::causes;

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The few routes of a hub that a download takes.
struct Server {
    endpoint: String,
    /// The paths that were asked for.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Serves `files` as `owner/name` until the test ends.
    fn start(files: &'static [(&'static str, &'static str)]) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heard = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let path = answer(stream.unwrap(), files);
                heard.lock().unwrap().push(path);
            }
        });
        Server { endpoint, asked }
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

/// Answers one request and closes the connection; returns what was asked for.
fn answer(mut stream: TcpStream, files: &[(&str, &str)]) -> String {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
    let path = lines.next().unwrap().split(' ').nth(1).unwrap().to_owned();
    let headers: Vec<String> =
        lines.take_while(|line| !line.is_empty()).map(|line| line.to_ascii_lowercase()).collect();
    let range = headers.iter().find_map(|line| line.strip_prefix("range: bytes="));
    let (status, more, body) = if path == "/api/models/owner/name/revision/main" {
        let siblings = files.iter().map(|(name, _)| serde_json::json!({ "rfilename": name })).collect::<Vec<_>>();
        ("200 OK", String::new(), serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string())
    } else {
        let name = path.strip_prefix(&format!("/owner/name/resolve/{COMMIT}/"));
        match files.iter().find(|(file, _)| Some(*file) == name) {
            None => ("404 Not Found", String::new(), String::new()),
            Some((name, content)) => {
                let (start, end) = range.unwrap().split_once('-').unwrap();
                let (start, end) =
                    (start.parse::<usize>().unwrap(), end.parse().map_or(content.len(), |end: usize| end + 1));
                let more = format!(
                    "Content-Range: bytes {start}-{}/{}\r\nETag: \"{}\"\r\nX-Repo-Commit: {COMMIT}\r\n",
                    end - 1,
                    content.len(),
                    name.replace('/', "-")
                );
                ("206 Partial Content", more, content[start..end].to_owned())
            }
        }
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{more}\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).unwrap();
    path
}

fn options(cache: &Path, server: &Server) -> Options {
    Options { cache: cache.to_owned(), endpoint: Some(server.endpoint.clone()), token: None }
}

fn model(text: &str) -> Hub {
    Hub::parse(text).unwrap()
}

#[test]
fn a_sharded_model_is_downloaded_once() {
    let server = Server::start(&[
        ("README.md", "not needed"),
        ("chat_template.jinja", "{{ messages }}"),
        ("config.json", "{}"),
        ("model-1.safetensors", "one"),
        ("model-2.safetensors", "two"),
        ("model.safetensors.index.json", r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#),
        ("tokenizer.json", "{ }"),
    ]);
    let cache = tempfile::tempdir().unwrap();
    let options = options(cache.path(), &server);
    let folder = fetch(&model("hf:owner/name"), &options).unwrap();
    assert_eq!(folder, cache.path().join(format!("models--owner--name/snapshots/{COMMIT}")));
    let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap();
    assert_eq!((read("model-1.safetensors"), read("model-2.safetensors")), ("one".to_owned(), "two".to_owned()));
    assert_eq!(read("chat_template.jinja"), "{{ messages }}");
    assert!(!folder.join("README.md").exists());

    // From now on the cache is enough, whether the branch is named, nothing, or the commit.
    let asked = server.asked();
    for text in ["hf:owner/name", "hf:owner/name@main", &format!("hf:owner/name@{COMMIT}")] {
        assert_eq!(fetch(&model(text), &options).unwrap(), folder);
    }
    assert_eq!(server.asked(), asked);
    // A shard that is missing is fetched again, and nothing else.
    fs::remove_file(folder.join("model-2.safetensors")).unwrap();
    assert_eq!(fetch(&model("hf:owner/name"), &options).unwrap(), folder);
    assert_eq!(read("model-2.safetensors"), "two");
    let again = server.asked.lock().unwrap()[asked..].to_vec();
    assert!(again.iter().all(|path| path.contains("/api/") || path.ends_with("model-2.safetensors")), "{again:?}");
}

#[test]
fn a_gguf_file_is_downloaded_by_name() {
    let server = Server::start(&[("q4/tiny.gguf", "GGUF"), ("q8/tiny.gguf", "other")]);
    let cache = tempfile::tempdir().unwrap();
    let options = options(cache.path(), &server);
    let path = fetch(&model("hf:owner/name/q4/tiny.gguf"), &options).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "GGUF");
    let message = |text| causes(&fetch(&model(text), &options).unwrap_err());
    assert!(message("hf:owner/name/x.gguf").contains("its GGUF files are q4/tiny.gguf, q8/tiny.gguf"));
    let folder = message("hf:owner/name");
    assert!(folder.contains("no config.json; its GGUF files are q4/tiny.gguf, q8/tiny.gguf"), "{folder}");
    let unknown = message("hf:owner/other");
    assert!(unknown.contains("404") && unknown.contains("huggingface-cli download owner/other"), "{unknown}");
}

#[test]
fn a_split_gguf_file_is_downloaded_whole() {
    const PARTS: [(&str, &str); 2] = [("q4/m-00001-of-00002.gguf", "one"), ("q4/m-00002-of-00002.gguf", "two")];
    let server = Server::start(&PARTS);
    let cache = tempfile::tempdir().unwrap();
    let asking = options;
    let options = asking(cache.path(), &server);
    for (file, content) in PARTS {
        let path = fetch(&model(&format!("hf:owner/name/{file}")), &options).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
        for (other, content) in PARTS {
            let other = path.with_file_name(other.trim_start_matches("q4/"));
            assert_eq!(fs::read_to_string(&other).unwrap(), content);
        }
        // A part that is missing is fetched again.
        let last = path.with_file_name("m-00002-of-00002.gguf");
        fs::remove_file(&last).unwrap();
        fetch(&model("hf:owner/name/q4/m-00001-of-00002.gguf"), &options).unwrap();
        assert!(last.exists());
    }
    let incomplete = Server::start(&[("m-00001-of-00002.gguf", "one")]);
    let (cache, hub) = (tempfile::tempdir().unwrap(), "hf:owner/name/m-00001-of-00002.gguf");
    let message = causes(&fetch(&model(hub), &asking(cache.path(), &incomplete)).unwrap_err());
    assert!(message.contains("the repository has no m-00002-of-00002.gguf"), "{message}");
}

#[test]
fn shards_outside_the_folder_are_refused() {
    let server = Server::start(&[
        ("config.json", "{}"),
        ("model.safetensors.index.json", r#"{"weight_map": {"a": "../../../../x.safetensors"}}"#),
        ("tokenizer.json", "{ }"),
    ]);
    let cache = tempfile::tempdir().unwrap();
    let message = causes(&fetch(&model("hf:owner/name"), &options(cache.path(), &server)).unwrap_err());
    assert!(message.contains("no file of the folder"), "{message}");
}
