// Tokens on backgrounds that show a neuron's activation, the same wherever tokens are shown.

import { announce, element, number, visible } from "./dom.js";

const SIGNS = { "\n": "⏎\n", "\r": "␍", "\t": "⇥\t" };
const LONGEST = 200;
// From this share of the full colour on, a value is underlined too: by dots below 0, by a line above.
const MARKED = 0.1;

/** A token as it is shown: line ends and tabs by signs, a very long one cut (notebook.py too). */
export function tokenText(token) {
  const shown = token.replace(/[\n\r\t]/g, (character) => SIGNS[character]);
  if (shown.length <= LONGEST) return shown;
  const characters = [...shown]; // no half of a pair is left
  return characters.length > LONGEST ? `${characters.slice(0, LONGEST).join("")}…` : shown;
}

/** A token within a line: quoted, since it may be a space. */
export function quotedToken(token) {
  const shown = token.replace(/[\n\r\t]/g, (character) => SIGNS[character][0]);
  return element("bdi", { class: "quoted" }, `'${shown.length > 40 ? `${shown.slice(0, 40)}…` : shown}'`);
}

/**
 * Tokens with their values, on one scale.
 *
 * One of them is a stop for the tabulator; arrows, Home and End go on from there.
 *
 * @param {Object} shown
 *   tokens: texts; values: a number or null for each; skip: so many first ones are not counted.
 *   lowest, highest: the values of the deepest colours below and above 0.
 *   label: said before the tokens to those who can't see them.
 * @returns {HTMLElement} A token shows its exact value under the pointer and where it has the focus.
 */
export function tokenView({ tokens, values, skip = 0, lowest, highest, label }) {
  const spans = tokens.map((token, place) => {
    const value = values[place];
    const counted = place >= skip;
    const share = counted ? depth(value, lowest, highest) : 0;
    return element(
      "span",
      {
        class: `token${counted ? "" : " uncounted"}${share < 0 ? " below" : ""}${share < -MARKED ? " marked" : ""}${share > MARKED ? " raised" : ""}`,
        title: counted ? number(value, 4) : `${number(value, 4)}, not counted`,
        "data-place": place,
        tabindex: place === 0 ? 0 : -1,
        style: share ? { "--share": Math.abs(share).toFixed(3) } : {},
      },
      tokenText(token),
    );
  });
  return element(
    "span",
    {
      class: "tokens",
      role: "group",
      "aria-label": label,
      dir: "ltr",
      on: { keydown: stepTokens, focusin: showValue, focusout: hideValue },
    },
    spans,
  );
}

/** From -1 to 1: a value's share of the full colour of its sign. */
export function depth(value, lowest, highest) {
  if (value === null || value === undefined || Number.isNaN(value)) return 0;
  const full = value > 0 ? highest : lowest;
  if (!(value * full > 0)) return 0;
  return Math.min(value / full, 1) * Math.sign(value);
}

function stepTokens(event) {
  const token = event.target.closest(".token");
  if (!token || event.ctrlKey || event.metaKey || event.altKey) return;
  const all = [...event.currentTarget.children];
  const places = { ArrowRight: all.indexOf(token) + 1, ArrowLeft: all.indexOf(token) - 1, Home: 0, End: all.length - 1 };
  const next = all[places[event.key]];
  if (!next) return;
  event.preventDefault();
  token.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

// The value of the token that has the focus, at the window's edge: nothing moves for it.
function showValue(event) {
  const token = event.target.closest(".token");
  if (!token) return;
  const text = `${token.textContent.trim() || "space"}  ${token.title}`;
  hideValue();
  document.body.append(element("div", { class: "readout", "aria-hidden": "true" }, text));
  announce(visible(text));
}

function hideValue() {
  document.querySelector(".readout")?.remove();
}
