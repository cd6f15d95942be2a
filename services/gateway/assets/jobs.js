// The tenant's recent jobs, and for each the waterfall of where its time went.

import { json } from "./gateway.js";
import { count, duration, html } from "./format.js";
import { waterfall } from "./waterfall.js";

const SHOWN = 30;
const AT_MOST_EVERY_MS = 2000;

export class Jobs {
  #body;
  #none;
  #open = null;
  #known = "";
  #looked = 0;
  #looking = false;
  #again = false;

  constructor(table, none) {
    this.#body = table.tBodies[0];
    this.#none = none;
  }

  /** Looks again soon, but not too often. */
  changed() {
    if (this.#looking || document.hidden) {
      this.#again = true;
      return;
    }
    this.#looking = true;
    const wait = Math.max(0, this.#looked + AT_MOST_EVERY_MS - Date.now());
    setTimeout(() => this.#look(), wait);
  }

  async #look() {
    this.#looked = Date.now();
    this.#again = false;
    try {
      const { jobs } = await json(`/api/jobs?limit=${SHOWN}`);
      this.#show(jobs);
    } catch {
      // The connection's state says it; the next look may do better.
    }
    this.#looking = false;
    if (this.#again) this.changed();
  }

  #show(jobs) {
    this.#none.hidden = jobs.length > 0;
    const known = jobs.map((job) => job.id).join();
    if (known === this.#known) return;
    this.#known = known;
    const focused = document.activeElement?.closest?.("[data-job]")?.dataset.job;
    this.#body.replaceChildren(...jobs.flatMap((job) => this.#rows(job)));
    if (focused) this.#body.querySelector(`[data-job="${focused}"] button`)?.focus();
  }

  #rows(job) {
    const open = this.#open === job.id;
    const button = html("button", { type: "button", class: "opens", "aria-expanded": open, title: job.id },
      html("span", { text: ending(job.id) }));
    const cell = (text, kind = "") => html("td", { class: `number ${kind}`, text });
    const row = html("tr", { "data-job": job.id },
      html("th", { scope: "row" }, button),
      html("td", {}, html("span", { class: `status ${job.status}`, text: job.status })),
      cell(count(job.usage.prompt_tokens), "wide"),
      cell(count(job.usage.completion_tokens)),
      cell(job.timings.first_token_ms > 0 ? duration(job.timings.first_token_ms) : "–"),
      cell(job.timings.total_ms > 0 ? duration(job.timings.total_ms) : "–"));
    const detail = html("tr", { class: "detail" }, html("td", { colspan: 6 }));
    detail.hidden = !open;
    if (open) fill(detail, job);
    button.addEventListener("click", () => {
      const opens = detail.hidden;
      detail.hidden = !opens;
      button.setAttribute("aria-expanded", opens);
      this.#open = opens ? job.id : null;
      if (opens) fill(detail, job);
    });
    return [row, detail];
  }
}

function fill(detail, job) {
  const parts = [];
  if (job.error) parts.push(html("p", { class: "error", text: job.error.message }));
  if (job.text) parts.push(html("p", { class: "excerpt", text: job.text }));
  parts.push(waterfall(job));
  detail.cells[0].replaceChildren(html("p", { class: "quiet id", text: job.id }), ...parts);
}

/** The end of an id tells jobs apart; the beginning of a generated one is its time. */
function ending(id) {
  return id.length > 12 ? `…${id.slice(-8)}` : id;
}
