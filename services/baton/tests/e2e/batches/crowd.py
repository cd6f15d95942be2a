"""A batch of many requests, of which every hundredth is bad. Arguments: URL, `begin`, how many and the completion window, or
`check` or `delete`, how many and the batch's id."""

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
elif what == "delete":
    batch = client.batches.retrieve(argument)
    files = [id for id in (batch.input_file_id, batch.output_file_id, batch.error_file_id) if id]
    assert all(client.files.delete(id).deleted for id in files)
    print(len(files))
else:
    batch = client.batches.retrieve(argument)
    assert batch.status in ("completed", "cancelled", "expired", "failed"), batch
    output, errors = [
        [json.loads(line) for line in client.files.content(id).text.splitlines()] if id else []
        for id in (batch.output_file_id, batch.error_file_id)
    ]
    ids = sorted(int(one["custom_id"].removeprefix("line-")) for one in output + errors)
    if batch.status == "failed":
        # Its files could not hold all answers: what is in them is whole, and no line is twice in them.
        assert [error.code for error in batch.errors.data] == ["output_too_large"] and batch.failed_at, batch
        assert len(ids) == len(set(ids)) and set(ids) < set(range(count)), (len(ids), len(set(ids)))
    else:
        assert ids == list(range(count)), (len(ids), len(set(ids)))
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (count, len(output), len(errors)), (counts, len(output), len(errors))
    assert all(one["response"]["body"]["usage"]["completion_tokens"] >= 1 for one in output)
    bad = [n for n in range(count) if n % 100 == 7]
    failed = sorted(int(one["custom_id"].removeprefix("line-")) for one in errors if one["response"])
    if batch.status == "completed":
        assert failed == bad and len(errors) == len(bad), (failed, bad)
        assert batch.usage.output_tokens == sum(one["response"]["body"]["usage"]["completion_tokens"] for one in output)
    elif batch.status != "failed":
        left = [one["custom_id"] for one in errors if one["error"] and one["error"]["code"] == "batch_" + batch.status]
        assert len(left) + len(failed) == len(errors) and set(failed) <= set(bad), batch
    print(len(output), len(errors))
