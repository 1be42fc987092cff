// An explanation of one's own in words, simulated by a language model on a neuron's test excerpts.

import { element, number, visible } from "./dom.js";
import { comparedRows } from "./exemplars.js";
import { scoresTable } from "./simulate.js";
import { load, returning, send } from "./source.js";

const THINKING = 300; // ms without a key stroke before it is asked what a text would cost

/**
 * The form for a neuron, and where its result is shown.
 *
 * @param {string} neuron
 * @param {string} text What stands in the form at first.
 * @param {Object} simulator What the viewer answers to "simulator".
 * @param {function(string)} keep Called with what is typed.
 * @param {AbortSignal} signal
 */
export function explanationForm(neuron, text, simulator, keep, signal) {
  const form = new Guess(neuron, text, simulator, keep, signal);
  return [
    element("h2", {}, `An explanation of your own for ${neuron}`),
    ...(simulator.model ? form.parts() : [howToStart(simulator.start)]),
  ];
}

function howToStart(command) {
  return element("p", {}, "To have it simulated by a language model, start the viewer with ", element("code", {}, command));
}

/** One neuron's form. */
class Guess {
  constructor(neuron, text, simulator, keep, signal) {
    this.neuron = neuron;
    this.signal = signal;
    this.wait = returning(signal, () => this.running || this.estimate());
    this.simulator = simulator;
    this.keep = keep;
    this.text = element("textarea", { id: "own-explanation", rows: 2, maxlength: 4000, "aria-describedby": "own-cost" });
    this.text.value = text;
    this.button = element("button", {}, `Simulate by ${simulator.model} and score`);
    this.stop = element("button", { type: "button", hidden: true, on: { click: () => this.running.abort() } }, "Stop");
    this.cost = element("p", { id: "own-cost", class: "try-state quiet", role: "status" });
    this.result = element("div", { class: "try-result" });
    this.text.addEventListener("input", () => this.typed());
    signal.addEventListener("abort", () => clearTimeout(this.timer));
  }

  parts() {
    this.estimate();
    return [
      element(
        "form",
        { class: "try-fields", on: { submit: (event) => this.submit(event) } },
        element("label", { for: "own-explanation" }, "What it reacts to, in words, as “words for animals”"),
        this.text,
        element("div", { class: "actions" }, this.button, this.stop),
      ),
      this.cost,
      this.result,
    ];
  }

  typed() {
    this.keep(this.text.value);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.estimate(), THINKING);
  }

  /** Say what the text would cost. */
  async estimate() {
    this.asking?.abort();
    const mine = new AbortController();
    this.asking = mine;
    const text = this.text.value;
    if (!text.trim()) {
      this.say(moneyLeft(this.simulator));
      return;
    }
    try {
      const both = AbortSignal.any([this.signal, mine.signal]);
      const found = await send("simulate/cost", { neuron: this.neuron, explanation: text }, both);
      if (mine.signal.aborted) return;
      this.simulator = found;
      this.say(`${mostCost(found)} ${moneyLeft(found)}`);
    } catch (error) {
      if (!this.signal.aborted && !mine.signal.aborted) this.fail(error);
    }
  }

  async submit(event) {
    event.preventDefault();
    if (this.running) return;
    clearTimeout(this.timer);
    this.asking?.abort();
    this.begin();
    const stopped = this.running.signal;
    const both = AbortSignal.any([this.signal, stopped]);
    try {
      const found = await this.simulated(this.text.value, both);
      const data = await load(`neuron/${this.neuron}`, both);
      this.simulator = found;
      this.say(`${paid(found)} ${moneyLeft(found)}`);
      this.result.replaceChildren(...guessResult(data, found));
    } catch (error) {
      if (this.signal.aborted) return;
      if (stopped.aborted) this.say("Stopped; what was answered is stored, and asking again goes on from there.");
      else this.fail(error);
    } finally {
      this.end();
    }
  }

  /** What comes of a text; it is asked for again and again, since the viewer drops what nobody waits for. */
  async simulated(explanation, signal) {
    for (;;) {
      const found = await send("simulate/model", { neuron: this.neuron, explanation }, signal);
      if (found.scores) return found;
      const { model } = this.simulator;
      this.say(found.reached ? `Simulating by ${model}: ${found.done} of ${found.of} excerpts.` : `Reaching ${model}…`);
    }
  }

  begin() {
    this.running = new AbortController();
    this.button.disabled = this.text.readOnly = true;
    this.stop.hidden = false;
    this.say(`Reaching ${this.simulator.model}…`);
  }

  end() {
    this.running = null;
    this.button.disabled = this.text.readOnly = false;
    this.stop.hidden = true;
  }

  say(text) {
    this.cost.className = "try-state quiet";
    this.cost.textContent = visible(text);
  }

  fail(error) {
    this.cost.className = "try-state failure";
    this.cost.replaceChildren(element("span", {}, error.message));
    if (error.passing) this.wait();
  }
}

/** US dollars: to the cent, or below a dollar to two digits. */
function money(amount) {
  const digits = amount > 0 && amount < 1 ? { minimumSignificantDigits: 2, maximumSignificantDigits: 2 } : {};
  return amount.toLocaleString("en", { style: "currency", currency: "USD", ...digits });
}

function mostCost({ requests, cost, model }) {
  if (!requests) return "All answers to it are stored: it costs nothing.";
  const asks = `It takes up to ${number(requests)} requests`;
  if (cost === null) return `${asks}; the price of ${model} is not known.`;
  return cost ? `${asks} and costs at most ${money(cost)}.` : `${asks} and costs nothing.`;
}

function paid({ answered, cost }) {
  if (!answered) return "All answers to it were stored: it cost nothing.";
  const took = `It took ${number(answered)} requests`;
  if (cost === null) return `${took}, of which the price is not known.`;
  return cost ? `${took} and cost ${money(cost)}.` : `${took} and cost nothing.`;
}

function moneyLeft({ max_cost: limit, left, spent }) {
  if (limit !== null) return `Of --max-cost ${money(limit)}, ${money(left)} are left.`;
  return spent ? `${money(spent)} were spent since the viewer was started.` : "";
}

function guessResult(data, found) {
  const said = found.failures.length ? `Not all was simulated: ${found.failures[0]}` : null;
  return [
    said ? element("p", { class: "failure" }, said) : null,
    scoresTable(found, "your explanation", found.text),
    element("ol", { class: "excerpts" }, comparedRows(data, found.simulation).map((row) => element("li", {}, row))),
  ].filter(Boolean);
}
