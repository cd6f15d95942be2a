// Where a job's time went: parts that together are exactly its total.

import { bytes, count, duration, html, percent } from "./format.js";

/** A job's timings as parts `{ kind, label, ms }` in the order in which they happened. Their sum is `total_ms`. */
export function parts(timings) {
  const t = timings;
  const own = t.decode_prefilled_tokens > 0;
  const prefix = Math.min(t.prefix_get_ms, t.prefill_ms);
  const compute = { kind: "work", label: own ? "Prefill by decode" : "Prefill", ms: t.prefill_ms - prefix };
  const brought = { kind: "store", label: "Prefix from the store", ms: prefix };
  const fetched = { kind: "store", label: "KV get, not hidden", ms: t.kv_wait_ms };
  const decode = { kind: "work", label: "Decode", ms: t.decode_ms };
  const between = { kind: "between", label: "Between stages", ms: 0 };
  const all = [
    { kind: "queue", label: "Ingest queue", ms: t.ingest_queue_ms },
    { kind: "work", label: "Ingest", ms: t.ingest_ms },
    { kind: "queue", label: "Prefill queue", ms: t.prefill_queue_ms },
    brought,
    ...(own ? [] : [compute]),
    { kind: "store", label: "KV put, not hidden", ms: t.kv_put_ms },
    between,
    { kind: "queue", label: "Decode queue", ms: t.decode_queue_ms },
    fetched,
    ...(own ? [compute] : []),
    decode,
  ];
  for (const part of all) part.ms = Math.max(0, part.ms);
  const sum = () => all.reduce((total, part) => total + part.ms, 0);
  // A wait for KV after an answer has joined the batch is a part of decode's time, too.
  const over = sum() - t.total_ms;
  if (over > 0) decode.ms -= Math.min(over, fetched.ms, decode.ms);
  const left = t.total_ms - sum();
  if (left >= 0) {
    between.ms = left;
  } else {
    // Workers' clocks differ by a little: every part gives its share.
    const scale = t.total_ms / sum();
    for (const part of all) part.ms *= scale;
  }
  return all.filter((part) => part.ms > 0);
}

/** What happened behind other work, and so added nothing to the total. */
function hidden(t) {
  const lines = [];
  const behind = t.kv_get_ms - t.kv_wait_ms;
  if (t.kv_get_ms > 0) lines.push(`KV get took ${duration(t.kv_get_ms)}, ${duration(Math.max(0, behind))} of it hidden behind queue and decode`);
  if (t.kv_raw_bytes > 0) {
    const saved = t.kv_stored_bytes > 0 ? `, ${(t.kv_raw_bytes / t.kv_stored_bytes).toFixed(2)} times smaller` : "";
    lines.push(`KV put: ${bytes(t.kv_stored_bytes)}${saved}; what of it ran during prefill is hidden`);
  }
  return lines;
}

/** The waterfall of a result. */
export function waterfall(result) {
  const t = result.timings;
  const all = parts(t);
  const rows = all.map((part) => ({ ...part, start: 0 }));
  let at = 0;
  for (const row of rows) {
    row.start = at;
    at += row.ms;
  }
  const total = Math.max(t.total_ms, 1e-9);
  const body = html("tbody");
  for (const row of rows) {
    const bar = html("span", { class: `bar ${row.kind}` });
    bar.style.marginInlineStart = `${(100 * row.start) / total}%`;
    bar.style.width = `max(2px, ${(100 * row.ms) / total}%)`;
    body.append(
      html("tr", { "data-ms": row.ms },
        html("th", { scope: "row", text: row.label }),
        html("td", { class: "track", "aria-hidden": "true" }, html("span", { class: "lane" }, bar)),
        html("td", { class: "number", text: duration(row.ms) })),
    );
  }
  const table = html("table", { class: "waterfall", "data-total": t.total_ms },
    html("caption", { text: `Where ${duration(t.total_ms)} went` }),
    html("thead", { class: "unseen" },
      html("tr", {}, html("th", { text: "Part" }), html("td"), html("th", { text: "Time" }))),
    body,
    html("tfoot", {}, html("tr", {},
      html("th", { scope: "row", text: "Total" }), html("td"), html("td", { class: "number", text: duration(t.total_ms) }))));
  const box = html("div", { class: "where" }, table);
  const { prompt_tokens: read, completion_tokens: told } = result.usage;
  const facts = [`${count(read)} prompt tokens, ${count(told)} output tokens; first token after ${duration(t.first_token_ms)}`];
  if (read > 0) facts.push(`${percent(result.usage.cached_tokens / read)} of the prompt reused`);
  if (t.recomputed_tokens > 0) facts.push(`${t.recomputed_tokens} tokens computed again`);
  if (t.resumed_tokens > 0) facts.push(`${t.resumed_tokens} tokens taken over from another worker`);
  facts.push(...hidden(t));
  const workers = [t.prefill_worker, t.decode_worker].filter(Boolean).join(", then ");
  if (workers) facts.push(`Worked on by ${workers}`);
  box.append(html("ul", { class: "facts quiet" }, ...facts.map((text) => html("li", { text }))));
  return box;
}
