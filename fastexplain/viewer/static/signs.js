// A gated neuron's four sign classes: what each is, and the excerpts that are strongest in it.

import { element, number } from "./dom.js";
import { excerptList } from "./exemplars.js";
import { scrolledTable } from "./explanations.js";

const HEAD = ["f(gate), up", "Of tokens", "Mean", "Of what is", "Farthest"];

/** The classes' numbers, and a list of excerpts for each that has any; `rowOf` makes one of them. */
export function signLists(data, rowOf) {
  return element(
    "div",
    {},
    scrolledTable("Sign classes", HEAD, data.signs.map(cells)),
    data.signs.map(({ signs, exemplars }) => {
      if (!exemplars.length) return null;
      const title = element("h3", { id: `signs-${signs}` }, `${signs}: ${words(signs)}`);
      return element("section", { "aria-labelledby": `signs-${signs}` }, title, excerptList(exemplars.map(rowOf)));
    }),
  );
}

function cells({ signs, share, mean, mass, extreme }) {
  const side = signs[0] === signs[1] ? "above" : "below";
  return [signs, percent(share), number(mean), mass === null ? "–" : `${percent(mass)} ${side} 0`, number(extreme)];
}

function words(signs) {
  const [gate, up] = [...signs].map((sign) => (sign === "+" ? "above 0" : "not above 0"));
  return `f(gate) is ${gate}, up is ${up}`;
}

function percent(value) {
  return `${number(100 * value)}%`;
}
