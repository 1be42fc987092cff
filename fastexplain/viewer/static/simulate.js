// An explanation of one's own in the syntax of lists, simulated on a neuron's test excerpts.

import { element, explanation, number } from "./dom.js";
import { send } from "./source.js";
import { tokenView } from "./tokens.js";

/** The form for a neuron, and where its result is shown. */
export function listForm(neuron, signal) {
  const list = element("textarea", { id: "own-list", rows: 2, maxlength: 4000, spellcheck: false, "aria-describedby": "list-syntax" });
  const result = element("div", { class: "try-result", "aria-live": "polite" });
  const submit = async (event) => {
    event.preventDefault();
    try {
      const found = await send("simulate", { neuron, explanation: list.value }, signal);
      result.replaceChildren(...listResult(found));
    } catch (error) {
      if (signal.aborted) return;
      result.replaceChildren(element("p", { class: "failure", role: "alert" }, error.message));
    }
  };
  return [
    element("h2", {}, `A list of your own for ${neuron}`),
    element(
      "form",
      { class: "try-fields", on: { submit } },
      element("label", { for: "own-list" }, "Tokens and their mean activations"),
      list,
      element(
        "p",
        { id: "list-syntax", class: "quiet" },
        "Write entries as in ",
        element("code", {}, "' order' after ' in' 3.1, ' sort' 2.4; else 0.02"),
        ": a token in quotes, mostly with a space before its word, perhaps after another token, and its mean.",
      ),
      element("button", {}, "Simulate and score"),
    ),
    result,
  ];
}

function listResult(found) {
  return [
    element("p", {}, "Understood as ", explanation(found.text, { class: "explained" })),
    scoresTable(found, "your list"),
    element("ol", { class: "excerpts" }, found.excerpts.map((each) => excerptItem(found, each))),
  ];
}

/** The scores of what somebody typed, above those of what is stored. */
export function scoresTable(found, name, text = null) {
  const scores = Object.fromEntries(found.scores.map((score) => [score.split, score]));
  const mine = [name, text, ...["top_and_random", "random_only"].map((split) => scores[split])];
  return element(
    "div",
    { class: "scrolled" },
    element(
      "table",
      {},
      element("caption", {}, "Correlation on the test excerpts"),
      element("thead", {}, element("tr", {}, ["by", "top and random", "random only", "explanation"].map((head) => element("th", { scope: "col" }, head)))),
      element("tbody", {}, scoreRow(mine), storedRows(found).map(scoreRow)),
    ),
  );
}

/** Stored explanations, best score first; a lookup's list is scored as it stands, as one's own is. */
function storedRows({ explanations }) {
  return explanations.map((each) => {
    const list = each.method === "lookup" && each.text_top_and_random !== undefined;
    const [both, random] = list ? [each.text_top_and_random, each.text_random_only] : [each.top_and_random, each.random_only];
    const by = each.method === each.explainer ? each.method : `${each.method} by ${each.explainer}`;
    return [list ? "lookup's text" : by, each.explanation, { value: both }, { value: random }];
  });
}

function scoreRow([by, text, both, random]) {
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, by),
    element("td", {}, withInterval(both)),
    element("td", {}, withInterval(random)),
    element("td", {}, explanation(text ?? "", { class: "explained" })),
  );
}

function withInterval(score) {
  const value = score?.value ?? null;
  if (value === null) return score?.reason ? `undefined: ${score.reason}` : "undefined";
  const { low = null, high = null } = score;
  return low === null ? number(value) : `${number(value)} (${number(low)} to ${number(high)})`;
}

function excerptItem(found, { excerpt, top, tokens, activations, simulated }) {
  const truth = activations.map((value) => value && Math.max(value, 0));
  const full = Math.max(...(simulated ?? []), 0);
  const missed = (simulated ?? []).map((value, place) => (value === null || truth[place] === null ? null : value - truth[place]));
  const line = (name, values, highest, lowest = 0) => [
    element("span", { class: "peak" }, name),
    tokenView({ tokens, values, lowest, highest, label: `${name}, ${top ? "top" : "random"} excerpt ${excerpt}` }),
  ];
  const most = Math.max(full, found.highest);
  return element(
    "li",
    {},
    element(
      "div",
      { class: "compared" },
      line("true", truth, found.highest),
      line("simulated", simulated ?? [], most),
      line("too much, too little", missed, most, -most),
    ),
  );
}
