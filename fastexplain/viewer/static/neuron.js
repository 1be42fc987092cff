// A neuron: what is said of it and how good that is, what drives it, what it does.

import { setAddress } from "./addresses.js";
import { element, number } from "./dom.js";
import { exemplarsSection } from "./exemplars.js";
import { explanationsSection, toggleExplanations } from "./explanations.js";
import { histogramFigure } from "./histogram.js";
import { driversSection, effectsSection, relationsSection } from "./relations.js";
import { live, load } from "./source.js";

export async function neuronPage(content, { parts, query, signal }) {
  const [name = ""] = parts;
  if (!/^\d+(\.\w+)?:\d+$/.test(name)) throw new Error(`'${name}' does not name a neuron; write layer:index, as in 5:131.`);
  const data = await load(`neuron/${name}`, signal);
  if (signal.aborted) return {};
  const steps = stepsOf(data);
  const excerpts = exemplarsSection(
    data,
    { tab: query.get("tab"), by: query.get("by") },
    (tab, by) => {
      const set = new URLSearchParams(by ? { tab, by } : { tab });
      setAddress(`#/neuron/${name}?${set}`);
      // Whoever steps on sees the same of the next neuron.
      for (const link of steps.links) link.href = `${link.dataset.to}?tab=${tab}`;
    },
    signal,
  );
  content.replaceChildren(
    heading(data, steps.links),
    explanationsSection(data, signal),
    excerpts.section,
    ...[driversSection(data), effectsSection(data), relationsSection(data, signal), weightsMissing(data), distributionSection(data)].filter(Boolean),
  );
  return { title: `Neuron ${data.neuron}`, keys: { ...steps.keys, ...excerpts.keys, e: ["details of the explanations", toggleExplanations] } };
}

function heading(data, links) {
  const { statistics } = data;
  const facts = statistics.minimum === 0 && statistics.maximum === 0
    ? "It is 0 on every token of the run: a dead neuron."
    : `Mean ${number(statistics.mean)}, standard deviation ${number(Math.sqrt(statistics.variance))}, above 0 on ${number(100 * statistics.fraction_positive)}% of ${statistics.count.toLocaleString("en")} tokens, from ${number(statistics.minimum)} to ${number(statistics.maximum)}.`;
  return element(
    "div",
    { class: "neuron-head" },
    element("h1", {}, `Neuron ${data.neuron}`, data.kind === "mlp" ? "" : element("small", { class: "quiet" }, ` ${data.kind}`)),
    element("nav", { "aria-label": "Neighbouring neurons" }, links.map((link) => [link, " "])),
    live() && data.kind === "mlp" ? element("a", { href: `#/try?neuron=${data.neuron}` }, "try a text") : null,
    element("p", { class: "quiet" }, facts),
  );
}

/** The links to the neurons before and behind it, where there are any, and their keys. */
function stepsOf(data) {
  const link = (name, what) => {
    if (name === null) return null;
    const to = `#/neuron/${name}`;
    return element("a", { href: to, "data-to": to, rel: what === "next" ? "next" : "prev" }, `${what}: ${name}`);
  };
  const [previous, next] = [link(data.previous, "previous"), link(data.next, "next")];
  const keys = {};
  if (next) keys.n = ["the next neuron", () => next.click()];
  if (previous) keys.p = ["the previous neuron", () => previous.click()];
  return { links: [previous, next].filter(Boolean), keys };
}

/** Where weights were not looked at, what does that. */
function weightsMissing(data) {
  if (data.weights || data.kind !== "mlp") return null;
  return element("p", { class: "quiet" }, "Its weights were not looked at. `fastexplain weights` adds the tokens that they read, raise and lower, and the neurons that it feeds and is fed by.");
}

function distributionSection(data) {
  return element(
    "section",
    { "aria-labelledby": "distribution" },
    element("h2", { id: "distribution" }, "How often it is how strong"),
    histogramFigure(data.histogram),
    element("p", { class: "quiet" }, `Skewness ${number(data.statistics.skewness)}, kurtosis ${number(data.statistics.kurtosis)}.`),
  );
}
