// What drives a neuron, what it does, and the neurons it has to do with.

import { element, explanation, number } from "./dom.js";
import { scrolledTable } from "./explanations.js";
import { live, load } from "./source.js";
import { quotedToken, tokenText } from "./tokens.js";

/** The tokens that drive it: the list with a place for each entry, and rows of the tables. */
export function driversSection(data) {
  const entries = data.explanations.find((each) => each.entries.length)?.entries ?? [];
  const reads = Object.entries(data.weights?.inputs ?? {});
  if (!entries.length && !data.rows.length && !reads.length) return null;
  return element(
    "section",
    { "aria-labelledby": "drivers" },
    element("h2", { id: "drivers" }, "Tokens that drive it"),
    entries.length ? scrolledTable("The list's entries", ["Entry", "Mean", "Tokens", "Where it is highest", "Activation"], entries.map(entryCells)) : null,
    rowsDetails(data.rows.filter((row) => row.previous === null), "Strongest tokens of the table"),
    rowsDetails(data.rows.filter((row) => row.previous !== null), "Strongest pairs of the table"),
    reads.map(([part, side]) => effectsDetails(`Tokens that its weights read (${part})`, side)),
  );
}

function entryCells(entry) {
  const place = [element("span", { class: "quiet" }, tokenText(entry.before)), element("mark", {}, tokenText(entry.own)), element("span", { class: "quiet" }, tokenText(entry.after))];
  const from = entry.source ? element("small", { class: "quiet" }, ` ${entry.source}`) : "";
  return [explanation(entry.text, { class: "explained" }), number(entry.mean), entry.count, [element("bdi", { class: "place" }, place), from], number(entry.activation)];
}

function rowsDetails(rows, title) {
  if (!rows.length) return null;
  const cells = rows.map(({ previous, token, mean, count }) => [previous === null ? quotedToken(token) : element("span", {}, quotedToken(token), " after ", quotedToken(previous)), number(mean), count]);
  return element("details", {}, element("summary", {}, title), scrolledTable(title, ["Token", "Mean", "Tokens"], cells));
}

function effectsDetails(title, side, open = false) {
  const list = (name, tokens) => element("div", {}, element("h3", {}, name), tokens.length ? element("p", { class: "effects" }, tokens.map(({ token, value }) => [element("span", { class: "effect" }, quotedToken(token), " ", element("small", {}, signed(value))), " "])) : element("p", { class: "quiet" }, "none"));
  return element(
    "details",
    { open },
    element("summary", {}, title),
    element("div", { class: "columns" }, list("Most", side.most), list("Least", side.least)),
    element("p", { class: "quiet" }, `Standard deviation over the vocabulary: ${number(side.spread)}.`),
  );
}

/** What it does: tokens that it raises and lowers, by its weights and by steering. */
export function effectsSection(data) {
  if (!data.weights && !data.steering.length) return null;
  return element(
    "section",
    { "aria-labelledby": "effects" },
    element("h2", { id: "effects" }, "What it does"),
    data.weights ? effectsDetails("Tokens that its weights raise and lower", data.weights.output, true) : null,
    data.steering.length ? scrolledTable("Steering", ["Raised to", "Divergence, nats", "Tokens that become likelier"], data.steering.map(steeringCells)) : null,
  );
}

function steeringCells({ activation, divergence, tokens }) {
  return [number(activation), number(divergence), tokens.map(({ token, rise }) => [quotedToken(token), " ", element("small", {}, `+${number(100 * rise, 2)}%`), " "])];
}

/** Neurons that feed it, that it feeds, and that are like it. */
export function relationsSection(data, signal) {
  const { weights } = data;
  const parts = [
    weights ? neighbourList("Fed by", weights.fed_by, "cosine") : null,
    weights ? neighbourList("Read by", weights.read_by, "cosine") : null,
    weights ? neighbourList("Write the same", weights.similar, "cosine") : null,
    live() && data.exemplars.random.length ? similarDetails(data, signal) : null,
  ].filter((part) => part !== null);
  if (!parts.length) return null;
  return element(
    "section",
    { "aria-labelledby": "relations" },
    element("h2", { id: "relations" }, "Neurons it has to do with"),
    element("div", { class: "columns" }, parts),
  );
}

function neighbourList(title, neighbours, measure) {
  return element("div", {}, element("h3", {}, title), neighbourItems(neighbours, measure));
}

function neighbourItems(neighbours, measure) {
  if (!neighbours.length) return element("p", { class: "quiet" }, "none");
  return element("ul", { class: "neighbours" }, neighbours.map((each) => element("li", {}, element("a", { href: `#/neuron/${each.neuron}` }, each.neuron), " ", element("small", { title: measure }, signed(each[measure])))));
}

/** It reads the activations of all neurons, so it is asked for when it is opened. */
function similarDetails(data, signal) {
  const list = element("div", { "aria-live": "polite" });
  const details = element("details", {}, element("summary", {}, "Active on the same tokens"), list);
  details.addEventListener("toggle", async () => {
    if (!details.open || list.hasChildNodes()) return;
    list.append(element("p", { class: "quiet" }, "Comparing all neurons…"));
    try {
      const found = await load(`similar/${data.neuron}`, signal);
      list.replaceChildren(
        element("p", { class: "quiet" }, `Correlation over ${found.tokens} tokens of the random excerpts.`),
        neighbourItems(found.neurons, "correlation"),
      );
    } catch (error) {
      if (!signal.aborted) list.replaceChildren(element("p", { class: "failure", role: "alert" }, error.message));
    }
  });
  return details;
}

function signed(value) {
  return value > 0 ? `+${number(value)}` : number(value).replace("-", "−");
}
