// The way of one prompt through the pipeline, step by step.

import { html } from "./format.js";

const STEPS = [
  { name: "accepted", label: "Accepted", place: null },
  { name: "ingest", label: "Ingest", place: "ingest" },
  { name: "prefill", label: "Prefill", place: "prefill" },
  { name: "handover", label: "Hand-over", place: null },
  { name: "decode", label: "Decode", place: "decode" },
  { name: "answer", label: "Answer", place: "decode" },
];
/** How far a job's record says that it is. */
const STATES = { accepted: "ingest", prefill: "prefill", decode: "decode" };
/** A step is seen for at least so long, however fast the job is. */
const SEEN_MS = 260;

export class Journey {
  #list;
  #said;
  #light;
  #items;
  #at = -1;
  #goal = -1;
  #failed = false;
  #timer = null;
  #done = null;

  /** `light` marks a stage on the flow's picture. */
  constructor(list, said, light) {
    [this.#list, this.#said, this.#light] = [list, said, light];
    this.#items = STEPS.map((step) => html("li", { text: step.label }));
    this.#list.replaceChildren(...this.#items);
  }

  begin() {
    clearTimeout(this.#timer);
    this.#timer = null;
    [this.#at, this.#goal, this.#failed, this.#done] = [-1, -1, false, null];
    for (const item of this.#items) item.className = "";
    this.reach("accepted");
  }

  /** What the job's record says. */
  record(state) {
    if (STATES[state]) this.reach(STATES[state]);
  }

  /** The prompt is at this step, or past it; steps between are passed one after the other. */
  reach(name) {
    this.#goal = Math.max(this.#goal, STEPS.findIndex((step) => step.name === name));
    if (this.#timer === null) this.#step();
  }

  /** The job has ended; `completed` if all went well. */
  end(completed) {
    this.#failed = !completed;
    this.#done = () => {
      for (const item of this.#items) item.classList.remove("now");
      if (completed) this.#items.at(-1).classList.add("past");
      else this.#items[Math.max(0, this.#at)].classList.add("failed");
      this.#said.textContent = completed ? "The answer is complete." : "The job did not complete.";
      this.#light(null);
    };
    if (completed) this.reach("answer");
    else this.#goal = this.#at;
    if (this.#timer === null) this.#step();
  }

  #step() {
    this.#timer = null;
    if (this.#at >= this.#goal) {
      this.#done?.();
      this.#done = null;
      return;
    }
    this.#at += 1;
    this.#items.forEach((item, place) => {
      item.classList.toggle("past", place < this.#at);
      item.classList.toggle("now", place === this.#at);
    });
    const step = STEPS[this.#at];
    this.#said.textContent = step.label;
    if (step.place) this.#light(step.place);
    this.#timer = setTimeout(() => this.#step(), SEEN_MS);
  }
}
