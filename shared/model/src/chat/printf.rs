//! Python's `'%s' % value` in chat templates. The template engine has the formatting as its filter `format`, but no such operator,
//! so each one whose left side is a literal becomes that filter.

use super::python::expression_end;

/// The source with `'literal' % operand` written as `'literal'|format(operand)`. A tuple's members are the arguments.
pub(super) fn with_format_filters(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find('{') {
        let close = match rest.as_bytes().get(open + 1) {
            Some(b'{') => "}}",
            Some(b'%') => "%}",
            Some(b'#') => {
                let end = rest[open..].find("#}").map_or(rest.len(), |end| open + end);
                out.push_str(&rest[..end]);
                rest = &rest[end..];
                continue;
            }
            _ => {
                out.push_str(&rest[..=open]);
                rest = &rest[open + 1..];
                continue;
            }
        };
        let start = open + 2;
        let end = start + expression_end(&rest[start..], close);
        out.push_str(&rest[..start]);
        let expression = &rest[start..end];
        rewrite(expression, &mut out);
        rest = &rest[end..];
        if is_raw(expression) {
            let end = rest.find("endraw").unwrap_or(rest.len());
            out.push_str(&rest[..end]);
            rest = &rest[end..];
        }
    }
    out.push_str(rest);
    out
}

/// Up to the end of a `raw` tag's block everything is text.
fn is_raw(tag: &str) -> bool {
    tag.trim_matches(|character: char| character.is_whitespace() || "+-".contains(character)) == "raw"
}

fn rewrite(expression: &str, out: &mut String) {
    let mut rest = expression;
    while let Some(start) = rest.find(['"', '\'']) {
        let literal_end = start + string_end(&rest[start..]);
        out.push_str(&rest[..literal_end]);
        rest = &rest[literal_end..];
        let Some(after) = rest.trim_start().strip_prefix('%') else { continue };
        let operand = &after[..operand_end(after)];
        out.push_str("|format(");
        rewrite(arguments(operand.trim()), out);
        out.push(')');
        rest = &after[operand.len()..];
    }
    out.push_str(rest);
}

/// A tuple's members, or the operand as it is.
fn arguments(operand: &str) -> &str {
    let inner = operand.strip_prefix('(').and_then(|inner| inner.strip_suffix(')'));
    inner.filter(|_| group_end(operand) == operand.len()).unwrap_or(operand)
}

/// Where a value ends, with its attributes, items, calls and filters.
fn operand_end(text: &str) -> usize {
    let mut at = skip(text, 0, |byte| byte.is_ascii_whitespace());
    at = skip(text, at, |byte| matches!(byte, b'+' | b'-'));
    at += match text.as_bytes().get(at) {
        Some(b'(' | b'[' | b'{') => group_end(&text[at..]),
        Some(b'"' | b'\'') => string_end(&text[at..]),
        _ => skip(&text[at..], 0, is_word),
    };
    loop {
        let next = skip(text, at, |byte| byte.is_ascii_whitespace());
        at = match text.as_bytes().get(next) {
            Some(b'(' | b'[') => next + group_end(&text[next..]),
            Some(b'.' | b'|') => {
                let name = skip(text, next + 1, |byte| byte.is_ascii_whitespace());
                skip(text, name, is_word)
            }
            _ => return at,
        };
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.'
}

/// The place of the first byte from `at` on that is not such a one.
fn skip(text: &str, at: usize, such: impl Fn(u8) -> bool) -> usize {
    at + text.as_bytes()[at..].iter().take_while(|byte| such(**byte)).count()
}

/// The length of what a bracket opens, with the bracket that closes it.
fn group_end(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(&byte) = text.as_bytes().get(at) {
        match byte {
            b'"' | b'\'' => {
                at += string_end(&text[at..]);
                continue;
            }
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' if depth == 1 => return at + 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    text.len()
}

/// The length of a string literal, with both quotes.
fn string_end(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 1;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'\\' => at += 1,
            _ if byte == bytes[0] => return at + 1,
            _ => {}
        }
        at += 1;
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_literals_operator_becomes_a_filter() {
        for (source, expected) in [
            ("{{ '%s' % name }}", "{{ '%s'|format(name) }}"),
            ("{{ '%s: %d' % (a, 3) ~ b }}", "{{ '%s: %d'|format(a, 3) ~ b }}"),
            ("{% set t = \"%s\" % m['a)'].b | trim %}x", "{% set t = \"%s\"|format(m['a)'].b | trim) %}x"),
            ("{{ '%s' % ('%s' % x) + y }}", "{{ '%s'|format('%s'|format(x)) + y }}"),
            ("{{ '%s' % (a or b).c }}", "{{ '%s'|format((a or b).c) }}"),
            ("{{ 7 % 3 }} '5' % 3 {# '%s' % x #}", "{{ 7 % 3 }} '5' % 3 {# '%s' % x #}"),
            ("{% raw %}{{ '%s' % x }}{% endraw %}", "{% raw %}{{ '%s' % x }}{% endraw %}"),
            ("{%- if a == 'é' -%}é{%- endif %}", "{%- if a == 'é' -%}é{%- endif %}"),
            ("{{ '\\'%s' % x", "{{ '\\'%s'|format(x)"),
            ("{{ 'open", "{{ 'open"),
        ] {
            assert_eq!(with_format_filters(source), expected);
        }
    }
}
