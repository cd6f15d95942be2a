//! Files of answers: cut off, continued, and such as are none.

use baton_contract::JobId;
use serde_json::json;

use super::*;

fn tag(custom: &str, id: &str) -> Tag {
    Tag { id: JobId::new(id).unwrap(), custom_id: Some(custom.into()), endpoint: None }
}

#[test]
fn a_file_cut_off_anywhere_is_repaired_and_continued() {
    let error = ApiError::invalid("broken");
    let lines: Vec<Vec<u8>> =
        (0..3).map(|i| refusal(&tag(&format!("c{i}"), &format!("job-{i}")), i, &error).unwrap()).collect();
    let whole = lines.concat();
    let directory = tempfile::tempdir().unwrap();
    for cut in 0..=whole.len() {
        // A file of its own: a process that another test starts just then holds the last one's lock for a moment.
        let path = directory.path().join(format!("out-{cut}.jsonl"));
        fs::write(&path, &whole[..cut]).unwrap();
        let (mut output, mut answered) = open(&path, false).unwrap();
        for (i, line) in lines.iter().enumerate() {
            if answered.need(&tag(&format!("c{i}"), &format!("job-{i}"))) == Need::Run {
                output.add(line).unwrap();
            }
        }
        assert_eq!(fs::read(&path).unwrap(), whole, "cut off after {cut} bytes");
    }
}

#[test]
fn what_is_no_file_of_answers_stays_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let answer = json!({ "id": "a", "status": "completed" });
    let strange = [
        "my notes\nand more".to_owned(),
        "my notes".to_owned(),
        format!("{answer}\n{{\"id\": \"q1\", \"prompt\": \"x\"}}\n{{\"id\""),
        format!("{answer}\n{{\"custom_id\": \"q1\", \"met"),
        r#"{"id": "q1", "prompt": "a whole line of requests, without its end"}"#.to_owned(),
    ];
    for (number, text) in strange.iter().enumerate() {
        let path = directory.path().join(format!("strange-{number}"));
        fs::write(&path, text).unwrap();
        let error = open(&path, false).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("is no answer of a batch"), "{text:?}: {error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), *text);
    }
    // One that never ends and has no lines.
    let zeros = directory.path().join("zeros");
    File::create(&zeros).unwrap().set_len(2 * LONGEST).unwrap();
    assert!(open(&zeros, false).is_err());
    assert_eq!(fs::metadata(&zeros).unwrap().len(), 2 * LONGEST);
    let (mut full, answered) = open(Path::new("/dev/full"), false).unwrap();
    assert_eq!(answered.before, 0);
    assert_eq!(full.add(b"x\n").unwrap_err().kind(), io::ErrorKind::StorageFull);
}

#[test]
fn what_a_line_needs_depends_on_its_name_and_its_content() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out.jsonl");
    let hex = "0123456789abcdef0123456789abcdef";
    fs::write(
        &path,
        format!(
            "{}\n{}\n",
            json!({ "id": format!("batch-{hex}-2"), "custom_id": "a", "response": {}, "error": null }),
            json!({ "id": "own", "error": { "code": "internal" } }),
        ),
    )
    .unwrap();
    let (_output, mut answered) = open(&path, false).unwrap();
    assert_eq!((answered.before, answered.failed_before), (2, 1));
    assert!(open(&path, false).is_err(), "two runs write one file");
    assert_eq!(answered.need(&tag("a", &format!("batch-{hex}"))), Need::Nothing);
    assert_eq!(answered.need(&tag("a", &format!("batch-{hex}"))), Need::Twice);
    assert_eq!(answered.need(&tag("b", &format!("batch-{hex}"))), Need::Run);
    assert_eq!(answered.need(&tag("b", &format!("batch-{hex}"))), Need::Twice);
    let own = Tag { custom_id: None, ..tag("", "own") };
    assert_eq!(answered.need(&own), Need::Nothing);

    let again = directory.path().join("again.jsonl");
    fs::copy(&path, &again).unwrap();
    let path = again;
    let (_output, mut answered) = open(&path, true).unwrap();
    assert_eq!((answered.before, answered.failed_before), (1, 0));
    assert_eq!(answered.need(&own), Need::Run, "its error was taken out");
    assert_eq!(answered.need(&tag("a", "batch-another")), Need::Changed);
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 1);
}
