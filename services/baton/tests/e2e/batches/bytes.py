"""A large file there and back through OpenAI's own client. Arguments: URL, how many bytes."""

import io
import random
import sys

import openai

url, count = sys.argv[1:]
client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)

# No line ends where a part does, and no two parts are alike.
sent = random.Random(7).randbytes(int(count))
file = client.files.create(file=("bytes.jsonl", io.BytesIO(sent)), purpose="batch")
assert (file.bytes, client.files.retrieve(file.id).bytes) == (len(sent), len(sent)), file
kept = client.files.content(file.id).content
assert kept == sent, (len(kept), next((at for at, pair in enumerate(zip(kept, sent)) if pair[0] != pair[1]), None))
assert client.files.delete(file.id).deleted
for call in [client.files.retrieve, client.files.content]:
    try:
        found = call(file.id)
    except openai.NotFoundError:
        continue
    raise AssertionError(f"a deleted file is still there: {found}")
print("done")
