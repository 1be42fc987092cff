// A text of one's own on the subject: one neuron on it at every key stroke, or all neurons ranked;
// and an explanation of one's own, a list or in words, simulated and scored.

import { setAddress } from "./addresses.js";
import { element, explanation, number, visible } from "./dom.js";
import { listForm } from "./simulate.js";
import { load, returning, send } from "./source.js";
import { subjectLoaded } from "./subject.js";
import { quotedToken, tokenView } from "./tokens.js";
import { explanationForm } from "./typed.js";

const TYPING = 150; // ms without a key stroke before a text is run
const MOST_TEXT = 4000;

export async function tryPage(content, { query, signal }) {
  const trial = new Trial(query, await load("simulator", signal), signal);
  content.replaceChildren(...trial.parts());
  trial.prepare();
  return { title: query.get("neuron") ? `Try ${query.get("neuron")}` : "Try" };
}

/** One visit to the page. */
class Trial {
  constructor(query, simulator, signal) {
    this.signal = signal;
    this.wait = returning(signal, () => this.prepare()); // what was typed stands as it was
    this.simulator = simulator;
    this.page = Math.random().toString(36).slice(2); // newer texts of a page overtake its older ones
    this.asked = 0;
    this.ready = false;
    this.at = /^\d{1,6}$/.test(query.get("at") ?? "") ? Number(query.get("at")) : null;
    this.text = element("textarea", { id: "try-text", rows: 4, maxlength: MOST_TEXT, spellcheck: false });
    this.text.value = query.get("text") ?? "";
    this.neuron = element("input", { id: "try-neuron", placeholder: "all", autocomplete: "off", spellcheck: false, size: 12 });
    this.neuron.value = query.get("neuron") ?? "";
    this.explanation = query.get("explanation") ?? "";
    this.state = element("p", { class: "try-state quiet", role: "status" });
    this.shown = element("div", { class: "try-shown" });
    this.own = element("div");
    this.explained = new Map(); // texts by neurons, as promises
    this.text.addEventListener("input", () => this.typed());
    this.neuron.addEventListener("input", () => {
      this.showForm();
      this.typed();
    });
    signal.addEventListener("abort", () => clearTimeout(this.timer));
  }

  parts() {
    this.showForm();
    return [
      element("h1", {}, "Try a text"),
      element(
        "div",
        { class: "try-fields" },
        element("label", { for: "try-text" }, `Text, up to ${number(MOST_TEXT)} characters`),
        this.text,
        element(
          "p",
          {},
          element("label", { for: "try-neuron" }, "Neuron "),
          this.neuron,
          element("span", { class: "quiet" }, " such as 5:131; left empty, all neurons are ranked."),
        ),
      ),
      this.state,
      this.shown,
      this.own,
    ];
  }

  /** Have the subject loaded, and then run the text. */
  async prepare() {
    try {
      await subjectLoaded((line) => this.say(line), this.signal);
      this.ready = true;
      await this.run();
    } catch (error) {
      if (!this.signal.aborted) this.fail(error);
    }
  }

  typed() {
    clearTimeout(this.timer);
    this.keepAddress();
    this.timer = setTimeout(() => this.run(), TYPING);
  }

  keepAddress() {
    const kept = Object.entries({ neuron: this.neuron.value.trim(), text: this.text.value, at: this.at ?? "", explanation: this.explanation });
    setAddress(tryAddress(kept.filter(([, value]) => value !== "")));
  }

  async run() {
    if (!this.ready) return;
    this.asked += 1;
    const mine = this.asked;
    this.running?.abort();
    this.running = new AbortController();
    const text = this.text.value;
    if (!text.trim()) {
      this.say("Type a text.");
      this.shown.replaceChildren();
      return;
    }
    const neuron = this.neuron.value.trim() || null;
    this.say("Running…");
    try {
      const signal = AbortSignal.any([this.signal, this.running.signal]);
      const found = await send("try", { text, neuron, page: this.page }, signal);
      if (mine !== this.asked || this.signal.aborted) return; // a newer text was typed meanwhile
      if (found.state) await this.prepare(); // the viewer was started again, without the subject
      else if (neuron) this.showOne(found);
      else this.showAll(found);
    } catch (error) {
      if (mine === this.asked && !this.signal.aborted) this.fail(error);
    }
  }

  showOne(found) {
    const counted = found.values.filter((value) => value !== null);
    const peak = Math.max(...counted);
    this.say(`Largest value ${number(peak)}; in the sweep from ${number(found.lowest)} to ${number(found.highest)}.`);
    this.shown.replaceChildren(
      tokenView({ ...found, skip: found.counted, label: `Neuron ${found.neuron} on the text` }),
    );
  }

  showAll(found) {
    this.say(`${number(found.tokens.length)} tokens. Choose one to see which neurons stand highest there.`);
    // An endless scale: quantiles are said, not coloured, as the highest is near 1 nearly everywhere.
    const highest = found.by_token.map((own) => own[0]?.quantile ?? null);
    const tokens = tokenView({ tokens: found.tokens, values: highest, skip: found.counted, lowest: -Infinity, highest: Infinity, label: "The text; each token with the highest quantile of a neuron there" });
    const here = element("div", { class: "scrolled" });
    const choose = (place) => {
      this.at = place;
      tokens.querySelector("[aria-current]")?.removeAttribute("aria-current");
      tokens.children[place].setAttribute("aria-current", "true");
      const own = found.by_token[place];
      const title = element("span", {}, "At ", quotedToken(found.tokens[place]));
      here.replaceChildren(own.length ? this.ranking(title, own, found) : element("p", {}, title, " nothing is counted."));
    };
    tokens.addEventListener("focusin", (event) => {
      choose(Number(event.target.dataset.place));
      this.keepAddress();
    });
    const best = found.over_text[0]?.place ?? 0;
    choose(Math.min(this.at ?? best, found.tokens.length - 1));
    const over = element("div", { class: "scrolled" }, this.ranking("Over the text", found.over_text, found, true));
    this.shown.replaceChildren(tokens, element("div", { class: "try-tables" }, here, over));
  }

  ranking(title, active, { tokens }, placed = false) {
    const heads = ["neuron", "quantile", "value", "of its largest", ...(placed ? ["at"] : []), "on this text", "explanation"];
    this.explain(active.map(({ neuron }) => neuron));
    return element(
      "table",
      {},
      element("caption", {}, title),
      element("thead", {}, element("tr", {}, heads.map((head) => element("th", { scope: "col" }, head)))),
      element(
        "tbody",
        {},
        active.map((each) =>
          element(
            "tr",
            {},
            element("th", { scope: "row" }, element("a", { href: `#/neuron/${each.neuron}` }, each.neuron)),
            element("td", {}, each.quantile >= 1 ? "1" : Math.min(each.quantile, 0.9999).toFixed(4)),
            element("td", {}, number(each.activation)),
            element("td", {}, number(each.of_largest)),
            placed ? element("td", {}, quotedToken(tokens[each.place])) : null,
            element("td", {}, element("a", { href: this.following(each.neuron), "aria-label": `follow ${each.neuron}` }, "follow")),
            this.explanationCell(each.neuron),
          ),
        ),
      ),
    );
  }

  /** Ask for the best explanations of neurons that are not known yet. */
  explain(neurons) {
    const asked = neurons.filter((neuron) => !this.explained.has(neuron));
    if (!asked.length) return;
    // What can't be had is left out: the ranking stands without it.
    const found = load(`glances?of=${asked.join(",")}`, this.signal).catch(() => []);
    asked.forEach((neuron, place) => this.explained.set(neuron, found.then((all) => all[place]?.text ?? "")));
  }

  explanationCell(neuron) {
    const cell = element("td", { class: "one-line" });
    this.explained.get(neuron).then((text) => cell.append(explanation(text.slice(0, 200), { title: text })));
    return cell;
  }

  following(neuron) {
    return tryAddress([["neuron", neuron], ["text", this.text.value]]);
  }

  showForm() {
    const neuron = this.neuron.value.trim();
    this.forms?.abort(); // what is under way for another neuron
    this.forms = new AbortController();
    const signal = AbortSignal.any([this.signal, this.forms.signal]);
    const keep = (text) => {
      this.explanation = text;
      this.keepAddress();
    };
    const named = /^\d+:\d+$/.test(neuron);
    const typed = this.own.querySelector("#own-list")?.value ?? "";
    this.own.replaceChildren(
      ...(named ? [...explanationForm(neuron, this.explanation, this.simulator, keep, signal), ...listForm(neuron, signal)] : []),
    );
    const list = this.own.querySelector("#own-list");
    if (list) list.value = typed;
  }

  say(text) {
    this.state.className = "try-state quiet";
    this.state.textContent = visible(text);
  }

  fail(error) {
    this.state.className = "try-state failure";
    this.state.replaceChildren(element("span", {}, error.message));
    this.shown.replaceChildren();
    if (error.passing) this.wait();
  }
}

/** The page's address with what is set in it. */
function tryAddress(kept) {
  const query = new URLSearchParams(kept).toString();
  return query ? `#/try?${query}` : "#/try";
}
