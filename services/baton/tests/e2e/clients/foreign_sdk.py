# OpenAI's Python client against a gateway before llama.cpp's server. Any assertion that fails ends it with an error.
import io
import json
import os
import time

import openai

client = openai.OpenAI(base_url=os.environ["GATEWAY"] + "/v1", api_key="none", timeout=240, max_retries=0)
parameters = {
    "type": "object", "properties": {"city": {"type": "string", "enum": ["Rome", "Paris"]}}, "required": ["city"],
    "additionalProperties": False}
weather = {"name": "get_weather", "description": "Tells the weather", "parameters": parameters, "strict": True}
other = {"name": "get_time", "description": "Tells the time", "parameters": {"type": "object", "properties": {}}, "strict": True}
tools = [{"type": "function", "function": function} for function in (other, weather)]
asked = {"role": "user", "content": "What is the weather in Rome?"}
ask = dict(
    model="smol", messages=[asked], tools=tools[1:], tool_choice="required", parallel_tool_calls=False, temperature=0,
    max_completion_tokens=60)
assert [(model.id, model.owned_by) for model in client.models.list()] == [("smol", "llama.cpp")]

# A tool is called: whole, in the SDK's own assembly of a stream, and the one that was chosen.
whole = client.chat.completions.create(**ask).choices[0]
(call,) = whole.message.tool_calls
assert (whole.finish_reason, whole.message.content, call.function.name) == ("tool_calls", None, "get_weather"), whole
assert json.loads(call.function.arguments)["city"] in ("Rome", "Paris") and call.id, call
with client.chat.completions.stream(**ask, stream_options={"include_usage": True}) as stream:
    final = stream.get_final_completion()
(streamed,) = final.choices[0].message.tool_calls
assert streamed.function.name == "get_weather" and streamed.function.arguments == call.function.arguments, streamed
assert final.choices[0].finish_reason == "tool_calls" and final.usage.completion_tokens > 0, final
named = {**ask, "tools": tools, "tool_choice": {"type": "function", "function": {"name": "get_weather"}}}
(chosen,) = client.chat.completions.create(**named).choices[0].message.tool_calls
assert chosen.function.name == "get_weather"

# What it told comes back with the call, as the SDK has it.
answer = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
after = client.chat.completions.create(**{
    **ask, "messages": [asked, whole.message, answer], "tool_choice": "none", "max_completion_tokens": 5})
assert after.choices[0].finish_reason in ("length", "stop") and not after.choices[0].message.tool_calls, after

# The engine's own words, and what it is known not to have.
for extra, param, words in [
    ({"grammar": "root ::= ("}, None, "failed to parse grammar"),
    ({"guided_regex": "a+"}, "guided_regex", "regular expressions"),
    ({"frobnicate": 1}, "frobnicate", "no such field"),
]:
    try:
        client.chat.completions.create(model="smol", messages=[asked], max_tokens=2, extra_body=extra)
        raise AssertionError(f"{extra} was taken")
    except openai.BadRequestError as error:
        assert words in str(error) and (param is None or error.param == param), error


# A batch, of which the engine refuses a line.
def line(number):
    body = {"model": "smol", "messages": [asked], "max_tokens": 2, "temperature": 0}
    if number == 3:
        body["grammar"] = "root ::= ("
    return {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


text = "".join(json.dumps(line(number)) + "\n" for number in range(6))
file = client.files.create(file=("lines.jsonl", io.BytesIO(text.encode())), purpose="batch")
batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
deadline = time.monotonic() + 240
while batch.status not in ("completed", "failed", "expired", "cancelled"):
    assert time.monotonic() < deadline, batch
    time.sleep(0.1)
    batch = client.batches.retrieve(batch.id)
assert (batch.request_counts.completed, batch.request_counts.failed) == (5, 1), batch
(error,) = [json.loads(line) for line in client.files.content(batch.error_file_id).text.splitlines()]
assert error["custom_id"] == "line-3" and error["response"]["status_code"] == 400, error
assert "failed to parse grammar" in error["response"]["body"]["error"]["message"], error
print("all is well")
