// All neurons as a picture, and what it is coloured by: statistics, scores, baselines.

import { setAddress } from "./addresses.js";
import { colourScale, palette } from "./colours.js";
import { announce, cut, element, explanation, number } from "./dom.js";
import { neuronPicture } from "./picture.js";
import { live, load, loadPacked } from "./source.js";

const ON_DEMAND = "Baselines"; // the group of maps that are computed once somebody chooses one

/**
 * The picture with its choice, legend and what is pointed at.
 *
 * @param {Object} found The run.
 * @param {Object[]} maps What it can be coloured by.
 * @param {string} key By which of them it is at first.
 * @param {function()} filled Called when it is coloured by another.
 * @param {AbortSignal} signal
 * @returns {{section, show, zoom, offer, follow}} `follow` takes what the server answers to "progress".
 */
export function mapSection(found, maps, key, filled, signal) {
  const told = element("p", { class: "pointed", "aria-live": "polite" }, "Point at a neuron.");
  const legend = element("div", { class: "legend" });
  const shown = { values: null, key, asked: 0 };
  const glances = new Map();
  let waiting;

  const picture = neuronPicture(
    found.sites,
    {
      pointed(place) {
        clearTimeout(waiting);
        if (place === null || !shown.values) return;
        const name = picture.name(place);
        told.dataset.name = name;
        told.replaceChildren(...described(name, shown.values[place], glances.get(name)));
        if (glances.has(name)) return;
        waiting = setTimeout(async () => {
          const glance = await load(`glance/${name}`, signal).catch(() => null);
          if (glance === null || signal.aborted) return;
          glances.set(name, glance);
          if (told.dataset.name === name) {
            told.replaceChildren(...described(name, shown.values[place], glance));
          }
        }, 120);
      },
      chosen(place) {
        location.hash = `#/neuron/${picture.name(place)}`;
      },
    },
    signal,
  );

  const groups = new Map(
    [...new Set(maps.map(({ group }) => group))].map((group) => [
      group,
      element(
        "optgroup",
        { label: group },
        maps
          .filter((each) => each.group === group)
          .map((each) => element("option", { value: each.key, selected: each.key === key }, each.label)),
      ),
    ]),
  );
  const choice = element("select", { id: "map-choice" }, [...groups.values()]);

  async function show(chosen) {
    shown.key = chosen;
    choice.value = chosen;
    legend.setAttribute("aria-busy", "true");
    await fill();
    legend.setAttribute("aria-busy", "false");
    filled();
  }

  /** Load what it is coloured by, and show that; where it was shown before, what is pointed at stays. */
  async function fill() {
    const map = maps.find((each) => each.key === shown.key);
    shown.asked += 1;
    const mine = shown.asked;
    try {
      const values = new Float32Array(await loadPacked(`map/${map.key}`, signal));
      if (mine !== shown.asked || signal.aborted) return;
      shown.values = values;
      shown.scale = colourScale(values, map.logarithmic);
      picture.show(values, shown.scale);
      picture.canvas.setAttribute(
        "aria-label",
        `All neurons by ${map.label}. Arrows move between neurons, Enter opens one, plus and minus ` +
          "zoom. The lists and charts below have the same numbers.",
      );
      legend.replaceChildren(...legendOf(map, shown.scale, values.length, filling(map)));
    } catch (error) {
      if (mine !== shown.asked || signal.aborted) return;
      legend.replaceChildren(failureLine(error.message));
    }
  }

  /** What is said of a map that is not whole yet; an empty text of one that is. */
  function filling({ group }) {
    if (!live() || group !== ON_DEMAND || shown.baselines?.state === "done") return "";
    return `Being computed: ${layersOf(shown.baselines)}.`;
  }

  /** Show what has been made since. */
  function follow({ made, baselines }) {
    followBaselines(baselines);
    const before = shown.made;
    shown.made = made;
    if (before === undefined || made === before) return;
    glances.clear();
    if (shown.key.includes(".") && !groups.get(ON_DEMAND)?.contains(choice.selectedOptions[0])) fill();
  }

  function followBaselines(baselines) {
    const before = shown.baselines ?? {};
    shown.baselines = baselines;
    const group = groups.get(ON_DEMAND);
    if (!group) return;
    group.label = baselinesLabel(baselines);
    const same = baselines.state === before.state && baselines.done === before.done;
    if (same || !group.contains(choice.selectedOptions[0])) return;
    if (baselines.error) legend.replaceChildren(failureLine(baselines.error));
    else fill();
  }

  choice.addEventListener("change", () => {
    // The address changes without the page being made anew.
    setAddress(`#/?map=${encodeURIComponent(choice.value)}`);
    show(choice.value).then(() => announce(`Coloured by ${choice.selectedOptions[0].label}`));
  });
  const button = (text, label, factor) =>
    element("button", { type: "button", "aria-label": label, on: { click: () => picture.zoom(factor) } }, text);
  return {
    section: element(
      "section",
      { class: "map", "aria-label": "All neurons" },
      element(
        "div",
        { class: "controls" },
        element("label", { for: "map-choice" }, "Colour by"),
        choice,
        button("+", "Zoom in", 1.5),
        button("−", "Zoom out", 1 / 1.5),
      ),
      legend,
      picture.canvas,
      told,
    ),
    show,
    zoom: picture.zoom,
    follow,
    /** Disable what no neuron has. */
    offer(keys) {
      for (const option of choice.options) {
        option.disabled = !keys.has(option.value) && option.parentElement !== groups.get(ON_DEMAND);
      }
    },
  };
}

function described(name, value, glance) {
  return [
    element("a", { href: `#/neuron/${name}` }, name),
    ` ${number(value)} `,
    glance?.text
      ? element("span", { class: "explained" }, explanation(cut(glance.text)), ` (${glance.method}, ${number(glance.score, 2)})`)
      : element("span", { class: "quiet" }, glance ? "not explained" : ""),
  ];
}

function failureLine(text) {
  return element("p", { class: "failure", role: "alert" }, text);
}

function baselinesLabel({ state, ...progress }) {
  if (state === "absent") return `${ON_DEMAND}, computed once one is chosen`;
  if (state === "working") return `${ON_DEMAND}, being computed: ${layersOf(progress)}`;
  return ON_DEMAND;
}

function layersOf(progress) {
  return progress ? `${progress.done} of ${progress.of} layers` : "no layer yet";
}

function legendOf(map, scale, neurons, filling) {
  if (!scale.known) return [element("p", { class: "quiet" }, filling || "No neuron has this score.")];
  const strip = element("canvas", { width: 256, height: 1, class: "strip", role: "img", "aria-label": "Colour scale" });
  const context = strip.getContext("2d");
  palette().forEach(([red, green, blue], step) => {
    context.fillStyle = `rgb(${red} ${green} ${blue})`;
    context.fillRect(step, 0, 1, 1);
  });
  const missing = neurons - scale.known;
  return [
    element("span", { class: "scale" }, strip, [0, 0.5, 1].map((share) => element("span", {}, number(scale.at(share), 2)))),
    element(
      "span",
      { class: "quiet" },
      `High: ${map.high}. `,
      missing ? `Without a value: ${missing.toLocaleString("en")} neurons. ` : "",
      filling,
    ),
  ];
}

