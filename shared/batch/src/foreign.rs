//! Files that are no lines of requests, told by how they begin: taken line by line, each of their lines would be a failure.

/// Lines that are looked at.
const LINES: usize = 8;

/// What compressed and binary files begin with.
const MAGIC: [(&[u8], &str); 7] = [
    (b"PAR1", "a Parquet file"),
    (b"\x1f\x8b", "gzip (`gzip -dc` unpacks it)"),
    (b"\x28\xb5\x2f\xfd", "zstd (`zstd -dc` unpacks it)"),
    (b"PK\x03\x04", "a ZIP archive or a workbook"),
    (b"ARROW1", "an Arrow file"),
    (b"\xff\xfe", "text in UTF-16 (`iconv -f UTF-16 -t UTF-8` turns it)"),
    (b"\xfe\xff", "text in UTF-16 (`iconv -f UTF-16 -t UTF-8` turns it)"),
];

/// What an input is, by its first bytes, if none of its first lines can be a request. Bad lines among good ones are no matter.
pub(crate) fn found(start: &[u8]) -> Option<&'static str> {
    if let Some((_, kind)) = MAGIC.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Some(kind);
    }
    if start.contains(&0) {
        return Some("binary bytes");
    }
    let text = start.strip_prefix(baton_openai::BYTE_ORDER_MARK).unwrap_or(start);
    let lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    let lines: Vec<&[u8]> = lines.take(LINES).collect();
    let first = lines.first()?;
    let begins = |line: &&[u8], with: &[u8]| line.starts_with(with);
    if *first == b"{" && lines.get(1).is_some_and(|line| begins(line, b"\"")) {
        return Some("an object over several lines (`jq -c .` writes it in one)");
    }
    if *first == b"[" || (begins(first, b"[") && !lines.iter().any(|line| begins(line, b"{"))) {
        return Some("a JSON array (`jq -c '.[]'` writes its elements one a line)");
    }
    if lines.iter().any(|line| begins(line, b"{")) {
        return None;
    }
    Some(if first.iter().any(|byte| matches!(byte, b',' | b';' | b'\t')) {
        "what looks like CSV"
    } else {
        "other text"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_lines_of_requests_is_told_and_bad_lines_are_not_taken_for_it() {
        for (start, part) in [
            (&b"PAR1\x15\x04"[..], "Parquet"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"\xff\xfe{\0", "UTF-16"),
            (b"{\"a\": \0}", "binary"),
            (b"custom_id,prompt\na,hello\n", "CSV"),
            (b"\n id;prompt\r\n1;x", "CSV"),
            (b"[\n  {\"prompt\": \"a\"}\n]", "array"),
            (b"[{\"prompt\": \"a\"}]", "array"),
            (b"{\n  \"prompt\": \"a\"\n}\n", "several lines"),
            (b"hello\nthere\n", "other text"),
        ] {
            let told = found(start);
            assert!(told.is_some_and(|told| told.contains(part)), "{part}: {told:?}");
        }
        for start in [
            &b""[..],
            b"\n\n",
            b"{\"prompt\": \"a\"}",
            b"\xef\xbb\xbf{\"prompt\": \"a\"}\n",
            b"no JSON\n{\"prompt\": \"a\"}\n",
            b"{\n{\"prompt\": \"a\"}\n",
            b"  {\"custom_id\"",
        ] {
            assert_eq!(found(start), None, "{:?}", String::from_utf8_lossy(start));
        }
    }
}
