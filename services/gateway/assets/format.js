// Numbers as people read them, and small ways to make elements.

const SMALL = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

/** A count or a rate: 0, 3.4, 128, 12.5K. */
export function count(value) {
  if (value >= 10_000) return COMPACT.format(value);
  return value > 0 && value < 10 && !Number.isInteger(value) ? SMALL.format(value) : WHOLE.format(value);
}

/** Bytes in binary units. */
export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value < 10 && unit > 0 ? SMALL.format(value) : WHOLE.format(value)} ${units[unit]}`;
}

/** A time given in milliseconds. */
export function duration(ms) {
  if (ms >= 60_000) return `${SMALL.format(ms / 60_000)} min`;
  if (ms >= 1000) return `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;
  return ms > 0 && ms < 10 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`;
}

export function percent(share) {
  return `${WHOLE.format(share * 100)} %`;
}

/** "1 worker", "2 workers". */
export function plural(number, word) {
  return `${count(number)} ${word}${number === 1 ? "" : "s"}`;
}

/** An HTML element with properties (`class`, `text`, attributes) and children. */
export function html(name, properties = {}, ...children) {
  return fill(document.createElement(name), properties, children);
}

/** The same in SVG. */
export function svg(name, properties = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), properties, children);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (name === "text") element.textContent = value;
    else if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}
