// A neuron's excerpts: by the kinds that the sweep kept, and true beside simulated.

import { element, number } from "./dom.js";
import { signLists } from "./signs.js";
import { live, load, send } from "./source.js";
import { subjectLoaded } from "./subject.js";
import { tokenView } from "./tokens.js";

const KINDS = {
  top: ["Top", "t", "The excerpts with the largest activations, largest first."],
  bottom: ["Bottom", "b", "The excerpts with the most negative activations, most negative first."],
  quantile: ["By quantile", "q", "Random excerpts from the parts of the neuron's own distribution. Of those that are no top or random ones only the range of the largest activation is stored."],
  random: ["Random", "r", "Random excerpts, the same for all neurons."],
  signs: ["By signs", "g", "By whether the neuron's two factors, f(gate) and up, are above 0: the excerpts with the largest |activation| in each class. Only tokens of the class have their values."],
  simulated: ["True and simulated", "s", "The excerpts that score explanations: what the neuron does, what is predicted, and the difference."],
};

/** The section with its tabs; `remember(tab, by)` keeps what is chosen in the address. */
export function exemplarsSection(data, chosen, remember, signal) {
  const panel = element("div", { id: "excerpts", role: "tabpanel", tabindex: -1 });
  const filled = Object.keys(KINDS).filter((kind) => rowsOf(data, kind).length);
  const tabs = Object.fromEntries(filled.map((kind) => [kind, tabButton(kind, () => open(kind))]));
  let by = simulationOf(data, chosen.by);

  function open(kind) {
    for (const [name, tab] of Object.entries(tabs)) {
      tab.setAttribute("aria-selected", name === kind);
      tab.tabIndex = name === kind ? 0 : -1;
    }
    panel.setAttribute("aria-labelledby", `tab-${kind}`);
    remember(kind, kind === "simulated" ? simulationName(by) : null);
    const list = kind === "signs" ? signLists(data, (row) => excerptRow(data, kind, row)) : excerptList(kind === "simulated" ? comparedRows(data, by) : rowsOf(data, kind).map((row) => excerptRow(data, kind, row)));
    panel.replaceChildren(
      element("p", { class: "quiet" }, KINDS[kind][2]),
      kind === "simulated" ? simulationChoice(data, by, (next) => {
        by = next;
        open(kind);
        document.getElementById("simulation").focus(); // it was made anew
      }) : "",
      kind === "quantile" ? runButton(data, () => open(kind), signal) : "",
      list,
    );
    if (kind === "simulated" && !by.values) predict(data, by, list, signal);
  }

  if (filled.length) open(filled.includes(chosen.tab) ? chosen.tab : filled[0]);
  else panel.append(element("p", { class: "quiet" }, "The run kept no excerpt of it."));
  const keys = Object.fromEntries(filled.map((kind) => [KINDS[kind][1], [`excerpts: ${KINDS[kind][0].toLowerCase()}`, () => open(kind)]]));
  return {
    section: element(
      "section",
      { "aria-labelledby": "excerpts-title" },
      element("h2", { id: "excerpts-title" }, "What text drives it"),
      filled.length ? element("div", { role: "tablist", "aria-label": "Excerpts", on: { keydown: stepTabs } }, Object.values(tabs)) : null,
      panel,
    ),
    keys: { ...keys, j: ["the next excerpt", () => stepExcerpt(1)], k: ["the previous excerpt", () => stepExcerpt(-1)] },
  };
}

export function excerptList(rows) {
  return element("ol", { class: "excerpts" }, rows.map((row) => element("li", {}, row)));
}

/** What a rule or a table predicts is made when it is asked for. */
async function predict(data, by, list, signal) {
  const table = by.simulator === "lookup";
  list.replaceChildren(element("li", { class: "quiet", role: "status" }, table ? "Looking up what the table predicts…" : "Finding where the rule holds…"));
  try {
    const found = await load(table ? `table/${data.neuron}` : `ruled/${data.neuron}/${by.explanation}`, signal);
    by.values = found.values;
    list.replaceChildren(...comparedRows(data, by).map((row) => element("li", {}, row)));
  } catch (error) {
    if (!signal.aborted) list.replaceChildren(element("li", { class: "failure", role: "alert" }, error.message));
  }
}

/** What runs the subject on the excerpts whose activations are not stored. */
function runButton(data, done, signal) {
  const lacking = data.exemplars.quantile.filter((row) => !row.values && !knownValues(data, row.excerpt));
  if (!live() || data.kind !== "mlp" || !lacking.length) return "";
  const said = element("span", { class: "quiet", role: "status" });
  const button = element("button", { type: "button" }, `Run the subject on the ${lacking.length} without activations`);
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      await subjectLoaded((line) => { said.textContent = line; }, signal);
      for (const row of lacking) {
        const page = `${data.neuron} quantiles ${row.excerpt}`;
        row.values = (await send("try", { excerpt: row.excerpt, neuron: data.neuron, page }, signal)).values;
      }
      done();
      document.getElementById("tab-quantile").focus(); // the button is gone
    } catch (error) {
      if (signal.aborted) return;
      button.disabled = false;
      said.replaceChildren(element("span", { class: "failure" }, error.message));
    }
  });
  return element("p", {}, button, " ", said);
}

function rowsOf(data, kind) {
  if (kind === "signs") return data.signs;
  return kind === "simulated" ? simulationsOf(data) : data.exemplars[kind];
}

/** Those that are there, or that the server can make. */
function simulationsOf(data) {
  return data.simulations.filter(({ values }) => values || live());
}

function tabButton(kind, chosen) {
  const [name, key] = KINDS[kind];
  return element(
    "button",
    { type: "button", role: "tab", id: `tab-${kind}`, "aria-controls": "excerpts", title: `Key: ${key}`, on: { click: chosen } },
    name,
  );
}

function stepTabs(event) {
  const tabs = [...event.currentTarget.children];
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const next = tabs[(tabs.indexOf(event.target) + step + tabs.length) % tabs.length];
  next.focus();
  next.click();
}

/** The focus on the next excerpt's tokens, from where it is. */
function stepExcerpt(step) {
  const all = [...document.querySelectorAll(".excerpts > li")];
  if (!all.length) return;
  const here = all.indexOf(document.activeElement.closest(".excerpts > li"));
  const next = all[here < 0 ? 0 : Math.min(Math.max(here + step, 0), all.length - 1)];
  next.querySelector(".token[tabindex='0']")?.focus();
}

function excerptRow(data, kind, row) {
  const { tokens } = data.excerpts[row.excerpt];
  const values = row.values ?? knownValues(data, row.excerpt);
  const counted = (values ?? []).slice(data.skip).filter((value) => value !== null);
  const peak = counted.reduce((most, value) => (farther(kind, value, most) ? value : most), counted[0]);
  const says = kind === "quantile" ? `${share(row.share)}: ${range(row)}` : number(peak);
  return [
    element("span", { class: "peak" }, says),
    textAround(data, row.excerpt, view(data, tokens, values ?? tokens.map(() => null), `excerpt ${row.excerpt}`)),
  ];
}

/** Whether a value goes before another as an exemplar's: the largest, the smallest, by size. */
function farther(kind, value, other) {
  if (kind === "signs") return Math.abs(value) > Math.abs(other);
  return kind === "bottom" ? value < other : value > other;
}

/** The activations on an excerpt that is an exemplar of another kind too. */
function knownValues(data, excerpt) {
  const found = [...data.exemplars.top, ...data.exemplars.bottom, ...data.exemplars.random].find((row) => row.excerpt === excerpt);
  return found?.values;
}

function view(data, tokens, values, label) {
  const { lowest, highest } = data.scale;
  return tokenView({ tokens, values, skip: data.skip, lowest, highest, label });
}

function share(value) {
  return `${number(100 * value)}%`;
}

function range({ low, high }) {
  if (low === null) return `below ${number(high)}`;
  return high === null ? `from ${number(low)}` : `${number(low)} to ${number(high)}`;
}

/** An excerpt with what stands before and behind it in its document, where the run has that. */
function textAround(data, excerpt, shown) {
  const box = element("span", { class: "around" }, shown);
  if (!live()) return box;
  const ends = { before: excerpt, after: excerpt };
  for (const side of ["before", "after"]) {
    if (data.excerpts[excerpt][side] === null) continue;
    const button = element("button", { type: "button", class: "more", "aria-label": `more text ${side} excerpt ${excerpt}` }, `more ${side}`);
    button.addEventListener("click", async () => {
      button.disabled = true;
      try {
        const found = await load(`context/${ends[side]}?before=${Number(side === "before")}&after=${Number(side === "after")}`);
        const [next] = found[side];
        if (next) {
          ends[side] = next.excerpt;
          const text = element("span", { class: "tokens quiet", dir: "ltr" }, next.tokens.join(""));
          if (side === "before") button.after(text);
          else button.before(text);
        }
        if (next) button.disabled = false;
        else button.replaceWith(element("span", { class: "quiet" }, "No more of this document is in the run."));
      } catch (error) {
        button.replaceWith(element("span", { class: "failure" }, error.message));
      }
    });
    if (side === "before") box.prepend(button);
    else box.append(button);
  }
  return box;
}

function simulationName(simulation) {
  return `${simulation.explanation}/${simulation.simulator}/${simulation.version}`;
}

function simulationOf(data, name) {
  const all = simulationsOf(data);
  return all.find((each) => simulationName(each) === name) ?? all[0];
}

function simulationChoice(data, by, chosen) {
  const texts = Object.fromEntries(data.explanations.map((each) => [each.id, each.text]));
  const options = simulationsOf(data).map((each, place) => {
    const text = texts[each.explanation] ?? "";
    const simulator = { lookup: "the whole table", list: "the list as it is shown", rule: "the rule" }[each.simulator] ?? `${each.simulator} (${each.version})`;
    return element("option", { value: place, selected: each === by }, `${simulator}: ${text.slice(0, 80)}`);
  });
  return element(
    "p",
    {},
    element("label", { for: "simulation" }, "Simulated by "),
    element("select", { id: "simulation", on: { change: (event) => chosen(simulationsOf(data)[event.target.value]) } }, options),
  );
}

/** For each excerpt of a simulation: true, simulated and the difference, one above the other. */
export function comparedRows(data, simulation) {
  const { sign } = simulation; // of the bottom, what is below 0 is simulated
  const most = sign > 0 ? data.scale.highest : -data.scale.lowest;
  return Object.entries(simulation.values ?? {}).map(([excerpt, values]) => {
    const { tokens } = data.excerpts[excerpt];
    const known = knownValues(data, Number(excerpt)) ?? [];
    const truth = known.map((value) => value && sign * Math.max(sign * value, 0));
    const said = values.map((value) => (value === null ? null : (value / simulation.full) * most * sign));
    const missed = said.map((value, place) => (value === null ? null : sign * (value - (truth[place] ?? 0))));
    const label = (name) => `${name}, excerpt ${excerpt}`;
    const line = (name, own) => [
      element("span", { class: "peak" }, name),
      tokenView({ tokens, values: own, skip: data.skip, lowest: -most, highest: most, label: label(name) }),
    ];
    return element(
      "div",
      { class: "compared" },
      line("true", truth),
      line("simulated", said),
      line("too much, too little", missed),
    );
  });
}
