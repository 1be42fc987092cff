// Two explainers, or two runs, neuron by neuron: how their scores differ, and where by most.

import { setAddress } from "./addresses.js";
import { cut, element, explanation, number, visible } from "./dom.js";
import { pointCloud } from "./cloud.js";
import { load, loadPacked, neuronAt, neuronRanges, returning } from "./source.js";
import { tokenView } from "./tokens.js";
import { watchProgress } from "./watching.js";

const SPLIT_NAMES = { top_and_random: "top and random excerpts", random_only: "random excerpts only" };

export async function comparePage(content, { query, signal }) {
  const known = await load("compare", signal);
  if (known.sides.length < 2) {
    throw new Error("There is nothing to compare yet; explain neurons by two methods, or give a run with --compare.");
  }
  const comparison = new Comparison(known, await neuronRanges(), query, signal);
  content.replaceChildren(...comparison.parts());
  comparison.refresh().catch((error) => comparison.fail(error));
  watchProgress((now) => comparison.follow(now), signal);
  return { title: "Compare" };
}

/** One visit to the page. */
class Comparison {
  constructor(known, ranges, query, signal) {
    Object.assign(this, { known, ranges, signal, asked: 0 });
    this.wait = returning(signal, () => this.refresh().catch((error) => this.fail(error)));
    const keys = known.sides.map(({ key }) => key);
    const second = known.other ? keys.find((key) => key.startsWith("other:")) : keys[1];
    // What a link names and is gone stays chosen, so that nothing else is compared unasked.
    this.set = {
      a: query.get("a") || keys[0],
      b: query.get("b") || (second ?? keys[0]),
      split: query.get("split") || known.splits[0],
      neuron: query.get("neuron") ?? "",
    };
    this.figures = element("p", { class: "figures", role: "status" });
    this.pointed = element("p", { class: "pointed quiet", "aria-live": "polite" });
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

  choice(name, label, offered) {
    const gone = offered.every(([value]) => value !== this.set[name]);
    const options = gone ? [[this.set[name], `${cut(this.set[name], 40)} (not here)`], ...offered] : offered;
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
    const gone = this.gone();
    if (gone) {
      this.cloud.show([], [], "", "");
      this.lists.replaceChildren();
      this.pair.replaceChildren();
      throw new Error(gone);
    }
    if (!this.a) this.figures.textContent = "Loading…";
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
    this.figures.textContent = visible(figuresText(summary, first, second));
    this.lists.replaceChildren(
      this.largest(`${first} is better by most`, summary.largest.a, summary.text_scored),
      this.largest(`${second} is better by most`, summary.largest.b, summary.text_scored),
    );
    if (this.set.neuron) await this.show(this.set.neuron);
  }

  /** What is chosen and not there, in a line; null where all is. */
  gone() {
    const { sides, splits } = this.known;
    const side = [this.set.a, this.set.b].find((each) => sides.every(({ key }) => key !== each));
    if (side !== undefined) return `“${cut(side, 100)}” has no explanations here; choose what to compare.`;
    return splits.includes(this.set.split) ? null : `There are no scores on “${cut(this.set.split, 50)}”; choose where to compare.`;
  }

  /** Show what has been made since. */
  follow({ made }) {
    const before = this.made;
    this.made = made;
    if (before && made !== before) this.refresh().catch((error) => this.fail(error));
  }

  label(key) {
    return this.known.sides.find((side) => side.key === key).label;
  }

  point(place) {
    this.pointed.textContent =
      place === null
        ? "Point at the picture for a neuron, or go to it and press an arrow; a click or Enter opens it."
        : `${neuronAt(this.ranges, place)}: ${number(this.a[place])} and ${number(this.b[place])}`;
  }

  choose(neuron) {
    if (this.known.other) {
      this.show(neuron).then(() => this.pair.scrollIntoView({ block: "nearest" }));
    } else location.hash = `#/neuron/${neuron}`;
  }

  /** A link to a neuron: of two runs to both of it, else to its page. */
  link(neuron) {
    if (!this.known.other) return element("a", { href: `#/neuron/${neuron}` }, neuron);
    const click = (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return; // another tab has the whole page
      event.preventDefault();
      this.choose(neuron);
    };
    return element("a", { href: addressOf({ ...this.set, neuron }), on: { click } }, neuron);
  }

  largest(title, rows, scored) {
    const heads = ["neuron", ...[this.set.a, this.set.b].map((key, place) => this.label(key) + (scored[place] ? "" : ", and its list, which is not what is scored"))];
    return element(
      "div",
      { class: "scrolled" },
      element(
        "table",
        { class: "differences" },
        element("caption", {}, title),
        element("thead", {}, element("tr", {}, heads.map((head) => element("th", { scope: "col" }, head)))),
        element(
          "tbody",
          {},
          rows.map((row) =>
            element(
              "tr",
              {},
              element("th", { scope: "row" }, this.link(row.neuron)),
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
    setAddress(addressOf(this.set));
  }

  fail(error) {
    if (this.signal.aborted) return;
    this.figures.replaceChildren(element("span", { class: "failure" }, error.message));
    if (error.passing) this.wait();
  }
}

/** The page's address with what is set in it. */
function addressOf(set) {
  return `#/compare?${new URLSearchParams(Object.entries(set).filter(([, value]) => value !== ""))}`;
}

/** A side's scores of a neuron, in a line. */
function scoresLine(scores) {
  if (!scores) return "It has no score.";
  const { top_and_random: both, low, high, random_only: random } = scores;
  const value = (score) => (score === null ? "undefined" : number(score));
  const interval = low === null ? "" : ` (${number(low)} to ${number(high)})`;
  return `Correlation ${value(both)}${interval} on top and random excerpts, ${value(random)} on random ones only.`;
}

function sidePart({ label, explanation: stored, scores, text_scored: scored, exemplar }) {
  return element(
    "section",
    { class: "explanation", "aria-label": label },
    element("h3", {}, label),
    stored ? element("p", { class: "side-scores" }, scoresLine(scores)) : null,
    stored && !scored ? element("p", { class: "quiet" }, "What is scored is the whole table. Its list:") : null,
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
