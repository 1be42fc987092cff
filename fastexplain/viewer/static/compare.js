// Two explainers, or two runs, neuron by neuron: how their scores differ, and where by most.

import { setAddress } from "./addresses.js";
import { element, explanation, number } from "./dom.js";
import { pointCloud } from "./cloud.js";
import { load, loadPacked, neuronAt, neuronRanges, returning } from "./source.js";
import { tokenView } from "./tokens.js";

const SPLIT_NAMES = { top_and_random: "top and random excerpts", random_only: "random excerpts only" };

export async function comparePage(content, { query, signal }) {
  const known = await load("compare", signal);
  if (known.sides.length < 2) {
    throw new Error("There is nothing to compare yet; explain neurons by two methods, or give a run with --compare.");
  }
  const comparison = new Comparison(known, await neuronRanges(), query, signal);
  content.replaceChildren(...comparison.parts());
  await comparison.refresh();
  return { title: "Compare" };
}

/** One visit to the page. */
class Comparison {
  constructor(known, ranges, query, signal) {
    Object.assign(this, { known, ranges, signal, asked: 0 });
    this.wait = returning(signal, () => this.refresh().catch((error) => this.fail(error)));
    const keys = known.sides.map(({ key }) => key);
    const second = known.other ? keys.find((key) => key.startsWith("other:")) : keys[1];
    const chosen = (name, fallback) => (keys.includes(query.get(name)) ? query.get(name) : fallback ?? keys[0]);
    this.set = {
      a: chosen("a", keys[0]),
      b: chosen("b", second),
      split: known.splits.includes(query.get("split")) ? query.get("split") : known.splits[0],
      neuron: query.get("neuron") ?? "",
    };
    this.figures = element("p", { class: "figures", role: "status" });
    this.pointed = element("p", { class: "pointed quiet" });
    this.lists = element("div", { class: "try-tables" });
    this.pair = element("div");
    this.cloud = pointCloud(
      {
        pointed: (place) => this.point(place),
        chosen: (place) => this.choose(neuronAt(this.ranges, place)),
      },
      signal,
    );
  }

  parts() {
    const { other } = this.known;
    return [
      element("h1", {}, other ? `Compare with ${other.name}` : "Compare explainers"),
      element(
        "div",
        { class: "controls" },
        this.choice("a", "First", this.known.sides.map(({ key, label }) => [key, label])),
        this.choice("b", "Second", this.known.sides.map(({ key, label }) => [key, label])),
        this.choice("split", "Scored on", this.known.splits.map((split) => [split, SPLIT_NAMES[split]])),
      ),
      this.figures,
      element("div", { class: "cloud" }, this.cloud.canvas, this.pointed),
      this.neuronForm(),
      this.pair,
      this.lists,
    ];
  }

  choice(name, label, options) {
    const change = (event) => {
      this.set[name] = event.target.value;
      this.keepAddress();
      this.refresh().catch((error) => this.fail(error));
    };
    return [
      element("label", { for: `compare-${name}` }, label),
      element(
        "select",
        { id: `compare-${name}`, on: { change } },
        options.map(([value, text]) => element("option", { value, selected: value === this.set[name] }, text)),
      ),
    ];
  }

  neuronForm() {
    const field = element("input", { id: "compare-neuron", size: 12, autocomplete: "off", spellcheck: false });
    field.value = this.set.neuron;
    this.field = field;
    const submit = (event) => {
      event.preventDefault();
      this.show(field.value.trim());
    };
    return element(
      "form",
      { class: "controls", on: { submit } },
      element("label", { for: "compare-neuron" }, "Both of neuron"),
      field,
      element("button", {}, "Show"),
    );
  }

  /** Load and show what belongs to the two that are chosen. */
  async refresh() {
    this.asked += 1;
    const mine = this.asked;
    const { a, b, split } = this.set;
    const asked = new URLSearchParams({ a, b, split });
    const [packed, summary] = await Promise.all([
      loadPacked(`compare/points?${asked}`, this.signal),
      load(`compare/summary?${asked}`, this.signal),
    ]);
    if (mine !== this.asked || this.signal.aborted) return;
    const both = new Float32Array(packed);
    [this.a, this.b] = [both.subarray(0, both.length / 2), both.subarray(both.length / 2)];
    const [first, second] = [this.label(a), this.label(b)];
    this.cloud.show(this.a, this.b, first, second);
    this.point(null);
    this.figures.textContent = figuresText(summary, first, second);
    this.lists.replaceChildren(
      this.largest(`${first} is better by most`, summary.largest.a, first, second),
      this.largest(`${second} is better by most`, summary.largest.b, first, second),
    );
    if (this.set.neuron) await this.show(this.set.neuron);
  }

  label(key) {
    return this.known.sides.find((side) => side.key === key).label;
  }

  point(place) {
    this.pointed.textContent =
      place === null
        ? "Point at the picture for a neuron; click to open it."
        : `${neuronAt(this.ranges, place)}: ${number(this.a[place])} and ${number(this.b[place])}`;
  }

  choose(neuron) {
    if (this.known.other) this.show(neuron);
    else location.hash = `#/neuron/${neuron}`;
  }

  largest(title, rows, first, second) {
    return element(
      "div",
      { class: "scrolled" },
      element(
        "table",
        { class: "differences" },
        element("caption", {}, title),
        element("thead", {}, element("tr", {}, ["neuron", first, second].map((head) => element("th", { scope: "col" }, head)))),
        element(
          "tbody",
          {},
          rows.map((row) =>
            element(
              "tr",
              {},
              element("th", { scope: "row" }, element("a", { href: `#/neuron/${row.neuron}` }, row.neuron)),
              element("td", {}, number(row.a), explanation(row.text_a ?? "", { class: "explained" })),
              element("td", {}, number(row.b), explanation(row.text_b ?? "", { class: "explained" })),
            ),
          ),
        ),
      ),
    );
  }

  /** One neuron as both have it. */
  async show(neuron) {
    this.set.neuron = neuron;
    this.field.value = neuron;
    this.keepAddress();
    if (!neuron) {
      this.pair.replaceChildren();
      return;
    }
    try {
      const { a, b } = this.set;
      const found = await load(`compare/neuron/${encodeURIComponent(neuron)}?${new URLSearchParams({ a, b })}`, this.signal);
      if (this.set.neuron === neuron) this.pair.replaceChildren(...this.pairParts(found));
    } catch (error) {
      if (!this.signal.aborted) this.pair.replaceChildren(element("p", { class: "failure", role: "alert" }, error.message));
    }
  }

  pairParts(found) {
    const shared = found.shared
      ? `On the ${found.shared} random excerpts of both runs its activations correlate by ${number(found.correlation)}.`
      : null;
    return [
      element("h2", {}, element("a", { href: `#/neuron/${found.neuron}` }, found.neuron)),
      element("p", {}, shared),
      element("div", { class: "try-tables" }, found.sides.map(sidePart)),
    ];
  }

  keepAddress() {
    const kept = Object.entries(this.set).filter(([, value]) => value !== "");
    setAddress(`#/compare?${new URLSearchParams(kept)}`);
  }

  fail(error) {
    if (this.signal.aborted) return;
    this.figures.replaceChildren(element("span", { class: "failure" }, error.message));
    if (error.passing) this.wait();
  }
}

function sidePart({ label, explanation: stored, exemplar }) {
  return element(
    "section",
    { class: "explanation", "aria-label": label },
    element("h3", {}, label),
    element("p", {}, explanation(stored?.explanation ?? "Not explained by it.", { class: "explained" })),
    exemplar &&
      tokenView({
        tokens: exemplar.tokens,
        values: exemplar.activations,
        skip: exemplar.counted,
        lowest: exemplar.lowest,
        highest: exemplar.highest,
        label: `Strongest excerpt, ${label}`,
      }),
  );
}

function figuresText(found, first, second) {
  const mean = found.difference === null ? "" : `; the mean of the first less the second is ${number(found.difference)}`;
  const interval = found.low === null ? "" : ` (${number(found.low)} to ${number(found.high)} over neurons)`;
  return (
    `${number(found.neurons)} neurons have both scores: ${first} is higher on ${number(found.a_higher)}, ` +
    `${second} on ${number(found.b_higher)}${mean}${interval}. ` +
    `Scored by the first alone: ${number(found.only_a)}, by the second alone: ${number(found.only_b)}. ` +
    `The scores correlate by ${number(found.correlation)}.`
  );
}
