// The page that the address names, and what all pages have in common: keys, search, help.
//
// An address is `#/PAGE/PART...?name=value`, so a link can be kept, and works in an exported site.

import { keepScrolled, scrollBack, scrolledBefore } from "./addresses.js";
import { announce, element, visible } from "./dom.js";
import { neuronPage } from "./neuron.js";
import { countOf, homeAddress, live, neuronAt, neuronRanges, searchable } from "./source.js";

// Each page fills `content` and may return `{title, keys}`: keys by name, `{key: [what, does]}`.
const PAGES = { neuron: neuronPage, random: randomPage };

const NEED_VIEWER = ["compare", "rate", "try"];

const HELP = { "?": ["this help", () => showHelp()] };
const ON_MANY = {
  "/": ["search", () => document.getElementById("search").focus()],
  h: ["the overview", () => go("#/")],
  R: ["a random neuron", () => go("#/random")],
};
// Keys of pages that not every viewer has.
const OF_PAGES = {
  try: ["T", "try a text", () => go("#/try")],
  compare: ["C", "compare explainers", () => go("#/compare")],
  rate: ["J", "judge explanations", () => go("#/rate")],
};

/** The keys that do something on any page of this viewer; one of one neuron has none but help. */
function commonKeys() {
  const pages = Object.entries(OF_PAGES).filter(([page]) => Object.hasOwn(PAGES, page));
  return { ...(searchable() ? ON_MANY : {}), ...Object.fromEntries(pages.map(([, [key, ...rest]]) => [key, rest])), ...HELP };
}

let leave = new AbortController();
let keys = {};

/** Open a page, such as "#/neuron/5:131". */
export function go(address) {
  if (location.hash === address) show();
  else location.hash = address;
}

/** What the address says: page, further parts, and what is set behind `?`. */
export function route(address = location.hash) {
  const [path, query = ""] = (bare(address) || bare(homeAddress())).split("?");
  const [page, ...parts] = path.split("/").map(decoded);
  return { page, parts, query: new URLSearchParams(query) };
}

/** A part of an address; one that was cut within an escape stays as it is. */
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function bare(address) {
  return address.replace(/^#\/?/, "");
}

/** A link to it is one to another neuron each time, so that its own place in the history goes. */
async function randomPage() {
  const ranges = await neuronRanges();
  location.replace(`#/neuron/${neuronAt(ranges, Math.floor(Math.random() * countOf(ranges)))}`);
}

async function show() {
  leave.abort();
  leave = new AbortController();
  const { signal } = leave;
  const content = document.getElementById("content");
  const scrolled = scrolledBefore();
  content.setAttribute("aria-busy", "true");
  try {
    const { page, parts, query } = route();
    markLink(page);
    if (!Object.hasOwn(PAGES, page)) throw new Error(lacking(page));
    const shown = (await PAGES[page](content, { parts, query, signal })) ?? {};
    if (signal.aborted) return;
    scrollBack(content, scrolled);
    keys = shown.keys ?? {};
    document.title = visible(shown.title ? `${shown.title} · fastexplain` : "fastexplain");
    announce(document.title);
  } catch (error) {
    if (signal.aborted) return;
    keys = {};
    content.replaceChildren(
      element("p", { class: "failure", role: "alert" }, error.message),
      error.passing ? element("button", { type: "button", on: { click: show } }, "Try again") : "",
    );
  } finally {
    if (!signal.aborted) content.setAttribute("aria-busy", "false");
  }
}

/** Why there is no such page; an address that was shared may be of the viewer, where this is an exported page. */
function lacking(page) {
  if (!live() && NEED_VIEWER.includes(page)) return `The page '${page}' needs the viewer itself, not an exported copy: fastexplain view RUN`;
  return `There is no page '${page}'.`;
}

/** Say which of the main pages is open. */
function markLink(page) {
  for (const link of document.querySelectorAll("nav[aria-label=Pages] a")) {
    if (route(link.getAttribute("href")).page === page) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function showHelp() {
  const help = document.getElementById("help");
  const rows = Object.entries({ ...commonKeys(), ...keys }).map(([key, [what]]) =>
    element("tr", {}, element("td", {}, element("kbd", {}, key)), element("td", {}, what)),
  );
  help.replaceChildren(
    element("h2", { id: "help-title" }, "Keys"),
    element("table", {}, element("tbody", {}, rows)),
    element("form", { method: "dialog" }, element("button", { autofocus: true }, "Close")),
  );
  help.showModal();
}

function pressed(event) {
  const typing = event.target.closest("input:not([type=radio]), textarea, select, dialog[open]");
  if (event.ctrlKey || event.metaKey || event.altKey || typing) return;
  // What has the focus takes Enter itself.
  if (event.key === "Enter" && event.target.closest("a, button, summary")) return;
  const found = keys[event.key] ?? commonKeys()[event.key];
  if (!found) return;
  event.preventDefault();
  found[1]();
}

/**
 * Begin to show pages.
 *
 * @param {Object} others Pages beside that of a neuron, by their names; "" is where the viewer opens.
 * @param {function(Element, function(string))=} search Makes a field one to search with, if there is any to be.
 */
export function start(others, search) {
  Object.assign(PAGES, others);
  addEventListener("hashchange", show);
  addEventListener("keydown", pressed);
  document.getElementById("help-button").addEventListener("click", showHelp);
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address is the page's
    document.getElementById("content").focus();
  });
  search?.(document.getElementById("search"), go);
  for (const link of document.querySelectorAll("nav a")) {
    if (!Object.hasOwn(PAGES, route(link.getAttribute("href")).page)) link.remove();
  }
  keepScrolled(document.getElementById("content"));
  // An exported page of one neuron has nothing to search, and no other one.
  document.querySelector("nav").hidden = !searchable();
  document.querySelector("[role=search]").hidden = !searchable();
  show();
}
