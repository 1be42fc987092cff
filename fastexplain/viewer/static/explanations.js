// What is said of a neuron, how well that fits, and where it came from.

import { element, explanation, number } from "./dom.js";
import { live, load } from "./source.js";

const FIRST_SHOWN = 6;
// Characters of a text; a longer one stands whole among the details.
const LONGEST_SAID = 1000;
const SPLITS = [["top_and_random", "Top and random"], ["random_only", "Random"], ["top_only", "Top"]];

// What predicts it without an explanation of it.
const BASELINES = {
  mismatched: "another neuron's table",
  token: "the token alone",
  position: "the place in the excerpt",
};

export function explanationsSection(data, signal) {
  const cards = data.explanations.map((each) => explanationCard(data, each));
  const more = cards.slice(FIRST_SHOWN);
  return element(
    "section",
    { "aria-labelledby": "said" },
    element("h2", { id: "said" }, "What is said of it"),
    cards.length ? cards.slice(0, FIRST_SHOWN) : element("p", { class: "quiet" }, "Nothing yet: no explanation is stored. `fastexplain explain` makes them."),
    more.length ? element("details", {}, element("summary", {}, `${more.length} more`), more) : null,
    cards.length && data.kind === "mlp" && (live() || data.baselines) ? baselinesBox(data, signal) : null,
  );
}

/** They take longer than all the rest, so they come after it, into room that is kept for them. */
function baselinesBox(data, signal) {
  const table = (known) => scrolledTable(
    "Baselines",
    ["Without an explanation of it", ...SPLITS.map(([, name]) => name)],
    Object.keys(BASELINES).filter((name) => !known || known[name]).map((name) => [
      BASELINES[name],
      ...SPLITS.map(([split]) => (known ? known[name][split]?.toFixed(2) ?? "undefined" : "…")),
    ]),
  );
  const box = element("div", { class: "baselines" }, table(data.baselines ?? null));
  if (data.baselines) return box; // of an exported page
  load(`baselines/${data.neuron}`, signal).then(
    (found) => box.replaceChildren(table(found.baselines)),
    (error) => {
      if (!signal.aborted) box.replaceChildren(element("p", { class: "failure", role: "alert" }, error.message));
    },
  );
  return box;
}

/** Opens or closes the details of all explanations. */
export function toggleExplanations() {
  const all = [...document.querySelectorAll(".explanation > details")];
  const open = !all.every((each) => each.open);
  for (const each of all) each.open = open;
}

function explanationCard(data, each) {
  const correlations = each.scores.filter((score) => score.measure === "correlation");
  const others = each.scores.filter((score) => score.measure !== "correlation");
  return element(
    "article",
    { class: "explanation" },
    element("p", { class: "said" }, each.text === null ? element("span", { class: "failure" }, `failed: ${each.failure ?? "no text"}`) : explanation(each.text.length > LONGEST_SAID ? `${each.text.slice(0, LONGEST_SAID)}…` : each.text, { class: "explained" })),
    element("p", { class: "quiet" }, element("bdi", {}, each.method === each.model ? each.method : `${each.method}, ${each.model}${each.prompt ? `, prompt ${each.prompt}` : ""}`), each.cost ? ` · $${number(each.cost)}` : ""),
    correlations.length ? correlationTable(correlations) : element("p", { class: "quiet" }, "It has no score."),
    element(
      "details",
      {},
      element("summary", {}, "Details"),
      others.length ? otherTable(others) : null,
      each.terms.length ? termTable(each.terms, each.parameters.default) : null,
      originList(data, each),
      requestButton(data, each),
    ),
  );
}

/** A row for each way to simulate, with the baselines below; a column for each split. */
function correlationTable(scores) {
  const rows = new Map();
  for (const score of scores) {
    const name = `${judgeName(score)}\n${score.version}`;
    if (!rows.has(name)) rows.set(name, {});
    rows.get(name)[score.split] = score;
  }
  const splits = [...SPLITS, ...[...new Set(scores.map((score) => score.split))].filter((split) => !SPLITS.some(([known]) => known === split)).map((split) => [split, split])];
  const shown = splits.filter(([split]) => scores.some((score) => score.split === split));
  return scrolledTable(
    "Correlation of simulated and true activations",
    ["Correlation", ...shown.map(([, name]) => name)],
    [...rows].map(([name, own]) => [name.split("\n")[0], ...shown.map(([split]) => scoreCell(own[split]))]),
  );
}

function judgeName({ scorer, judge }) {
  const by = { lookup: "the whole table", list: "the list as shown", rule: "the rule" }[judge] ?? `by ${judge}`;
  if (scorer === "correlation") return by;
  return `${{ mismatched: "another neuron's explanation", empty: "an empty explanation" }[scorer] ?? scorer}, ${by}`;
}

function scoreCell(score) {
  if (!score) return "";
  const value = score.value === null ? "undefined" : score.value.toFixed(2);
  const interval = score.low === null ? "" : ` (${score.low.toFixed(2)} to ${score.high.toFixed(2)})`;
  return element("span", { title: `${score.excerpts} excerpts${score.reason ? `; ${score.reason}` : ""}` }, value, element("small", {}, interval));
}

function otherTable(scores) {
  return scrolledTable(
    "Other scores",
    ["Scorer", "Judge", "Split", "Measure", "Value", "Excerpts"],
    scores.map((score) => [score.scorer, score.judge, score.split, score.measure, scoreCell(score), score.excerpts]),
  );
}

function termTable(terms, otherwise) {
  return scrolledTable(
    "The rule's terms",
    ["Tokens that are", "Adds", "Mean there", "Tokens"],
    [...terms.map((term) => [term.term, number(term.value), number(term.mean), term.count]), ["all else", number(otherwise), "", ""]],
  );
}

function originList(data, each) {
  const { prompt, exemplars, request, default: _, ...settings } = each.parameters ?? {};
  const ranks = new Map(data.exemplars.top.map((row, place) => [row.excerpt, `top ${place + 1}`]));
  const facts = [
    ["Whole text", each.text?.length > LONGEST_SAID ? each.text : null],
    ["Made by", each.model],
    ["Version", each.version],
    ["Prompt", prompt],
    ["Was shown", exemplars?.map((id) => ranks.get(id) ?? `excerpt ${id}`).join(", ")],
    ...Object.entries(settings).map(([name, value]) => [name.replaceAll("_", " "), typeof value === "object" ? JSON.stringify(value) : String(value)]),
    ["Cost", each.cost === null ? null : `$${number(each.cost)}`],
    ["Made from", each.parent === null ? null : `explanation ${each.parent}`],
    ["Stored", `${each.created} as explanation ${each.id}`],
  ];
  return element(
    "dl",
    {},
    facts.filter(([, value]) => value !== null && value !== undefined && value !== "").map(([name, value]) => [element("dt", {}, name), element("dd", {}, element("bdi", {}, value))]),
  );
}

/** The request itself is loaded when somebody wants it; an exported site does not have it. */
function requestButton(data, each) {
  if (!live() || !each.parameters?.request) return null;
  const box = element("div", { class: "request" });
  const button = element("button", { type: "button" }, "Show the request");
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const found = await load(`request/${data.neuron}/${each.id}`);
      box.replaceChildren(
        ...(found.messages ?? []).map(({ role, content }) => messageView(role, content)),
        ...(found.why ? [element("p", { class: "quiet" }, found.why)] : []),
        ...(found.answer === null ? [] : [messageView("answer", found.answer)]),
      );
      box.querySelector("pre")?.focus();
    } catch (error) {
      box.replaceChildren(element("p", { class: "failure", role: "alert" }, error.message));
    }
  });
  box.append(button);
  return box;
}

function messageView(role, content) {
  return element("div", {}, element("h4", {}, role), element("pre", { tabindex: 0, role: "region", "aria-label": role }, content));
}

/** A table in a box of its own, which scrolls where the page is narrow. */
export function scrolledTable(label, head, rows) {
  return element(
    "div",
    { class: "scrolled", role: "region", tabindex: 0, "aria-label": label },
    element(
      "table",
      {},
      element("thead", {}, element("tr", {}, head.map((name) => element("th", { scope: "col" }, name)))),
      element("tbody", {}, rows.map(([first, ...cells]) => element("tr", {}, element("th", { scope: "row" }, first instanceof Node ? first : element("bdi", {}, first)), cells.map((cell) => element("td", {}, cell))))),
    ),
  );
}
