# OpenAI's Python client against a gateway whose pipeline is the sim engine. Any assertion that fails ends it with an error.
import json
import os
import typing

import openai
from openai.types import chat, completion_create_params

client = openai.OpenAI(base_url=os.environ["GATEWAY"] + "/v1", api_key=os.environ["KEY"], timeout=120)
ask = dict(model="sim", messages=[{"role": "user", "content": "Tell me a story."}], max_tokens=40, seed=7)

# Models.
assert [model.id for model in client.models.list()] == ["sim"]
assert client.models.retrieve("sim").object == "model"

# A chat, whole and streamed: the same seed says the same words.
whole = client.chat.completions.create(**ask)
answer = whole.choices[0].message.content
assert whole.id.startswith("chatcmpl-") and whole.object == "chat.completion" and whole.model == "sim"
assert whole.choices[0].message.role == "assistant" and whole.choices[0].finish_reason == "length", whole
assert whole.usage.completion_tokens == 40 and whole.usage.total_tokens == whole.usage.prompt_tokens + 40
assert whole.usage.prompt_tokens_details.cached_tokens >= 0
chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
assert chunks[0].choices[0].delta.role == "assistant"
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == answer
assert len(chunks) > 20, "the answer came in one piece"
assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 40
assert all(chunk.usage is None for chunk in chunks[:-1])

# The SDK's own assembly of a stream, which takes none that was cut off.
with client.chat.completions.stream(**ask, stop=" ") as stream:
    final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "stop" and final.message.content == answer.split(" ")[0]

# Several answers, each with a seed of its own, whole and streamed.
many = client.chat.completions.create(**ask, n=3, temperature=2)
texts = [choice.message.content for choice in many.choices]
assert [choice.index for choice in many.choices] == [0, 1, 2] and len(set(texts)) == 3, texts
streamed = {0: "", 1: "", 2: ""}
for chunk in client.chat.completions.create(**ask, n=3, temperature=2, stream=True):
    streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
assert list(streamed.values()) == texts

# Log-probabilities, whole and streamed.
told = client.chat.completions.create(**ask, logprobs=True, top_logprobs=3).choices[0].logprobs.content
assert len(told) == 40 and all(len(one.top_logprobs) == 3 and one.logprob <= 0 for one in told)
assert "".join(one.token for one in told) == answer
pieces = client.chat.completions.create(**ask, logprobs=True, top_logprobs=3, stream=True)
pieces = [one for chunk in pieces if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content]
assert pieces == told

# A form.
schema = {"type": "object", "properties": {"wet": {"type": "boolean"}}, "required": ["wet"], "additionalProperties": False}
form = {"type": "json_schema", "json_schema": {"name": "water", "strict": True, "schema": schema}}
assert list(json.loads(client.chat.completions.create(**ask, response_format=form).choices[0].message.content)) == ["wet"]
regex = client.chat.completions.create(**ask, extra_body={"structured_outputs": {"regex": "yes|no"}})
assert regex.choices[0].message.content in ("yes", "no")

# What goes along: a text in parts, a stop text, penalties, vLLM's additions, whose it is.
parts = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Go on."}]}]
stopped = client.chat.completions.create(
    model="sim", messages=parts, max_completion_tokens=200, stop=[" "], seed=1, presence_penalty=0.5, frequency_penalty=0.5,
    logit_bias={"97": -5}, top_p=0.9, user="u-1", metadata={"k": "v"}, extra_body={"top_k": 40, "min_p": 0.01})
assert " " not in stopped.choices[0].message.content and stopped.choices[0].finish_reason == "stop", stopped

# The older endpoint.
old = client.completions.create(model="sim", prompt="Once upon a time", max_tokens=20, seed=3, logprobs=2)
assert old.object == "text_completion" and len(old.choices[0].logprobs.tokens) == 20
assert old.choices[0].logprobs.text_offset == list(range(20))
for drawn, top in zip(old.choices[0].logprobs.tokens, old.choices[0].logprobs.top_logprobs):
    assert drawn in top and 2 <= len(top) <= 3, (drawn, top)
text = "".join(chunk.choices[0].text for chunk in client.completions.create(
    model="sim", prompt="Once upon a time", max_tokens=20, seed=3, stream=True))
assert text == old.choices[0].text

# The job behind an answer; the same key is the same job, another request under it is refused.
raw = client.chat.completions.with_raw_response.create(**ask, extra_headers={"Idempotency-Key": "once"})
again = client.chat.completions.with_raw_response.create(**ask, extra_headers={"Idempotency-Key": "once"})
assert raw.headers["baton-job-id"] == "once" and raw.parse().id == again.parse().id == "chatcmpl-once"
assert raw.parse().created == again.parse().created

# Each request has an id, an answer can be sent back as it came, and what is null is as if it were not there: every parameter
# that the SDK knows.
assert raw.request_id.startswith("req_") and raw.request_id != again.request_id
said = whole.choices[0].message
for message in (said, said.model_dump()):
    client.chat.completions.create(**{**ask, "messages": [*ask["messages"], message, {"role": "user", "content": "Go on."}]})
for create, params, must in [
    (client.chat.completions.create, chat.completion_create_params, {"messages": ask["messages"]}),
    (client.completions.create, completion_create_params, {"prompt": "Once"}),
]:
    known = typing.get_type_hints(params.CompletionCreateParamsBase)
    nothing = {name: None for name in known if name not in must}
    create(**must, model="sim", extra_body={**nothing, "max_tokens": 2})


def fails(error, param=None, code=None, **changes):
    try:
        list(client.chat.completions.create(**{**ask, **changes}) or [])
    except error as found:
        assert param is None or found.param == param, (found.param, found)
        assert code is None or found.code == code, (found.code, found)
        return found
    raise AssertionError(f"{changes} did not fail")


fails(openai.ConflictError, code="conflict", seed=8, extra_headers={"Idempotency-Key": "once"})
fails(openai.ConflictError, code="conflict", seed=8, stream=True, extra_headers={"Idempotency-Key": "once"})
fails(openai.NotFoundError, param="model", code="model_not_found", model="gpt-4o")
fails(openai.BadRequestError, param="temperature", temperature=3)
fails(openai.BadRequestError, param="store", code="unsupported_parameter", store=True)
fails(openai.BadRequestError, param="frobnicate", code="unknown_parameter", extra_body={"frobnicate": 1})
fails(openai.BadRequestError, code="context_length_exceeded", messages=[{"role": "user", "content": "x" * 20_000}])
fails(openai.BadRequestError, code="context_length_exceeded", stream=True, messages=[{"role": "user", "content": "x" * 20_000}])
fails(openai.BadRequestError, param="service_tier", service_tier="priority")
tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
fails(openai.BadRequestError, param="tools", tools=tools)
image = [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]
fails(openai.BadRequestError, param="messages[0].content[0].type", messages=[{"role": "user", "content": image}])
try:
    openai.OpenAI(base_url=os.environ["GATEWAY"] + "/v1", api_key="wrong").models.list()
    raise AssertionError("a wrong key was let in")
except openai.AuthenticationError as error:
    assert error.code == "invalid_api_key", error
print("all is well")
