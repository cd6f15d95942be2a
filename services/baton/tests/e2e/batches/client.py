"""Files, batches and webhooks as OpenAI's own client has them. Arguments: URL, a tenant's key, another tenant's key, the
webhook's port and secret."""

import http.client
import http.server
import io
import json
import queue
import sys
import threading
import time
import urllib.parse

import openai
from standardwebhooks.webhooks import Webhook

url, key, foreign_key, port, secret = sys.argv[1:]
client = openai.OpenAI(base_url=url + "/v1", api_key=key, max_retries=0)
stranger = openai.OpenAI(base_url=url + "/v1", api_key=foreign_key, max_retries=0)
nobody = openai.OpenAI(base_url=url + "/v1", api_key="bt-wrong", max_retries=0)

calls = queue.Queue()
refuse = {"next": True}


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        calls.put((dict((name.lower(), value) for name, value in self.headers.items()), body, refuse["next"]))
        # The first call of all is refused, so that it must be repeated.
        self.send_response(503 if refuse["next"] else 204)
        refuse["next"] = False
        self.end_headers()

    def log_message(self, *_):
        pass


receiver = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Receiver)
threading.Thread(target=receiver.serve_forever, daemon=True).start()


def line(custom_id, **body):
    body = {"model": "sim", "messages": [{"role": "user", "content": custom_id}], "max_tokens": 4, **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def upload(lines, name="requests.jsonl", **more):
    text = "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines)
    return client.files.create(file=(name, io.BytesIO(text.encode())), purpose="batch", **more)


def start(file, endpoint="/v1/chat/completions", window="24h", **more):
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window=window, **more)


def wait(batch, patience=200):
    deadline = time.monotonic() + patience
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        assert time.monotonic() < deadline, batch
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    return batch


def answers(file_id):
    return [json.loads(text) for text in client.files.content(file_id).text.splitlines()]


def refused(kind, call, *arguments, **named):
    try:
        found = call(*arguments, **named)
    except kind as error:
        return error
    raise AssertionError(f"expected {kind.__name__}, found {found}")


# A batch of good and bad requests.
good = [line(f"good-{n}") for n in range(5)]
bad = [line("no-such-model", model="other"), line("odd", colour="red"), line("long", max_tokens=0), line("stream", stream=True)]
file = upload(good + bad, expires_after={"anchor": "created_at", "seconds": 7200})
assert (file.object, file.purpose, file.status, file.filename) == ("file", "batch", "processed", "requests.jsonl"), file
assert file.expires_at == file.created_at + 7200
batch = start(file, metadata={"run": "nightly"}, output_expires_after={"anchor": "created_at", "seconds": 3600})
assert batch.object == "batch" and batch.expires_at == batch.created_at + 24 * 3600 and batch.metadata == {"run": "nightly"}
batch = wait(batch)
assert batch.status == "completed", batch
counts = batch.request_counts
assert (counts.total, counts.completed, counts.failed) == (9, 5, 4), counts
assert batch.in_progress_at and batch.finalizing_at and batch.completed_at and batch.errors is None, batch
output = answers(batch.output_file_id)
assert sorted(one["custom_id"] for one in output) == [f"good-{n}" for n in range(5)], output
tokens = 0
for one in output:
    body = one["response"]["body"]
    assert one["response"]["status_code"] == 200 and one["error"] is None and one["id"].startswith("batch_req_"), one
    assert body["object"] == "chat.completion" and body["choices"][0]["message"]["role"] == "assistant", body
    tokens += body["usage"]["completion_tokens"]
assert batch.usage.output_tokens == tokens > 0, (batch.usage, tokens)
errors = {one["custom_id"]: one["response"] for one in answers(batch.error_file_id)}
assert sorted(errors) == ["long", "no-such-model", "odd", "stream"], errors
assert errors["no-such-model"]["status_code"] == 404 and errors["odd"]["status_code"] == 400, errors
assert errors["odd"]["body"]["error"]["param"] == "colour" and errors["stream"]["body"]["error"]["param"] == "stream", errors
assert client.files.retrieve(batch.output_file_id).purpose == "batch_output"

# Its end is told, again after a refusal, and signed.
seen = []
while len(seen) < 2:
    headers, body, was_refused = calls.get(timeout=60)
    event = Webhook(secret).verify(body, headers)
    assert event["type"] == "batch.completed" and event["data"]["id"] == batch.id, event
    seen.append((headers["webhook-id"], was_refused))
assert seen[0][0] == seen[1][0] and [was_refused for _, was_refused in seen] == [True, False], seen

# So is that of a single job whose sender wants it, and of no other.
asked = {"model": "sim", "prompt": "x", "max_tokens": 2}
client.completions.create(**asked)
one = client.completions.with_raw_response.create(**asked, extra_headers={"Baton-Webhook": "true"})
headers, body, _ = calls.get(timeout=60)
event = Webhook(secret).verify(body, headers)
assert event["type"] == "job.completed" and event["data"]["id"] == one.headers["baton-job-id"], event
assert refused(openai.BadRequestError, stranger.completions.create, **asked, extra_headers={"Baton-Webhook": "true"}).param == "Baton-Webhook"

# Files that do not hold fail as a whole.
for lines, codes in [
    ([good[0], "{", good[0]], ["invalid_json_line", "duplicate_custom_id"]),
    ([{**good[0], "url": "/v1/completions"}], ["invalid_url"]),
    (["", " "], ["empty_file"]),
]:
    failed = wait(start(upload(lines)))
    assert failed.status == "failed" and failed.failed_at, failed
    assert [error.code for error in failed.errors.data] == codes, failed
    assert failed.output_file_id is None and failed.error_file_id is None

# Lists.
listed = client.batches.list(limit=2)
assert len(listed.data) == 2 and listed.has_more and listed.data[0].created_at >= listed.data[1].created_at
everything = [one.id for one in client.batches.list(limit=2)]
assert len(everything) == len(set(everything)) == 4 and batch.id in everything, everything
mine = [one.id for one in client.files.list(limit=3, order="asc", purpose="batch")]
assert len(mine) == len(set(mine)) == 4 and file.id in mine, mine

# Another tenant sees nothing of it, and nobody does without a key.
for call in [
    lambda: stranger.files.retrieve(file.id), lambda: stranger.files.content(file.id), lambda: stranger.files.delete(file.id),
    lambda: stranger.batches.retrieve(batch.id), lambda: stranger.batches.cancel(batch.id),
    lambda: stranger.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"),
]:
    refused(openai.NotFoundError, call)
assert not stranger.files.list().data and not stranger.batches.list().data
refused(openai.AuthenticationError, lambda: nobody.files.list())
refused(openai.AuthenticationError, lambda: nobody.batches.create(input_file_id="f", endpoint="e", completion_window="24h"))

# Wrong wishes are named.
assert refused(openai.BadRequestError, upload, good, extra_body={"purpose": "fine-tune"}).param == "purpose"
assert refused(openai.BadRequestError, start, file, endpoint="/v1/embeddings").param == "endpoint"
assert refused(openai.BadRequestError, start, file, window="1y").param == "completion_window"
assert refused(openai.BadRequestError, client.files.list, limit=0).param == "limit"
refused(openai.BadRequestError, client.files.list, extra_query={"colour": "red"})
refused(openai.ConflictError, client.batches.cancel, batch.id)

# What is no form, and ids that are paths.
host = urllib.parse.urlparse(url).netloc


def raw(method, path, body=None, headers={}):
    connection = http.client.HTTPConnection(host, timeout=60)
    try:
        connection.request(method, path, body, {"authorization": "Bearer " + key, **headers})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    except (BrokenPipeError, ConnectionResetError):
        # Refused before all of it was sent.
        return 400, None
    finally:
        connection.close()


multipart = {"content-type": "multipart/form-data; boundary=x"}
part = b'--x\r\ncontent-disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
whole = part % (b"purpose", b"", b"batch") + part % (b"file", b'; filename="../../etc/passwd"', b"{}")
status, made = raw("POST", "/v1/files", whole + b"--x--\r\n", multipart)
assert status == 200 and made["filename"] == "passwd", made
for body, headers in [
    (b"", {}),
    (b"{}", {"content-type": "application/json"}),
    (b"", {"content-type": "multipart/form-data"}),
    (b"", multipart),
    (b"--x\r\n\r\n", multipart),
    (whole, multipart),
    (whole + whole + b"--x--\r\n", multipart),
    (part % (b"purpose", b"", b"batch") + b"--x--\r\n", multipart),
    (part % (b"purpose", b"", b"\xff\xfe") + whole + b"--x--\r\n", multipart),
    (part % (b"colour", b"", b"red") + whole + b"--x--\r\n", multipart),
    (b"--x\r\ncontent-disposition: form-data; name=\"" + b"y" * (9 << 20), multipart),
    (part % (b"purpose", b"", b"z" * (9 << 20)) + b"--x--\r\n", multipart),
]:
    status, answer = raw("POST", "/v1/files", body, headers)
    assert 400 <= status < 500, (body[:200], status, answer)
for tricky in ["..%2f..%2fetc%2fpasswd", "file-..", "file-%00", "*", "file-*", "default.x", "%ff", "a" * 3000]:
    for path in [f"/v1/files/{tricky}", f"/v1/files/{tricky}/content", f"/v1/batches/{tricky}"]:
        status, answer = raw("GET", path)
        assert 400 <= status < 500, (path, status, answer)
status, answer = raw("POST", "/v1/batches", json.dumps({"input_file_id": "../x", "endpoint": "/v1/completions", "completion_window": "24h"}), {"content-type": "application/json"})
assert status == 404, answer

# What is deleted is gone.
assert client.files.delete(file.id).deleted
refused(openai.NotFoundError, client.files.retrieve, file.id)
refused(openai.NotFoundError, client.files.content, file.id)
print("done")
