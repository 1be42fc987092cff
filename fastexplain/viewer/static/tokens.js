// Tokens on backgrounds that show a neuron's activation, the same wherever tokens are shown.

import { element, number } from "./dom.js";

const SIGNS = { "\n": "⏎\n", "\r": "␍", "\t": "⇥\t" };
const LONGEST = 200;

/** A token as it is shown: line ends and tabs by signs, a very long one cut (notebook.py too). */
export function tokenText(token) {
  const shown = token.replace(/[\n\r\t]/g, (character) => SIGNS[character]);
  if (shown.length <= LONGEST) return shown;
  const characters = [...shown]; // no half of a pair is left
  return characters.length > LONGEST ? `${characters.slice(0, LONGEST).join("")}…` : shown;
}

/**
 * Tokens with their values, on one scale.
 *
 * @param {Object} shown
 *   tokens: texts; values: a number or null for each; skip: so many first ones are not counted.
 *   lowest, highest: the values of the deepest colours below and above 0.
 *   label: said before the tokens to those who can't see them.
 * @returns {HTMLElement} Each token has its value as title and, for keys, can have the focus.
 */
export function tokenView({ tokens, values, skip = 0, lowest, highest, label }) {
  const spans = tokens.map((token, place) => {
    const value = values[place];
    const counted = place >= skip;
    const share = counted ? depth(value, lowest, highest) : 0;
    return element(
      "span",
      {
        class: `token${counted ? "" : " uncounted"}${share < 0 ? " below" : ""}`,
        title: counted ? number(value) : `${number(value)}, not counted`,
        "data-place": place,
        style: share ? { "--share": Math.abs(share).toFixed(3) } : {},
      },
      tokenText(token),
    );
  });
  return element("span", { class: "tokens", role: "group", "aria-label": label, dir: "ltr" }, spans);
}

/** From -1 to 1: a value's share of the full colour of its sign. */
export function depth(value, lowest, highest) {
  if (value === null || value === undefined || Number.isNaN(value)) return 0;
  const full = value > 0 ? highest : lowest;
  if (!(value * full > 0)) return 0;
  return Math.min(value / full, 1) * Math.sign(value);
}
