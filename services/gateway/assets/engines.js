// The instances of foreign engines, where there are any: what each has, and why one takes nothing.

import { count, html } from "./format.js";

export class Engines {
  #card;
  #body;

  constructor(card, table) {
    this.#card = card;
    this.#body = table.tBodies[0];
  }

  update(summary) {
    const { engines } = summary;
    this.#card.hidden = engines.length === 0;
    const cell = (text, kind = "number") => html("td", { class: kind, text });
    this.#body.replaceChildren(...engines.map((engine) => html("tr", {},
      html("th", { scope: "row", text: engine.url }),
      cell(engine.model, ""),
      html("td", {}, html("span", { class: `status ${engine.up ? "completed" : "failed"}`, text: engine.up ? "up" : `down: ${engine.fault ?? ""}` })),
      cell(`${count(engine.running)} of ${count(engine.limit)}`),
      cell(engine.waiting === null ? "–" : count(engine.waiting)),
      cell(count(engine.answered)),
      cell(count(engine.put_off)),
      cell(count(engine.failed)),
      cell(engine.transfers + engine.transfer_fallbacks === 0 ? "–" : `${count(engine.transfers)} of ${count(engine.transfers + engine.transfer_fallbacks)}`))));
  }
}

/** What all workers together say of each instance. */
export function enginesOf(workers) {
  const engines = new Map();
  for (const told of workers.flatMap((worker) => worker.upstreams ?? [])) {
    const key = `${told.model} ${told.url}`;
    const known = engines.get(key);
    if (!known) {
      engines.set(key, { ...told, waiting: told.waiting ?? null });
      continue;
    }
    for (const sum of ["limit", "running", "answered", "put_off", "failed", "transfers", "transfer_fallbacks"]) {
      known[sum] += told[sum];
    }
    // Everybody's; each worker has looked at another moment.
    known.waiting = told.waiting === undefined ? known.waiting : Math.max(known.waiting ?? 0, told.waiting);
    known.up = known.up && told.up;
    known.fault ??= told.fault;
  }
  return [...engines.values()].sort((one, other) => (one.model + one.url < other.model + other.url ? -1 : 1));
}
