// The pipeline as a picture: queues, stages, workers and the object store, with their numbers.

import { bytes, count, html, percent, plural, svg } from "./format.js";
import { NARROW, WIDE } from "./geometry.js";

const STAGES = ["ingest", "prefill", "decode"];
const TITLES = { ingest: "Ingest", prefill: "Prefill", decode: "Decode" };
const LANES = 3;
const DOTS = 11;
/** How long a prompt that is watched takes from one stage to the next on the picture. */
const TRAVEL_MS = 420;

export class Flow {
  #container;
  #table;
  #narrow = matchMedia("(max-width: 760px)");
  #still = matchMedia("(prefers-reduced-motion: reduce)");
  #parts;
  #last;
  #lit = null;

  constructor(container, table) {
    this.#container = container;
    this.#table = table;
    this.#narrow.addEventListener("change", () => this.#draw());
    this.#draw();
  }

  /** Shows what `summary` (see live.js) says. */
  update(summary) {
    this.#last = summary;
    for (const stage of STAGES) this.#updateStage(stage, summary.stages[stage]);
    const { rates } = summary;
    this.#say("in", rates.ingest.jobs_done, `${count(rates.ingest.jobs_done)} req/s`);
    this.#say("baton1", rates.ingest.jobs_done, "");
    this.#say("baton2", rates.prefill.jobs_done, `${count(rates.prefill.jobs_done)} jobs/s`);
    this.#say("out", rates.decode.jobs_done, `${count(rates.decode.jobs_done)} res/s`);
    this.#say("put", rates.prefill.kv_put_bytes, `put ${bytes(rates.prefill.kv_put_bytes)}/s`);
    this.#say("get", rates.decode.kv_get_bytes, `get ${bytes(rates.decode.kv_get_bytes)}/s`);
    this.#say("reuse", rates.prefill.kv_get_bytes, `reused ${summary.reused === null ? "–" : percent(summary.reused)}`);
    this.#parts.ratio.textContent = summary.ratio === null ? "" : `packed ${summary.ratio.toFixed(2)} : 1`;
    this.#tell(summary);
  }

  /** Marks the stage that a watched prompt is in; null for none. */
  light(stage) {
    const from = this.#lit;
    this.#lit = stage;
    for (const name of STAGES) this.#parts.stages[name].group.classList.toggle("lit", name === stage);
    const way = { "ingest>prefill": "baton1", "prefill>decode": "baton2" }[`${from}>${stage}`] ?? (stage === "ingest" ? "in" : null);
    if (way && from !== stage && !this.#still.matches) this.#travel(this.#parts.arrows[way].line);
  }

  #draw() {
    const geometry = this.#narrow.matches ? NARROW : WIDE;
    const root = svg("svg", { viewBox: `0 0 ${geometry.width} ${geometry.height}`, class: "picture" });
    root.append(svg("defs", {}, svg("marker", { id: "tip", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" },
      svg("path", { d: "M0 .8 7.4 4 0 7.2z", class: "tip" }))));
    this.#parts = { root, arrows: {}, stages: {} };
    for (const [name, arrow] of Object.entries(geometry.arrows)) {
      const line = svg("path", { d: arrow.d, class: "arrow", "marker-end": "url(#tip)" });
      const label = svg("text", { x: arrow.label[0], y: arrow.label[1], class: "small", "text-anchor": arrow.anchor });
      root.append(line, label);
      this.#parts.arrows[name] = { line, label };
    }
    root.append(this.#drawStore(geometry.store));
    for (const { at: [x, y], text } of geometry.legend) root.append(svg("text", { x, y, class: "tiny", text }));
    for (const stage of STAGES) root.append(this.#drawStage(stage, geometry.stages[stage]));
    this.#container.replaceChildren(root);
    if (this.#last) this.update(this.#last);
    this.light(this.#lit);
  }

  #drawStore([x, y, width, height]) {
    const middle = x + width / 2;
    this.#parts.ratio = svg("text", { x: middle, y: y + 42, class: "small", "text-anchor": "middle" });
    return svg("g", { class: "store" },
      svg("rect", { x, y, width, height, rx: height / 2 }),
      svg("text", { x: middle, y: y + 24, class: "title", "text-anchor": "middle", text: "Object store: KV chunks" }),
      this.#parts.ratio);
  }

  #drawStage(stage, { queue: [qx, qy, qw, qh], box: [x, y, width, height] }) {
    const parts = { lanes: [] };
    parts.waiting = svg("text", { x: qx + 12, y: qy + 50, class: "big" });
    const queue = svg("g", { class: "queue" },
      svg("rect", { x: qx, y: qy, width: qw, height: qh, rx: 8 }),
      svg("text", { x: qx + 12, y: qy + 23, class: "small", text: "waiting" }),
      parts.waiting);
    for (let lane = 0; lane < LANES; lane += 1) {
      const at = qy + 70 + 18 * lane;
      const row = {
        name: svg("text", { x: qx + 12, y: at, class: "tiny" }),
        number: svg("text", { x: qx + qw - 12, y: at, class: "tiny number", "text-anchor": "end" }),
        bar: svg("rect", { x: qx + 12, y: at + 4, height: 2, width: 0, rx: 1, class: "depth" }),
        room: qw - 24,
      };
      parts.lanes.push(row);
      queue.append(row.name, row.number, row.bar);
    }
    parts.workers = svg("text", { x: x + width - 12, y: y + 24, class: "small", "text-anchor": "end" });
    parts.rate = svg("text", { x: x + 12, y: y + 58, class: "big" });
    parts.unit = svg("tspan", { class: "small", dx: 6 });
    parts.number = svg("tspan");
    parts.rate.append(parts.number, parts.unit);
    parts.dots = svg("g", { transform: `translate(${x + 18} ${y + 80})` });
    parts.slots = svg("text", { x: x + 12, y: y + 108, class: "small" });
    const link = svg("path", { d: `M${qx + qw} ${y + height / 2}H${x}`, class: "link" });
    parts.group = svg("g", { class: "stage" },
      link, queue,
      svg("rect", { x, y, width, height, rx: 10, class: "box" }),
      svg("text", { x: x + 12, y: y + 24, class: "title", text: TITLES[stage] }),
      parts.workers, parts.rate, parts.dots, parts.slots);
    this.#parts.stages[stage] = parts;
    return parts.group;
  }

  #updateStage(stage, facts) {
    const parts = this.#parts.stages[stage];
    parts.waiting.textContent = count(facts.waiting);
    parts.group.classList.toggle("crowded", facts.waiting > 0);
    parts.group.classList.toggle("empty", facts.workers.length === 0);
    parts.number.textContent = count(facts.rate);
    parts.unit.textContent = facts.unit;
    parts.workers.textContent = facts.workers.length === 0 ? "no workers" : plural(facts.workers.length, "worker");
    parts.slots.textContent = facts.workers.length === 0 ? "jobs wait" : `${count(facts.busy)} of ${plural(facts.slots, "slot")} in use`;
    const shown = facts.lanes.length > LANES ? [...facts.lanes.slice(0, LANES - 1), rest(facts.lanes.slice(LANES - 1))] : facts.lanes;
    parts.lanes.forEach((row, place) => {
      const lane = shown[place];
      row.name.textContent = lane ? shorten(lane.lane) : "";
      row.number.textContent = lane ? count(lane.waiting) : "";
      // A hundred thousand jobs fill the row; ten still show.
      row.bar.setAttribute("width", lane ? row.room * Math.min(1, Math.log10(1 + lane.waiting) / 5) : 0);
    });
    parts.dots.replaceChildren(...dots(facts.workers));
  }

  #say(name, rate, label) {
    const arrow = this.#parts.arrows[name];
    arrow.line.classList.toggle("moving", rate > 0);
    arrow.label.textContent = label;
  }

  #travel(line) {
    const token = svg("circle", { r: 6, class: "token" });
    this.#parts.root.append(token);
    const length = line.getTotalLength();
    const began = performance.now();
    const step = (now) => {
      const share = Math.min(1, (now - began) / TRAVEL_MS);
      const { x, y } = line.getPointAtLength(length * share);
      token.setAttribute("cx", x);
      token.setAttribute("cy", y);
      if (share < 1) requestAnimationFrame(step);
      else token.remove();
    };
    requestAnimationFrame(step);
  }

  /** The same for those who don't see the picture. */
  #tell(summary) {
    const row = (stage) => {
      const { waiting, delivered, workers, busy, slots } = summary.stages[stage];
      const cells = [waiting, delivered, workers.length, `${busy} of ${slots}`, count(summary.rates[stage].jobs_done)];
      return html("tr", {}, html("th", { scope: "row", text: TITLES[stage] }), ...cells.map((text) => html("td", { text })));
    };
    this.#table.tBodies[0].replaceChildren(...STAGES.map(row));
  }
}

/** A dot a worker; how far it is filled tells how many of its slots are in use. */
function dots(workers) {
  const shown = workers.length > DOTS ? workers.slice(0, DOTS - 1) : workers;
  const drawn = shown.map((worker, place) => {
    const share = worker.slots > 0 ? Math.min(1, worker.busy / worker.slots) : 0;
    const state = worker.draining ? "worker draining" : "worker";
    return svg("g", { class: state, transform: `translate(${15 * place} 0)` },
      svg("title", { text: `${worker.worker}: ${worker.busy} of ${worker.slots} slots${worker.draining ? ", draining" : ""}` }),
      svg("circle", { r: 5, class: "ring" }),
      svg("circle", { r: 5 * Math.sqrt(share), class: "use" }));
  });
  if (shown.length < workers.length) {
    drawn.push(svg("text", { x: 15 * shown.length - 4, y: 4, class: "tiny", text: `+${workers.length - shown.length}` }));
  }
  return drawn;
}

function rest(lanes) {
  return { lane: `${lanes.length} more`, waiting: lanes.reduce((sum, lane) => sum + lane.waiting, 0) };
}

function shorten(name) {
  return name.length > 12 ? `${name.slice(0, 11)}…` : name;
}
