// Search: the field in the header with its list, and the page with all that was found.

import { announce, element, explanation, number } from "./dom.js";
import { load } from "./source.js";

const DELAY = 120; // ms after the last key
const MANY = 50;

/** What was found as entries `{address, name, text, note}` by group. */
function groupsOf(found) {
  const groups = [];
  if (found.neurons.length) {
    groups.push(["Neurons", found.neurons.map((name) => ({ address: `#/neuron/${name}`, name }))]);
  }
  if (found.token?.neurons.length) {
    groups.push([
      `Driven by the token ${JSON.stringify(found.token.text)}`,
      found.token.neurons.map(({ neuron, told, mean }) => ({
        address: `#/neuron/${neuron}`,
        name: neuron,
        text: `mean ${number(mean)} on it`,
        note: `correlation ${number(told, 2)}`,
      })),
    ]);
  }
  if (found.explanations.length) {
    groups.push([
      found.ranked ? "Explanations" : "Explanations, the latest of many",
      found.explanations.map(({ neuron, method, text, score }) => ({
        address: `#/neuron/${neuron}`,
        name: neuron,
        text: text.length > 200 ? `${text.slice(0, 200)}…` : text,
        note: `${method} ${number(score, 2)}`,
      })),
    ]);
  }
  return groups;
}

function entryOf({ name, text, note }) {
  return [
    element("span", { class: "name" }, name),
    text ? explanation(text, { class: "explained" }) : null,
    note ? element("span", { class: "quiet number" }, note) : null,
  ];
}

function searchPath(text, limit) {
  return `search?q=${encodeURIComponent(text.slice(0, 200))}&limit=${limit}`;
}

/** The page `#/search?q=`. */
export async function searchPage(content, { query, signal }) {
  const text = query.get("q") ?? "";
  document.getElementById("search").value = text;
  const found = await load(searchPath(text, MANY), signal);
  const groups = groupsOf(found);
  const sections = groups.map(([title, entries]) =>
    element(
      "section",
      {},
      element("h2", {}, title),
      element(
        "ul",
        { class: "found" },
        entries.map((entry) => element("li", {}, element("a", { href: entry.address }, entryOf(entry)))),
      ),
    ),
  );
  if (!sections.length) {
    const nothing = text.trim() ? `Nothing has “${text.slice(0, 200)}”.` : "Type what to search for.";
    sections.push(element("p", {}, nothing));
  }
  if (found.more) {
    sections.push(element("p", { class: "quiet" }, "There are more; another word narrows it down."));
  }
  content.replaceChildren(element("h1", {}, "Search"), ...sections);
  return { title: `Search: ${text.slice(0, 60)}` };
}

/** Make the header's field search as one types; `go` opens an address. */
export function searchField(input, go) {
  const form = input.closest("form");
  const list = element("div", { id: "search-list", role: "listbox", "aria-label": "Found", hidden: true });
  form.append(list);
  for (const [name, value] of [
    ["role", "combobox"],
    ["aria-expanded", "false"],
    ["aria-controls", "search-list"],
    ["aria-autocomplete", "list"],
  ]) {
    input.setAttribute(name, value);
  }
  let options = [];
  let active = -1;
  let waiting;
  let asked = new AbortController();

  function close() {
    clearTimeout(waiting);
    asked.abort();
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
    mark(-1);
  }

  function mark(place) {
    options[active]?.node.setAttribute("aria-selected", "false");
    active = place;
    const chosen = options[active]?.node;
    if (chosen) {
      chosen.setAttribute("aria-selected", "true");
      chosen.scrollIntoView({ block: "nearest" });
      input.setAttribute("aria-activedescendant", chosen.id);
    } else {
      input.removeAttribute("aria-activedescendant");
    }
  }

  function open(address) {
    close();
    input.blur();
    go(address);
  }

  function show(found) {
    options = [];
    const groups = groupsOf(found).map(([title, entries], group) => {
      const heading = `search-group-${group}`;
      return element(
        "div",
        { role: "group", "aria-labelledby": heading },
        element("div", { id: heading, class: "quiet", role: "presentation" }, title),
        entries.map((entry) => {
          const node = element(
            "div",
            { role: "option", id: `search-option-${options.length}`, "aria-selected": "false", class: "option" },
            entryOf(entry),
          );
          // The field keeps the focus, or the list would be gone before the click.
          node.addEventListener("mousedown", (event) => event.preventDefault());
          node.addEventListener("click", () => open(entry.address));
          options.push({ node, address: entry.address });
          return node;
        }),
      );
    });
    if (!groups.length) {
      say("Nothing found.");
      return;
    }
    unfold(groups);
    announce(`${options.length} found`);
  }

  /** A line in the place of what is found. */
  function say(text) {
    options = [];
    unfold([element("div", { class: "quiet", role: "option", "aria-disabled": "true" }, text)]);
    announce(text);
  }

  function unfold(content) {
    active = -1;
    input.removeAttribute("aria-activedescendant");
    list.replaceChildren(...content);
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
  }

  function ask() {
    clearTimeout(waiting);
    asked.abort();
    const text = input.value;
    if (!text.trim()) return close();
    const own = new AbortController();
    asked = own;
    waiting = setTimeout(async () => {
      try {
        const found = await load(searchPath(text, 8), own.signal);
        if (!own.signal.aborted && document.activeElement === input) show(found);
      } catch (error) {
        if (!own.signal.aborted) say(error.message);
      }
    }, DELAY);
    return undefined;
  }

  input.addEventListener("input", ask);
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      // The first closes the list, the second empties the field as browsers do.
      if (!list.hidden) event.preventDefault();
      close();
    } else if ((event.key === "ArrowDown" || event.key === "ArrowUp") && !list.hidden && options.length) {
      event.preventDefault();
      const step = event.key === "ArrowDown" ? 1 : -1;
      mark(active < 0 && step < 0 ? options.length - 1 : (active + step + options.length) % options.length);
    }
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = input.value.trim();
    if (options[active] && !list.hidden) open(options[active].address);
    else if (/^\d+(\.\w+)?:\d+$/.test(text)) open(`#/neuron/${text}`);
    else if (text) open(`#/search?q=${encodeURIComponent(text)}`);
  });
}
