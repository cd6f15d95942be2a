"""Baton with OpenAI's SDK: an answer, a stream, and a file of requests.

    pip install openai
    OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_API_KEY=none python3 examples/openai_sdk.py

Without keys the gateway serves this machine only, whatever the API key says; `baton gateway key NAME` makes one.
"""

import io
import json
import time

import openai

client = openai.OpenAI()
model = next(iter(client.models.list())).id
question = {"model": model, "messages": [{"role": "user", "content": "Why is the sea salty?"}], "max_tokens": 48}

# An answer. The key names the job: asked again, the same answer comes back, and it goes on if this process dies.
answer = client.chat.completions.create(**question, extra_headers={"Idempotency-Key": "sea"})
print(answer.choices[0].message.content, answer.usage.completion_tokens, "tokens")

# A stream, in the lane of the least urgency.
for chunk in client.chat.completions.create(**question, stream=True, extra_headers={"Baton-Lane": "batch"}):
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()

# A file of requests, driven by whichever gateway gets to it.
lines = [
    {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": {**question, "seed": number}}
    for number in range(3)
]
requests = io.BytesIO("\n".join(map(json.dumps, lines)).encode())
file = client.files.create(file=("requests.jsonl", requests), purpose="batch")
batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
while batch.status not in ("completed", "failed", "expired", "cancelled"):
    time.sleep(1)
    batch = client.batches.retrieve(batch.id)
print(batch.status, batch.request_counts)
for line in client.files.content(batch.output_file_id).text.splitlines():
    answer = json.loads(line)
    print(answer["custom_id"], answer["response"]["body"]["choices"][0]["message"]["content"])
