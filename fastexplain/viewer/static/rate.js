// Judging explanations blind: true activations, and texts in an order by chance.

import { setAddress } from "./addresses.js";
import { announce, element, explanation } from "./dom.js";
import { returning, send } from "./source.js";
import { tokenView } from "./tokens.js";

// By keys as in the terminal: `2 1 3` says that explanation 2 is best, `g 4 2 5` that the first has a 4.
const WAYS = {
  ranking: {
    label: "Rank",
    hint: "1 for the best; equal ones may share a rank. By keys: the best explanation's number first, as in 3 1 2, or 3 = 1 2 for a tie",
    of: (texts) => texts,
  },
  grades: { label: "Grade", hint: "5 for the best, 1 for the worst. By keys: each explanation's grade in turn", of: () => 5 },
};

export async function ratePage(content, { query, signal }) {
  const rater = query.get("rater");
  if (!rater) {
    content.replaceChildren(...nameForm());
    return { title: "Rate" };
  }
  const rating = new Rating(content, rater, query.get("by") === "grades" ? "grades" : "ranking", signal);
  await rating.ask("rate/next", {}, true);
  const keys = {
    Enter: ["store the judgement", () => rating.store()],
    s: ["skip this neuron", () => rating.skip()],
    b: ["go back to the one before", () => rating.back()],
    u: ["undo the last judgement", () => rating.undo()],
  };
  for (let digit = 1; digit <= 5; digit += 1) {
    keys[digit] = [`rank explanation ${digit} next, or grade the next one ${digit}`, () => rating.type(digit)];
  }
  keys["="] = ["rank the next one equal to the last", () => rating.tie()];
  return { title: "Rate", keys };
}

function nameForm() {
  const name = element("input", { id: "rater", required: true, maxlength: 64, autocomplete: "name" });
  const submit = (event) => {
    event.preventDefault();
    const rater = name.value.trim();
    if (rater) location.hash = `#/rate?${new URLSearchParams({ rater })}`;
    else failure.textContent = "A name of blanks can't be told from another's; type yours.";
  };
  const failure = element("p", { class: "failure", role: "alert" });
  return [
    element("h1", {}, "Rate explanations"),
    element(
      "p",
      {},
      "You see what a neuron does on text that no explanation was written from, and several ",
      "explanations without whose they are. What you say is stored in the run under your name.",
    ),
    element(
      "form",
      { class: "name", on: { submit } },
      element("label", { for: "rater" }, "Your name "),
      name,
      " ",
      element("button", {}, "Begin"),
    ),
    failure,
  ];
}

/** One rater at work. */
class Rating {
  constructor(content, rater, way, signal) {
    Object.assign(this, { content, rater, way, signal, task: null, values: [] });
    this.untilBack = returning(signal, () => this.returned());
  }

  /** Ask the server for something, and show the task that it answers with. */
  async ask(path, body, opening = false) {
    if (this.asking) return;
    this.asking = true;
    try {
      const { task, left, total } = await send(path, { rater: this.rater, ...body }, this.signal);
      if (path === "rate/earlier" && !task) this.fail("There is no earlier judgement.");
      else this.show(task, left, total);
    } catch (error) {
      if (opening || this.signal.aborted) throw error;
      this.fail(error.message);
      if (error.passing) this.wait(`${error.message} What you chose stays here.`);
    } finally {
      this.asking = false;
    }
  }

  store() {
    const missing = this.values.findIndex((value) => value === null);
    if (missing >= 0) return this.fail(`Explanation ${missing + 1} has no value yet.`);
    return this.give({ kind: this.way, values: this.values });
  }

  skip() {
    return this.give({ kind: "skipped", values: [] });
  }

  give(judgement) {
    if (!this.task) return undefined;
    const { neuron, key } = this.task;
    return this.ask("rate", { neuron, key, judgement });
  }

  undo() {
    return this.ask("rate/undo", {});
  }

  /** The judgement before the one that is shown. */
  back() {
    return this.ask("rate/earlier", { before: this.task?.rating ?? null });
  }

  /** A digit ranks the explanation of that number next, or grades the first without a grade; or begins again. */
  type(digit) {
    if (!this.task) return;
    if (digit > WAYS[this.way].of(this.values.length)) return;
    if (!this.values.includes(null)) this.values.fill(null);
    if (this.way === "grades") {
      this.set(this.values.indexOf(null), digit);
      return;
    }
    if (this.values[digit - 1] !== null) return; // it has its rank
    const ranked = this.values.filter((value) => value !== null);
    const rank = this.tied && ranked.length ? Math.max(...ranked) : ranked.length + 1;
    this.set(digit - 1, rank);
  }

  /** The explanation that is ranked next is as good as the last one. */
  tie() {
    this.tied = true;
  }

  set(place, value) {
    this.values[place] = value;
    this.tied = false;
    this.fail("");
    for (const input of this.content.querySelectorAll("input[data-place]")) {
      input.checked = this.values[Number(input.dataset.place)] === Number(input.value);
    }
  }

  /** Say that the viewer is away, and when it is back; what was chosen stands as it was. */
  wait(away) {
    this.away = away;
    this.fail(away);
    this.untilBack();
  }

  returned() {
    // Something else may have been said meanwhile.
    if (this.failure() === this.away) this.fail("The viewer is back, and what you chose is still here: store it.");
  }

  failure() {
    return this.content.querySelector(".failure")?.textContent;
  }

  fail(text) {
    const line = this.content.querySelector(".failure");
    if (line) line.textContent = text;
  }

  /** Show a task from its top, or that there is none. */
  show(task, left, total) {
    const said = this.fill(task, left, total);
    this.content.focus({ preventScroll: true }); // what had it is gone
    scrollTo(0, 0);
    announce(said);
  }

  /** Put a task on the page; returns what is said to those who don't see it. */
  fill(task, left, total) {
    this.task = task;
    const done = `${(total - left).toLocaleString("en")} of ${total.toLocaleString("en")} done`;
    const heading = element("h1", {}, "Rate explanations");
    const progress = element("p", { class: "quiet" }, task ? `Neuron ${task.neuron} · ` : "", `${this.rater}, ${done}`);
    if (!task) {
      const over = element("p", {}, "All neurons with explanations to compare are judged. Thank you.");
      const failure = element("p", { class: "failure", role: "alert" });
      this.content.replaceChildren(heading, progress, over, failure, this.buttons(false));
      return over.textContent;
    }
    if (task.judgement && task.judgement.kind !== "skipped") this.way = task.judgement.kind;
    const given = task.judgement?.kind === this.way ? task.judgement.values : null;
    this.values = task.explanations.map((_, place) => given?.[place] ?? null);
    this.tied = false;
    this.content.replaceChildren(
      heading,
      progress,
      element("section", { class: "evidence", "aria-label": "What the neuron does" }, exemplars(task)),
      this.ways(left, total),
      element("ol", { class: "texts" }, task.explanations.map((text, place) => this.choice(text, place))),
      element("p", { class: "failure", role: "alert" }),
      this.buttons(true),
    );
    return `Neuron ${task.neuron}, ${done}`;
  }

  /** Whether texts are ranked or graded. */
  ways(left, total) {
    const choices = Object.entries(WAYS).map(([name, { label, hint }]) => {
      const change = () => {
        this.way = name;
        setAddress(`#/rate?${new URLSearchParams({ rater: this.rater, by: name })}`);
        this.fill({ ...this.task, judgement: null }, left, total);
        this.content.querySelector("input[name=way]:checked").focus({ preventScroll: true });
      };
      const input = element("input", { type: "radio", name: "way", value: name, on: { change } });
      input.checked = name === this.way;
      return element("label", {}, input, ` ${label} `, element("span", { class: "quiet" }, hint));
    });
    return element("fieldset", { class: "ways" }, element("legend", {}, "How"), choices);
  }

  choice(text, place) {
    const most = WAYS[this.way].of(this.values.length);
    const radios = Array.from({ length: most }, (_, value) => {
      const input = element("input", {
        type: "radio",
        name: `text-${place}`,
        value: value + 1,
        "data-place": place,
        on: { change: () => this.set(place, value + 1) },
      });
      input.checked = this.values[place] === value + 1;
      return element("label", {}, input, String(value + 1));
    });
    const legend = element("legend", { class: "unseen" }, `Explanation ${place + 1}`);
    return element("li", {}, element("p", {}, explanation(text)), element("fieldset", {}, legend, radios));
  }

  buttons(judging) {
    const actions = [
      ...(judging ? [["Store", () => this.store()], ["Skip", () => this.skip()]] : []),
      ["Back", () => this.back()],
      ["Undo", () => this.undo()],
    ];
    return element(
      "p",
      { class: "actions" },
      actions.map(([label, click]) => element("button", { type: "button", on: { click } }, label)),
    );
  }
}

function exemplars({ exemplars: shown, largest, skip }) {
  return shown.map(({ kind, tokens, activations }) =>
    element(
      "div",
      { class: "exemplar" },
      element("span", { class: "quiet" }, kind),
      tokenView({ tokens, values: activations, skip, lowest: -largest, highest: largest, label: kind }),
    ),
  );
}
