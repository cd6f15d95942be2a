"""llama.cpp's server as its wheel brings it. Arguments: model file, port, requests at once, tokens of all of them together."""

import os
import sys
import time

import xllamacpp

model, port, slots, context = sys.argv[1], *map(int, sys.argv[2:5])
params = xllamacpp.CommonParams()
params.model.path = model
params.model_alias = ["smol"]
params.hostnames = ["127.0.0.1"]
params.port = port
params.n_parallel = slots
params.n_ctx = context
# As many threads as it may use cores: more would wait for each other in circles.
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = len(os.sched_getaffinity(0))
params.endpoint_metrics = True
# Each open connection takes one; by default there are too few for a metric beside many requests.
params.n_threads_http = 256
params.verbosity = 1
server = xllamacpp.Server(params)
while True:
    time.sleep(3600)
