"""A job's whole life with nats-py: submit it, watch its tokens, cancel it, and read its result.

    pip install nats-py==2.11.0
    NATS_URL=nats://127.0.0.1:PORT python3 examples/nats_job.py     # the URL is what `baton up` prints
"""

import asyncio
import json
import os
import sys

import nats

ROOT, TENANT, LANE, JOB = "baton", "acme", "interactive", sys.argv[1] if len(sys.argv) > 1 else "from-nats-py"
# Tokens to watch before the job is cancelled.
ENOUGH = 12


async def main():
    nc = await nats.connect(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))
    js = nc.jetstream()

    # Live tokens are published once, so listen before you submit.
    tokens = await nc.subscribe(f"{ROOT}.tok.{TENANT}.{JOB}")

    # The id is the idempotency key. A field that Baton does not know is refused by name.
    request = {"id": JOB, "prompt": "The sea is salty because", "max_tokens": 400, "temperature": 0.8, "seed": 7}
    await js.publish(f"{ROOT}.req.{TENANT}.{LANE}", json.dumps(request).encode())
    print("submitted", JOB)

    expected = 0
    while expected < ENOUGH:
        token = json.loads((await tokens.next_msg(timeout=60)).data)
        # A job that another worker resumed repeats tokens.
        if token["index"] == expected:
            expected += 1
            print(token["text"], end="", flush=True)

    answer = await nc.request(f"{ROOT}.api.cancel.{TENANT}.{JOB}", timeout=60)
    print("\ncancelled:", json.loads(answer.data))

    # Results stay in their stream for a week; any process may read them.
    results = await js.subscribe(f"{ROOT}.res.{TENANT}.{JOB}", ordered_consumer=True)
    result = json.loads((await results.next_msg(timeout=60)).data)
    print(result["status"], result["usage"]["completion_tokens"], "tokens:", repr(result["text"]))
    await nc.close()


asyncio.run(main())
