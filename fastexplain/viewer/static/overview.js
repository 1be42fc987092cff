// The overview: all neurons as a picture, distributions by layer, lists, and what the run is.

import { barRows, distributionChart } from "./charts.js";
import { cut, element, explanation, number } from "./dom.js";
import { mapSection } from "./map.js";
import { live, load, offers, run } from "./source.js";
import { steadySection } from "./steady.js";
import { watchProgress } from "./watching.js";

const LISTS = {
  best: [(who) => `Best ${who}`, "The highest correlation of predicted and true activations."],
  worst: [(who) => `Worst ${who}`, "The lowest correlation of predicted and true activations."],
  beyond_lookup: [
    (who) => `Where ${who} beat the lookup`,
    "Sorted by how far the correlation exceeds that of the lookup table.",
  ],
  beyond_explanation: [
    (who) => `Where the lookup beats ${who}`,
    "Sorted by how far the correlation stays behind that of the lookup table.",
  ],
};
const WHOSE = { other: "explanations by models", rule: "rules", list: "texts of lookups" };
const CHARTS = 6; // shown before the others are asked for

export async function overviewPage(content, { query, signal }) {
  // First of all, so that whatever is made from now on is shown too.
  const progress = live() ? await load("progress", signal) : null;
  const [found, offered] = await Promise.all([run(), load("maps", signal)]);
  if (signal.aborted) return undefined;
  const maps = offered.maps.filter((each) => offers(`map/${each.key}`));
  const known = new Map(maps.map((each) => [each.key, each]));
  const key = known.has(query.get("map")) ? query.get("map") : offered.default;
  let look = () => {};
  const map = mapSection(found, maps, key, () => look(), signal);
  const rest = element("div", { class: "overview-rest" }, element("p", { class: "quiet" }, "Loading…"));
  content.replaceChildren(...runHeading(found), map.section, rest);
  if (progress) map.follow(progress);
  await map.show(key);
  const parts = restParts(rest, found, map, signal);
  parts.fill();
  let { made } = progress ?? {};
  look = watchProgress((now) => {
    map.follow(now);
    parts.settle();
    if (now.made === made) return;
    made = now.made;
    parts.fill();
  }, signal);
  return {
    title: found.name,
    keys: {
      "+": ["enlarge the picture", () => map.zoom(1.5)],
      "-": ["make the picture smaller", () => map.zoom(1 / 1.5)],
    },
  };
}

function runHeading(found) {
  const neurons = found.sites.reduce((sum, site) => sum + site.units, 0);
  return [
    element("h1", {}, found.name),
    element(
      "p",
      { class: "quiet" },
      `${neurons.toLocaleString("en")} neurons of ${found.subject.name} on `,
      `${corpusName(found)}: `,
      `${found.sweep.excerpts.toLocaleString("en")} excerpts.`,
    ),
  ];
}

function corpusName({ corpus }) {
  return (corpus.sources ?? []).join(", ") || "texts";
}

/** Lists, distributions, what was made, and the run; `fill` loads them, and shows what is not shown already. */
function restParts(rest, found, map, signal) {
  const kinds = [
    ["Neurons to look at", ({ lists }) => lists, listsOf],
    ["By layer", ({ distributions }) => distributions, chartsOf],
    ["What was made", ({ explanations, cost }) => ({ explanations, cost }), madeOf],
  ];
  const sections = kinds.map(([title]) => ({ ...steadySection(title), shown: null }));
  // Last, and not before the others are there: nothing is below what grows as it is loaded.
  const own = element("section", {}, element("h2", {}, "The run"), runTable(found));

  async function fill() {
    let data;
    try {
      data = await load("overview", signal);
    } catch (error) {
      // What is there already stays true.
      if (signal.aborted || rest.contains(sections[0].node)) return;
      rest.replaceChildren(element("p", { class: "failure", role: "alert" }, error.message), own);
      return;
    }
    if (signal.aborted) return;
    map.offer(new Set(data.distributions.map(({ key }) => key)));
    kinds.forEach(([, part, filled], place) => {
      const section = sections[place];
      const text = JSON.stringify(part(data));
      if (text === section.shown) return;
      section.shown = text;
      section.show([filled(part(data))].flat().filter(Boolean));
    });
    if (!rest.contains(sections[0].node)) rest.replaceChildren(...sections.map(({ node }) => node), own);
  }

  return { fill, settle: () => sections.forEach((section) => section.settle()) };
}

function listsOf(lists) {
  if (!lists.length) {
    return element("p", { class: "quiet" }, "No explanation is scored yet; run: fastexplain explain");
  }
  return element(
    "div",
    { class: "lists" },
    lists.map(({ name, kind, neurons }) =>
      element(
        "section",
        {},
        element("h3", {}, LISTS[name][0](WHOSE[kind])),
        element("p", { class: "quiet" }, LISTS[name][1]),
        element("ol", {}, neurons.map(listed)),
      ),
    ),
  );
}

function listed({ neuron, score, lookup, text, model, method }) {
  return element(
    "li",
    {},
    element("a", { href: `#/neuron/${neuron}` }, neuron),
    element("span", { class: "number", title: "correlation over top and random excerpts" }, ` ${number(score, 2)} `),
    lookup === null || method === "lookup"
      ? null
      : element("span", { class: "quiet" }, `lookup ${number(lookup, 2)} `),
    explanation(cut(text, 120), { class: "explained", title: model }),
  );
}

function chartsOf(distributions) {
  // Scores first: they are what the run is for.
  const sorted = [...distributions].sort((a, b) => Number(b.key.includes(".")) - Number(a.key.includes(".")));
  const figure = ({ label, neurons, sites }) =>
    element(
      "figure",
      {},
      element("figcaption", {}, label, element("span", { class: "quiet" }, ` ${neurons.toLocaleString("en")} neurons`)),
      distributionChart(`${label} by layer`, sites),
    );
  const more = sorted.slice(CHARTS);
  return [
    element("p", { class: "quiet" }, "Line: median. Dark band: half of the neurons. Pale band: 9 of 10."),
    element("div", { class: "charts" }, sorted.slice(0, CHARTS).map(figure)),
    more.length
      ? element("details", {}, element("summary", {}, `${more.length} more`), element("div", { class: "charts" }, more.map(figure)))
      : null,
  ];
}

function madeOf({ explanations, cost }) {
  const asked = cost.map((row) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, row.model),
      element("td", {}, row.purpose),
      [row.answered, row.failed, row.prompt_tokens, row.completion_tokens].map((value) =>
        element("td", { class: "number" }, value.toLocaleString("en")),
      ),
      element("td", { class: "number" }, price(row)),
    ),
  );
  return [
    explanations.length
      ? barRows(
          "Neurons explained",
          explanations.map(({ method, model, version, explained, failed }) => ({
            label: method === model ? `${method} (${version})` : `${method}: ${model} (${version})`,
            value: explained,
            text: explained.toLocaleString("en") + (failed ? `, ${failed.toLocaleString("en")} failed` : ""),
          })),
        )
      : element("p", { class: "quiet" }, "Nothing is explained yet."),
    asked.length
      ? element(
          "div",
          { class: "scrolled", tabindex: 0, role: "region", "aria-label": "What models were asked" },
          element(
            "table",
            { class: "rows" },
            element("caption", {}, "What models were asked"),
            element(
              "thead",
              {},
              element(
                "tr",
                {},
                ["Model", "For", "Answers", "Failed", "Prompt tokens", "Answer tokens", "US dollars"].map((name) =>
                  element("th", { scope: "col" }, name),
                ),
              ),
            ),
            element("tbody", {}, asked),
          ),
        )
      : null,
  ];
}

function price({ cost, answered, unpriced }) {
  if (answered && unpriced === answered) return "price not known";
  return cost.toFixed(cost && cost < 1 ? 4 : 2) + (unpriced ? " and more" : "");
}

function runTable(found) {
  const { subject, sweep, settings, versions } = found;
  const rows = [
    ["Subject", [subject.name, subject.revision].filter(Boolean).join(", revision ")],
    ["Corpus", `${corpusName(found)}, ${sweep.tokens.toLocaleString("en")} tokens`],
    ["Layers and other sites", String(found.sites.length)],
    ["Sweep", `${number(sweep.seconds)} s, ${number(sweep.tokens_per_second)} tokens/s`],
    ["Settings", Object.entries(settings).filter(([, value]) => !Array.isArray(value))
      .map(([name, value]) => `${name} ${JSON.stringify(value)}`).join(", ")],
    ["Versions", Object.entries(versions).map(([name, value]) => `${name} ${value}`).join(", ")],
  ];
  return element(
    "table",
    { class: "facts" },
    element("tbody", {}, rows.map(([name, value]) =>
      element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value)))),
  );
}
