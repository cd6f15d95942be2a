// The form: sends a prompt as any client would, shows the answer as it comes, and watches the job on its way.

import { ask, events, json } from "./gateway.js";
import { html } from "./format.js";
import { waterfall } from "./waterfall.js";

const LOOK_EVERY_MS = 120;
const LOOKS = 30;
/** Text is shown, and read aloud, in pieces of this much time. */
const SHOW_EVERY_MS = 120;

export class Submit {
  #form;
  #answer;
  #own;
  #journey;
  #ended;
  #running = null;

  /** `ended` is called when a job of this form has ended. */
  constructor(form, answer, own, journey, ended) {
    [this.#form, this.#answer, this.#own, this.#journey, this.#ended] = [form, answer, own, journey, ended];
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    form.elements.prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
    form.elements.stop.addEventListener("click", () => this.#running?.abort());
  }

  /** Fills in what the pipeline has. */
  async load() {
    const { data } = await json("/v1/models");
    this.#form.elements.model.replaceChildren(...data.map((model) => html("option", { value: model.id, text: model.id })));
  }

  async #send() {
    if (this.#running) return;
    const { prompt, model, temperature, send, stop } = this.#form.elements;
    this.#running = new AbortController();
    const { signal } = this.#running;
    // Not `disabled`, which would take the focus away.
    send.setAttribute("aria-disabled", "true");
    stop.hidden = false;
    this.#own.replaceChildren();
    this.#answer.replaceChildren();
    this.#answer.classList.remove("error");
    this.#journey.begin();
    const watched = new AbortController();
    // Naming the job lets it be watched before its first token comes.
    const id = `page-${Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) => part.toString(16)).join("-")}`;
    let completed = false;
    this.#watch(id, watched.signal);
    try {
      const response = await ask("/v1/chat/completions", {
        method: "POST",
        signal,
        headers: { "Content-Type": "application/json", "Idempotency-Key": id },
        body: JSON.stringify({
          model: model.value || undefined,
          messages: [{ role: "user", content: prompt.value }],
          max_completion_tokens: Number(this.#form.elements["max-tokens"].value),
          temperature: Number(temperature.value),
          stream: true,
        }),
      });
      await this.#read(response);
      completed = true;
    } catch (error) {
      this.#say(signal.aborted ? await this.#cancel(id) : error.message);
    }
    watched.abort();
    this.#journey.end(completed);
    await this.#explain(id);
    send.removeAttribute("aria-disabled");
    if (document.activeElement === stop) send.focus();
    stop.hidden = true;
    this.#running = null;
    this.#ended();
  }

  /** Shows the answer as it comes. */
  async #read(response) {
    const text = document.createTextNode("");
    this.#answer.append(text);
    let waiting = "";
    const show = () => {
      if (waiting) text.appendData(waiting);
      waiting = "";
    };
    const timer = setInterval(show, SHOW_EVERY_MS);
    try {
      for await (const data of events(response)) {
        if (data === "[DONE]") break;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new Error(chunk.error.message);
        const piece = chunk.choices[0]?.delta?.content;
        if (piece) {
          this.#journey.reach("answer");
          waiting += piece;
        }
      }
    } finally {
      clearInterval(timer);
      show();
    }
  }

  /** A job that was named goes on without its sender: it is asked to end. Returns what came of it, as a sentence. */
  async #cancel(id) {
    try {
      const { answer } = await json(`/api/jobs/${encodeURIComponent(id)}`, { method: "DELETE" });
      return answer === "ended" ? "Stopped: the job had ended." : "Stopped: the job is cancelled.";
    } catch (error) {
      return `The job could not be cancelled: ${error.message}`;
    }
  }

  /** Follows the job's record until its answer is there. */
  async #watch(id, signal) {
    while (!signal.aborted) {
      try {
        const { record } = await json(`/api/jobs/${encodeURIComponent(id)}`, { signal });
        if (record) this.#journey.record(record.state);
      } catch {
        // The next look may do better.
      }
      await pause();
    }
  }

  /** Shows where the job's time went, once it is known; a job that is cancelled ends a little later. */
  async #explain(id) {
    try {
      for (let look = 0; look < LOOKS; look += 1) {
        const { record, result } = await json(`/api/jobs/${encodeURIComponent(id)}`);
        if (result) return this.#own.replaceChildren(waterfall(result));
        // Refused before it was a job.
        if (!record) return;
        await pause();
      }
    } catch (error) {
      this.#own.replaceChildren(html("p", { class: "quiet", text: `The job's timings could not be read: ${error.message}` }));
    }
  }

  #say(message) {
    this.#answer.classList.add("error");
    this.#answer.append(html("p", { text: message }));
  }
}

function pause() {
  return new Promise((resolve) => setTimeout(resolve, LOOK_EVERY_MS));
}
