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
  const excerpts = exemplarsSection(
    data,
    { tab: query.get("tab"), by: query.get("by") },
    (tab, by) => {
      const set = new URLSearchParams(by ? { tab, by } : { tab });
      setAddress(`#/neuron/${name}?${set}`);
    },
  );
  content.replaceChildren(
    heading(data),
    explanationsSection(data),
    excerpts.section,
    ...[driversSection(data), effectsSection(data), relationsSection(data, signal), distributionSection(data)].filter(Boolean),
  );
  return { title: `Neuron ${data.neuron}`, keys: { ...steps(data), ...excerpts.keys, e: ["details of the explanations", toggleExplanations] } };
}

function heading(data) {
  const { statistics } = data;
  const facts = statistics.minimum === 0 && statistics.maximum === 0
    ? "It is 0 on every token of the run: a dead neuron."
    : `Mean ${number(statistics.mean)}, standard deviation ${number(Math.sqrt(statistics.variance))}, above 0 on ${number(100 * statistics.fraction_positive)}% of ${statistics.count.toLocaleString("en")} tokens, from ${number(statistics.minimum)} to ${number(statistics.maximum)}.`;
  return element(
    "div",
    { class: "neuron-head" },
    element("h1", {}, `Neuron ${data.neuron}`, data.kind === "mlp" ? "" : element("small", { class: "quiet" }, ` ${data.kind}`)),
    element("nav", { "aria-label": "Neighbouring neurons" }, stepLink(data.previous, "previous"), " ", stepLink(data.next, "next")),
    live() && data.kind === "mlp" ? element("a", { href: `#/try?neuron=${data.neuron}` }, "try a text") : null,
    element("p", { class: "quiet" }, facts),
  );
}

function stepLink(name, what) {
  return name === null ? null : element("a", { href: `#/neuron/${name}`, rel: what === "next" ? "next" : "prev" }, `${what}: ${name}`);
}

function steps(data) {
  const open = (name) => { if (name !== null) location.hash = `#/neuron/${name}`; };
  return { n: ["the next neuron", () => open(data.next)], p: ["the previous neuron", () => open(data.previous)] };
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
