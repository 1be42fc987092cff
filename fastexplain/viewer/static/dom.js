// Elements of the page. Text is only ever put into text nodes and attributes, never read as HTML:
// tokens, explanations and names may hold anything.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element with attributes and children.
 *
 * @param {string} tag
 * @param {Object} attributes Names and values; true sets an empty one, false, null and undefined
 *   none. `style` is an object of CSS properties, `on` one of event handlers.
 * @param {...(Node|string|number|null|Array)} children Texts become text nodes; null is left out.
 */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same of an SVG element. */
export function drawn(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "style") {
      for (const [property, setting] of Object.entries(value)) made.style.setProperty(property, setting);
    } else if (name === "on") {
      for (const [event, handler] of Object.entries(value)) made.addEventListener(event, handler);
    } else if (value !== false && value !== null && value !== undefined) {
      made.setAttribute(name, value === true ? "" : visible(String(value)));
    }
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined).map(node));
  return made;
}

function node(child) {
  return child instanceof Node ? child : document.createTextNode(visible(String(child)));
}

// Controls, marks that change the direction of writing, and halves of characters.
const STEERING = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/gu;

/** A text in which what would change how its neighbours are shown is written as an escape. */
export function visible(text) {
  return text.replace(STEERING, (found) => `\\u${found.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

// Letters of writing from right to left, and what stands between them; quoted tokens.
const LEFTWARD = "[\\u0590-\\u08ff\\ufb1d-\\ufdff\\ufe70-\\ufefc\\u{10800}-\\u{10fff}\\u{1e800}-\\u{1efff}]";
const LEFTWARD_RUNS = new RegExp(`(${LEFTWARD}(?:[^A-Za-z0-9'";,]*${LEFTWARD})?)`, "u");
const QUOTED = /'[^']*'|"[^"]*"/g;
const LIST_ENTRY = /['"]\S* -?[\d.]+(?:e[-+]?\d+)?[,;]/; // a token, the rest of its word, a number

/**
 * An explanation. Lists and rules run from left to right whatever their tokens are: each run of
 * letters that does not stands for itself, or numbers would change places between tokens.
 */
export function explanation(text, attributes = {}) {
  const own = text.replace(QUOTED, "").match(/\p{L}/u)?.[0] ?? "";
  if (new RegExp(LEFTWARD, "u").test(own) && !LIST_ENTRY.test(text)) return element("bdi", { ...attributes, dir: "rtl" }, text);
  const parts = text.split(LEFTWARD_RUNS).map((part, place) => (place % 2 ? element("bdi", {}, part) : part));
  return element("bdi", { ...attributes, dir: "ltr" }, parts);
}

/** The beginning of a long text. */
export function cut(text, longest = 160) {
  return text.length > longest ? `${text.slice(0, longest)}…` : text;
}

/** Say something to those who don't see the page, and show nothing. */
export function announce(text) {
  document.getElementById("status").textContent = visible(text);
}

/** A number with three significant digits; a dash where there is none. */
export function number(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(digits)));
}
