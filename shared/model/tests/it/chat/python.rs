//! Templates give the texts that Python's Jinja gives with the options of Hugging Face's transformers 5.24, which wrote what
//! is expected here.

use serde_json::{Value, json};

use super::render;

fn messages() -> Vec<Value> {
    let call = json!({ "zeta": "é\"", "alpha": { "n": 3 }, "list": [], "map": {} });
    let numbers = json!([1.5, 1e16, 1e-7, 0.0001, true, null, -0.0]);
    vec![
        json!({ "role": "user", "content": " A <b> & 'c' ", "z": 1, "a": numbers, "call": call }),
        json!({ "role": "assistant", "content": "x,y,,z" }),
    ]
}

#[test]
fn templates_mean_what_they_mean_in_python() {
    let cases = [
        ("{{ {} is sequence }}{{ none is iterable }}{{ 1 is sequence }}{{ 1 is iterable }}", "TrueFalseFalseFalse"),
        ("{{ messages[0].call | tojson }}", r#"{"zeta": "é\"", "alpha": {"n": 3}, "list": [], "map": {}}"#),
        ("{{ messages[0].a | tojson }}", "[1.5, 1e+16, 1e-07, 0.0001, true, null, -0.0]"),
        ("{{ messages[0].content | tojson }}", r#"" A <b> & 'c' ""#),
        (
            "{{ messages[0].call | tojson(indent=2) }}",
            "{\n  \"zeta\": \"é\\\"\",\n  \"alpha\": {\n    \"n\": 3\n  },\n  \"list\": [],\n  \"map\": {}\n}",
        ),
        (
            "{{ messages[0].call | tojson(ensure_ascii=true, sort_keys=true) }}",
            r#"{"alpha": {"n": 3}, "list": [], "map": {}, "zeta": "\u00e9\""}"#,
        ),
        (
            "{{ messages[0].call | tojson(separators=(',', ':')) }}",
            r#"{"zeta":"é\"","alpha":{"n":3},"list":[],"map":{}}"#,
        ),
        (
            "{{ messages[0].call | tojson(indent=4, separators=(',', ': ')) }}",
            "{\n    \"zeta\": \"é\\\"\",\n    \"alpha\": {\n        \"n\": 3\n    },\n    \"list\": [],\n    \"map\": {}\n}",
        ),
        ("{{ {'b': 1, 'a': [true, none]} | tojson }}", r#"{"b": 1, "a": [true, null]}"#),
        (
            "{% for k, v in messages[0].call.items() %}{{ k }}={{ v }};{% endfor %}",
            r#"zeta=é";alpha={'n': 3};list=[];map={};"#,
        ),
        (
            "{{ messages[0].call.keys() | list }}|{{ messages[0].call.values() | list | length }}",
            "['zeta', 'alpha', 'list', 'map']|4",
        ),
        ("{{ messages[0].call.get('none') }}|{{ messages[0].call.get('x', 'y') }}", "None|y"),
        (
            "{{ true }} {{ none }} {{ 1.0 }} {{ 3 / 2 }} {{ 7 // 2 }} {{ -7 % 3 }} {{ 2 ** 3 }}",
            "True None 1.0 1.5 3 2 8",
        ),
        (
            "{{ messages[1].content.rsplit(',', 1) }}{{ messages[1].content.split(',') }}{{ messages[1].content.split(',', 1)[1] }}",
            "['x,y,', 'z']['x', 'y', '', 'z']y,,z",
        ),
        (
            "{{ messages[1].content.rsplit(',')[-1] }}|{{ ' a  b c '.split() }}|{{ ' a  b c '.split(None, 1) }}|{{ ' a  b c '.rsplit(None, 1) }}|{{ 'a-b'.split(sep='-', maxsplit=1) }}",
            "z|['a', 'b', 'c']|['a', 'b c ']|[' a  b', 'c']|['a', 'b']",
        ),
        (
            r"{{ 'xxaxx'.strip('x') }}|{{ 'xya'.lstrip('yx') }}|{{ 'ab\n'.rstrip('\n') }}|{{ ' a '.strip() }}",
            "a|a|ab|a",
        ),
        ("{{ 'abc'.startswith('ab') }}|{{ 'abc'.startswith(('x', 'a')) }}|{{ 'abc'.endswith('c') }}", "True|True|True"),
        (
            "{{ 'a.b.c'.partition('.') }}|{{ 'a.b.c'.rpartition('.') }}|{{ 'ab'.partition('.') }}|{{ 'ab'.rpartition('.')[2] }}",
            "('a', '.', 'b.c')|('a.b', '.', 'c')|('ab', '', '')|ab",
        ),
        (
            "{{ 'prefix-a'.removeprefix('prefix-') }}|{{ 'a.txt'.removesuffix('.txt') }}|{{ '7'.zfill(3) }}|{{ '-7'.zfill(3) }}|{{ 'a'.ljust(3) }}|{{ 'a'.rjust(3, '.') }}",
            "a|a|007|-07|a  |..a",
        ),
        (
            "{{ 'hello'.index('l') }}|{{ 'hello'.rindex('l') }}|{{ [3, 4].index(4) }}|{{ 'hello'.find('z') }}|{{ 'éa'.index('a') }}",
            "2|3|1|-1|1",
        ),
        (
            "{{ messages[::-1] | map(attribute='role') | join(',') }}|{{ messages[1:] | length }}|{{ 'abcdef'[1:-1:2] }}|{{ messages[-1].role }}",
            "assistant,user|1|bd|assistant",
        ),
        (
            "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}|{{ messages | rejectattr('role', 'in', ['user']) | map(attribute='content') | first }}|{{ messages | selectattr('call') | list | length }}",
            "1|x,y,,z|1",
        ),
        (
            "{% set ns = namespace(found=false, n=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.found = true %}{% continue %}{% endif %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.found }} {{ ns.n }}",
            "True 1",
        ),
        (
            "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ loop.index0 }}{{ loop.last }}{{ loop.nextitem.role }}{% endfor %}",
            "0Falseassistant",
        ),
        (
            "{% macro say(who, what='?') %}<{{ who }}:{{ what }}>{% endmacro %}{{ say('a') }}{{ say('b', what='c') }}",
            "<a:?><b:c>",
        ),
        ("{% set a %}x{{ 1 }}{% endset %}{{ a | upper }}{% set b = [1] + [2] %}{{ b }}", "X1[1, 2]"),
        (
            "{{ '%s is %d' | format('x', 3) }}|{{ '{} {n}'.format(1, n=2) }}|{{ 'a' ~ 1 ~ none }}|{{ 'ab' * 2 }}",
            "x is 3|1 2|a1None|abab",
        ),
        (
            "{{ '%s is %d' % ('x', 3) }}|{{ \"%.2f\" % 1.5 }}|{% set t = '%s:%s' % (messages[0].role, messages[1].content | upper) %}{{ t }}|{{ 7 % 3 }}|{{ '<%s>' % messages[1].role | upper ~ '%' }}",
            "x is 3|1.50|user:X,Y,,Z|1|<ASSISTANT>%",
        ),
        (
            "{{ tools is none }}{{ tools is defined }}{{ documents is none }}{{ nothing is defined }}{% if not tools %}none{% endif %}",
            "TrueTrueTrueFalsenone",
        ),
        (
            "{{ [3, 1, 2] | sort | join('-') }}|{{ {'b': 1, 'a': 2} | dictsort }}|{{ 'a b' | title }}|{{ ['a', 'a'] | unique | list }}|{{ 'abc' | replace('b', 'x') }}|{{ 'x' | default('y') }}{{ nothing | default('y') }}{{ '' | default('y', true) }}",
            "1-2-3|[('a', 2), ('b', 1)]|A B|['a']|axc|xyy",
        ),
        (
            "{{ 'a' is string }}{{ 1 is number }}{{ [] is iterable }}{{ {} is mapping }}{{ 'a' is iterable }}{{ 'a' is sequence }}{{ true is boolean }}{{ none is none }}{{ 1 is integer }}{{ 1.0 is float }}{{ 'a' in 'abc' }}{{ 'z' not in ['a'] }}",
            "TrueTrueTrueTrueTrueTrueTrueTrueTrueTrueTrueTrue",
        ),
        (
            "{{ strftime_now('%d %b %Y') }}|{{ strftime_now('%-d %B %y, %H:%M:%S') }}|{{ strftime_now('%A %j %p %%Y [%Z%z] %f') }}",
            "29 Feb 2024|29 February 24, 13:04:05|Thursday 060 PM %Y [] 678000",
        ),
        (
            "{% for m in messages -%}\n  [{% generation %}{% set inner = m.role %}{{ inner }}{% endgeneration %}]{{ inner is defined }}\n{% endfor %}",
            "[user]False\n[assistant]False\n",
        ),
        (
            "{%- for m in messages -%}\n  {%- generation -%}\n {{ m.role }} \n{%- endgeneration -%}\n{%- endfor -%}",
            "userassistant",
        ),
        (
            r#"{# {% generation %} #}{{ '{% generation %}' }}{% raw %}{% generation %}{{ x }}{% endraw %}{% if '%}' == "%}" %}y{% endif %}"#,
            "{% generation %}{% generation %}{{ x }}y",
        ),
        ("  {% if true %}\n    a\n  {%- endif %}\nb\n", "    ab"),
        (
            r"{{ 'a\nb' | indent(2) }}|{{ ' a ' | trim }}|{{ 'xay' | trim('xy') }}|{{ [1, 2, 3] | sum }}|{{ 3.7 | int }}|{{ '5' | int + 1 }}|{{ [[1, 2], [3]] | map('length') | list }}|{{ 5 | string + '!' }}",
            "a\n  b|a|a|6|3|6|[2, 1]|5!",
        ),
        (
            "{{ (messages | first).role }}{{ (messages | last)['role'] }}{{ messages[5] is defined }}{{ messages[0].nothing is defined }}{{ messages[0]['nothing'] or 'else' }}",
            "userassistantFalseFalseelse",
        ),
        (
            "{{ range(3) | list }}{% for i in range(5, 0, -2) %}{{ i }}{% endfor %}{{ 'yes' if messages else 'no' }}{{ 'x' if false }}|",
            "[0, 1, 2]531yes|",
        ),
        (
            "{% for k, v in messages[0].call | dictsort %}{{ k }} {% endfor %}{% for x in [] %}{% else %}empty{% endfor %}{{ joiner is defined }}{{ cycler is defined }}",
            "alpha list map zeta emptyTrueTrue",
        ),
        (
            r#"{{ "a'b" | tojson }}|{{ messages[0].call }}"#,
            r#""a'b"|{'zeta': 'é"', 'alpha': {'n': 3}, 'list': [], 'map': {}}"#,
        ),
    ];
    let messages = messages();
    let other = |(template, expected): &(&str, &str)| {
        let found = render(template, &messages);
        (found.as_deref() != Ok(expected)).then(|| format!("{template}\n  gives    {found:?}\n  expected {expected:?}"))
    };
    let others: Vec<String> = cases.iter().filter_map(other).collect();
    assert!(others.is_empty(), "{}", others.join("\n"));
}

#[test]
fn what_fails_in_python_fails_here() {
    let cases = [
        ("{{ raise_exception('no tools here') }}", "no tools here"),
        ("{{ nothing.more }}", "undefined value"),
        ("{{ nothing | tojson }}", "not JSON serializable"),
        ("{{ 'a'.index('b') }}", "substring not found"),
        ("{{ 'a'.split('') }}", "empty separator"),
        ("{{ 'a'.frobnicate() }}", "frobnicate"),
        ("{{ strftime_now('%Q') }}", "no format of dates"),
        ("{% nonsense %}", "nonsense"),
        ("{% generation %}", "end of input"),
    ];
    for (template, part) in cases {
        let error = render(template, &messages()).expect_err(template);
        assert!(error.contains(part), "{template}: {error}");
    }
}
