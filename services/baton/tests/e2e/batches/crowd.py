"""A batch of many requests, of which every hundredth is bad. Arguments: URL, `begin`, how many and the completion window, or
`check`, how many and the batch's id."""

import io
import json
import sys

import openai

url, what, count, argument = sys.argv[1:]
client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=5)
count = int(count)

if what == "begin":
    text = "".join(
        json.dumps({
            "custom_id": f"line-{n}", "method": "POST", "url": "/v1/completions",
            "body": {"model": "sim", "prompt": f"Number {n}", "max_tokens": 0 if n % 100 == 7 else 3},
        }) + "\n"
        for n in range(count)
    )
    file = client.files.create(file=("crowd.jsonl", io.BytesIO(text.encode())), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window=argument)
    print(batch.id)
else:
    batch = client.batches.retrieve(argument)
    assert batch.status in ("completed", "cancelled", "expired"), batch
    output, errors = [
        [json.loads(line) for line in client.files.content(id).text.splitlines()] if id else []
        for id in (batch.output_file_id, batch.error_file_id)
    ]
    ids = sorted(int(one["custom_id"].removeprefix("line-")) for one in output + errors)
    assert ids == list(range(count)), (len(ids), len(set(ids)))
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (count, len(output), len(errors)), (counts, len(output), len(errors))
    assert all(one["response"]["body"]["usage"]["completion_tokens"] >= 1 for one in output)
    bad = [n for n in range(count) if n % 100 == 7]
    failed = sorted(int(one["custom_id"].removeprefix("line-")) for one in errors if one["response"])
    if batch.status == "completed":
        assert failed == bad and len(errors) == len(bad), (failed, bad)
        assert batch.usage.output_tokens == sum(one["response"]["body"]["usage"]["completion_tokens"] for one in output)
    else:
        left = [one["custom_id"] for one in errors if one["error"] and one["error"]["code"] == "batch_" + batch.status]
        assert len(left) + len(failed) == len(errors) and set(failed) <= set(bad), batch
    print(len(output), len(errors))
