// The live page: puts its parts together.

import { Engines } from "./engines.js";
import { Flow } from "./flow.js";
import { duration } from "./format.js";
import { setKey } from "./gateway.js";
import { Jobs } from "./jobs.js";
import { Journey } from "./journey.js";
import { follow, summarize } from "./live.js";
import { Meters } from "./meters.js";
import { Submit } from "./submit.js";

const at = (id) => document.getElementById(id);
const STATES = { live: "Live", stale: "No news", lost: "Reconnecting" };

const flow = new Flow(at("flow"), at("stages"));
const engines = new Engines(at("engines-card"), at("engines"));
const meters = new Meters(at("meters"));
const jobs = new Jobs(at("jobs"), at("no-jobs"));
const journey = new Journey(at("journey"), at("stage-said"), (stage) => flow.light(stage));
const submit = new Submit(at("try"), at("answer"), at("own"), journey, () => jobs.changed());

let heard = false;
let loaded = false;
let ended = null;

function show(event) {
  // A gateway that has just begun to look has heard of no worker yet.
  if (!heard && event.workers.length === 0) {
    heard = true;
    return;
  }
  heard = true;
  const summary = summarize(event);
  flow.update(summary);
  engines.update(summary);
  meters.update(summary);
  at("pipeline").textContent = event.root;
  warn(event.problem ?? "");
  if (!loaded) {
    loaded = true;
    submit.load().catch(() => {
      loaded = false;
    });
  }
  if (summary.ended !== ended) {
    ended = summary.ended;
    jobs.changed();
  }
}

/** Says what keeps jobs waiting whatever the workers do. */
function warn(problem) {
  const banner = at("problem");
  // Unchanged text is not announced again.
  if (banner.textContent !== problem) banner.textContent = problem;
  banner.hidden = problem === "";
}

function state(name) {
  const badge = at("connection");
  if (badge.dataset.state === name) return;
  badge.dataset.state = name;
  badge.textContent = STATES[name];
  badge.title = name === "stale" ? `The broker has said nothing for ${duration(5000)}` : "";
}

let asked = false;

/** Asks for a key; a second time with what the gateway said about the first. */
function needKey(message) {
  const dialog = at("key-dialog");
  if (asked) at("key-said").textContent = message;
  asked = true;
  at("key").value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      if (at("key").value) setKey(at("key").value);
      loaded = false;
      resolve();
    }, { once: true });
  });
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) jobs.changed();
});

follow({ show, state, needKey });
