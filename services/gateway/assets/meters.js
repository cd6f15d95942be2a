// The five numbers that tell how much goes through, each with its last two minutes.

import { bytes, count, html, percent, svg } from "./format.js";

const KEPT = 120;
const METERS = [
  { name: "Prompt tokens/s", of: (summary) => summary.rates.prefill.prompt_tokens + summary.rates.decode.prompt_tokens, say: count },
  { name: "Output tokens/s", of: (summary) => summary.rates.decode.completion_tokens, say: count },
  { name: "KV put", of: (summary) => summary.rates.prefill.kv_put_bytes, say: (value) => `${bytes(value)}/s` },
  { name: "KV get", of: (summary) => summary.rates.prefill.kv_get_bytes + summary.rates.decode.kv_get_bytes, say: (value) => `${bytes(value)}/s` },
  { name: "Prompt reused", of: (summary) => summary.reused, say: (value) => (value === null ? "–" : percent(value)) },
];

export class Meters {
  #meters;

  constructor(list) {
    this.#meters = METERS.map((meter) => {
      const value = html("dd", { class: "value", text: "–" });
      const line = svg("polyline", { class: "spark" });
      const spark = svg("svg", { viewBox: "0 0 120 28", preserveAspectRatio: "none", "aria-hidden": "true" }, line);
      list.append(html("div", { class: "card meter" }, html("dt", { text: meter.name }), value, html("dd", { "aria-hidden": "true" }, spark)));
      return { ...meter, value, line, past: [] };
    });
  }

  update(summary) {
    for (const meter of this.#meters) {
      const value = meter.of(summary);
      meter.value.textContent = meter.say(value);
      meter.past.push(value ?? 0);
      if (meter.past.length > KEPT) meter.past.shift();
      const most = Math.max(...meter.past, 1e-9);
      const from = KEPT - meter.past.length;
      const points = meter.past.map((past, place) => `${from + place + 1},${(26.5 - 25 * (past / most)).toFixed(1)}`);
      meter.line.setAttribute("points", points.join(" "));
    }
  }
}
