// What the gateway tells every second, and what the page makes of it.

import { enginesOf } from "./engines.js";
import { Refused, ask, events } from "./gateway.js";

const STAGES = ["ingest", "prefill", "decode"];
const LONGEST_PAUSE_MS = 8000;
/** Without news for so long, what is shown is old. */
const STALE_MS = 5000;

/** An event as the page's parts want it. */
export function summarize(event) {
  const { workers, queues, rates } = event;
  const stages = {};
  for (const stage of STAGES) {
    // In the order of their urgency, also those that nobody has used.
    const lanes = new Map(event.lanes.map((lane) => [lane, 0]));
    let delivered = 0;
    for (const queue of queues.filter((queue) => queue.stage === stage)) {
      lanes.set(queue.lane, (lanes.get(queue.lane) ?? 0) + queue.waiting);
      delivered += queue.delivered;
    }
    const sum = (list, of) => list.reduce((total, item) => total + of(item), 0);
    // Those of foreign engines with them.
    const slots = (worker) => worker.slots + sum(worker.upstreams ?? [], (engine) => engine.limit);
    const own = workers.filter((worker) => worker.stage === stage).map((worker) => ({ ...worker, slots: slots(worker) }));
    stages[stage] = {
      workers: own,
      delivered,
      lanes: [...lanes].map(([lane, waiting]) => ({ lane, waiting })),
      waiting: sum([...lanes.values()], (waiting) => waiting),
      slots: sum(own, (worker) => worker.slots),
      busy: sum(own, (worker) => worker.busy),
    };
  }
  stages.ingest.rate = rates.ingest.jobs_done;
  stages.ingest.unit = "requests/s";
  stages.prefill.rate = rates.prefill.prompt_tokens;
  stages.prefill.unit = "prompt tok/s";
  stages.decode.rate = rates.decode.completion_tokens;
  stages.decode.unit = "output tok/s";
  const { prompt_tokens: read, cached_tokens: cached } = event.reuse;
  const { kv_raw_bytes: raw, kv_put_bytes: put } = event.packed;
  return {
    at: event.at_ms,
    stages,
    engines: enginesOf(workers),
    rates,
    reused: read > 0 ? cached / read : null,
    ratio: put > 0 && raw > 0 ? raw / put : null,
    // Changes whenever a job may have ended.
    ended: sumOf(workers, "jobs_done") + sumOf(workers, "jobs_failed"),
  };
}

function sumOf(workers, key) {
  return workers.reduce((total, worker) => total + worker[key], 0);
}

/** Follows the gateway for good: `show` gets every event, `state` "live", "stale" or "lost"; a missing key is asked for. */
export async function follow({ show, state, needKey }) {
  let pause = 500;
  let timer;
  const expect = () => {
    clearTimeout(timer);
    timer = setTimeout(() => state("stale"), STALE_MS);
  };
  for (;;) {
    try {
      const response = await ask("/api/live");
      expect();
      for await (const data of events(response)) {
        pause = 500;
        expect();
        state("live");
        try {
          show(JSON.parse(data));
        } catch (error) {
          // The page's own fault is no lost connection.
          reportError(error);
        }
      }
    } catch (error) {
      if (error instanceof Refused && error.status === 401) {
        clearTimeout(timer);
        await needKey(error.message);
        continue;
      }
    }
    clearTimeout(timer);
    state("lost");
    await new Promise((resolve) => setTimeout(resolve, pause));
    pause = Math.min(2 * pause, LONGEST_PAUSE_MS);
  }
}
