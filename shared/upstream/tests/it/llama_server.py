# llama.cpp's own server, for one model. Arguments: the model's path, and if wanted the number of slots and a template's path. Says
# "ready URL" once it answers, and ends with its standard input.
import os
import sys
import threading
import time
import urllib.error
import urllib.request

import xllamacpp

model, slots, template = (sys.argv[1:] + [None, None])[:3]
parameters = xllamacpp.CommonParams()
parameters.model.path = model
if template:
    parameters.chat_template = open(template).read()
parameters.model_alias = ["smol"]
parameters.hostnames = ["127.0.0.1"]
parameters.port = 0
parameters.n_parallel = int(slots or 2)
parameters.n_ctx = 2048 * parameters.n_parallel
parameters.cpuparams.n_threads = 2
parameters.endpoint_metrics = True
parameters.endpoint_slots = True
parameters.verbosity = 1
server = xllamacpp.Server(parameters)
url = server.listening_address
while True:
    try:
        if urllib.request.urlopen(url + "/health").status == 200:
            break
    except urllib.error.HTTPError:
        time.sleep(0.05)
print("ready", url, flush=True)
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
threading.Event().wait()
