# llama.cpp's own server, for one model. Argument: the model's path. Says "ready URL" once it answers, and ends with its standard input.
import os
import sys
import threading
import time
import urllib.error
import urllib.request

import xllamacpp

parameters = xllamacpp.CommonParams()
parameters.model.path = sys.argv[1]
parameters.model_alias = ["smol"]
parameters.hostnames = ["127.0.0.1"]
parameters.port = 0
parameters.n_parallel = 2
parameters.n_ctx = 4096
parameters.cpuparams.n_threads = 2
parameters.endpoint_metrics = True
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
