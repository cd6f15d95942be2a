//! Chat templates in the shapes that Gemma 3, Qwen 2.5, Qwen 3 and Llama 3 publish theirs: the same constructs of the
//! template language around words of our own.

use serde_json::{Value, json};

use super::render;

fn chat() -> Vec<Value> {
    vec![
        json!({"role": "system", "content": "Be brief."}),
        json!({"role": "user", "content": " Is it high tide? "}),
        json!({"role": "assistant", "content": "<think>\nThe moon is up.\n</think>\n\nYes."}),
        json!({"role": "user", "content": "And now?"}),
    ]
}

/// Gemma 3: the system text goes before the first turn, roles alternate, content may be a list of parts.
const GEMMA: &str = r#"{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set prefix = "" -%}
    {%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Turns must alternate between user and assistant") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<turn>' + role + '
' + (prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<picture>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("No such content") }}
    {%- endif -%}
    {{ '</turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<turn>model
'}}
{%- endif -%}
"#;

#[test]
fn gemma_3() {
    let expected = "<bos><turn>user\nBe brief.\n\nIs it high tide?</turn>\n<turn>model\n<think>\nThe moon is up.\n</think>\
                    \n\nYes.</turn>\n<turn>user\nAnd now?</turn>\n<turn>model\n";
    assert_eq!(render(GEMMA, &chat()).unwrap(), expected);
    let parts = json!([{"type": "text", "text": " One "}, {"type": "image"}]);
    let expected = "<bos><turn>user\nOne<picture></turn>\n<turn>model\n";
    assert_eq!(render(GEMMA, &[json!({"role": "user", "content": parts})]).unwrap(), expected);
    assert!(render(GEMMA, &chat()[2..]).unwrap_err().contains("Turns must alternate"));
}

/// Qwen 2.5: tools in the system text, tool answers inside a user's turn.
const QWEN2: &str = r#"{%- if tools %}
    {{- '[system\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You help.' }}
    {%- endif %}
    {{- "\n\nTools:\n" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- ']\n' }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '[system\n' + messages[0]['content'] + ']\n' }}
    {%- else %}
        {{- '[system\nYou help.]\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '[' + message.role + '\n' + message.content + ']' + '\n' }}
    {%- elif message.role == "assistant" %}
        {{- '[' + message.role }}
        {%- if message.content %}
            {{- '\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\n(call ' }}
            {{- tool_call.name }}
            {{- ' ' }}
            {{- tool_call.arguments | tojson }}
            {{- ')' }}
        {%- endfor %}
        {{- ']\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '[user' }}
        {%- endif %}
        {{- '\n(answer ' }}
        {{- message.content }}
        {{- ')' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- ']\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '[assistant\n' }}
{%- endif %}
"#;

#[test]
fn qwen_2() {
    let expected = "[system\nYou help.]\n[user\nAnd now?]\n[assistant\n";
    assert_eq!(render(QWEN2, &chat()[3..]).unwrap(), expected);
    let call = json!({"function": {"name": "tide", "arguments": {"at": "noon", "place": "Ålesund"}}});
    let messages = [
        json!({"role": "system", "content": "Be brief."}),
        json!({"role": "assistant", "content": "", "tool_calls": [call]}),
        json!({"role": "tool", "content": "high"}),
        json!({"role": "tool", "content": "low"}),
    ];
    let expected = "[system\nBe brief.]\n[assistant\n(call tide {\"at\": \"noon\", \"place\": \"Ålesund\"})]\n\
                    [user\n(answer high)\n(answer low)]\n[assistant\n";
    assert_eq!(render(QWEN2, &messages).unwrap(), expected);
}

/// Qwen 3: looks from the end for the last question, drops the thoughts before it, and may be told not to think.
const QWEN3: &str = r#"{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string and not(message.content.startswith('<answer>') and message.content.endswith('</answer>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '[' + message.role + '\n' + content + ']' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set thoughts = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thoughts = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set thoughts = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last %}
            {%- if loop.last or (not loop.last and thoughts) %}
                {{- '[' + message.role + '\n{' + thoughts.strip('\n') + '}\n\n' + content.lstrip('\n') }}
            {%- else %}
                {{- '[' + message.role + '\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '[' + message.role + '\n' + content }}
        {%- endif %}
        {{- ']\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '[assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '{}\n\n' }}
    {%- endif %}
{%- endif %}
"#;

#[test]
fn qwen_3() {
    let expected = "[user\n Is it high tide? ]\n[assistant\nYes.]\n[user\nAnd now?]\n[assistant\n";
    assert_eq!(render(QWEN3, &chat()).unwrap(), expected);
    let expected = "[user\n Is it high tide? ]\n[assistant\n{The moon is up.}\n\nYes.]\n[assistant\n";
    assert_eq!(render(QWEN3, &chat()[..3]).unwrap(), expected);
    let answered = [chat()[1].clone(), json!({"role": "user", "content": "<answer>9</answer>"}), chat()[2].clone()];
    assert!(render(QWEN3, &answered).unwrap().contains("{The moon is up.}"), "an answer of a tool is no question");
}

/// Llama 3.1 and later: a header with dates, tools off, trimmed content.
const LLAMA3: &str = r#"{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "1 May 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<system>\n\n" }}
{%- if builtin_tools is defined or tools is not none %}
    {{- "Environment: box\n" }}
{%- endif %}
{%- if builtin_tools is defined %}
    {{- "Tools: " + builtin_tools | reject('equalto', 'code') | join(", ") + "\n\n"}}
{%- endif %}
{{- "Today: " + date_string + "\n\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\n\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<end>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<' + message['role'] + '>\n\n'+ message['content'] | trim + '<end>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("One call at a time!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<assistant>\n\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<end>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<ipython>\n\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<end>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<assistant>\n\n' }}
{%- endif %}
"#;

#[test]
fn llama_3() {
    let expected =
        "<bos><system>\n\nToday: 29 Feb 2024\n\nBe brief.<end><user>\n\nIs it high tide?<end><assistant>\n\n";
    assert_eq!(render(LLAMA3, &chat()[..2]).unwrap(), expected);
    let call = json!({"function": {"name": "tide", "arguments": {"at": "noon"}}});
    let messages = [
        json!({"role": "assistant", "content": "", "tool_calls": [call.clone()]}),
        json!({"role": "tool", "content": {"level": 3}}),
    ];
    let expected = "<bos><system>\n\nToday: 29 Feb 2024\n\n<end><assistant>\n\n{\"name\": \"tide\", \"parameters\": \
                    {\"at\": \"noon\"}}<end><ipython>\n\n{\"level\": 3}<end><assistant>\n\n";
    assert_eq!(render(LLAMA3, &messages).unwrap(), expected);
    let two = [json!({"role": "assistant", "content": "", "tool_calls": [call.clone(), call]})];
    assert!(render(LLAMA3, &two).unwrap_err().contains("One call at a time"));
}
