// Charts as SVG, drawn with `drawn`: distributions by site, scatter, bars. Each has a title that
// says what it shows, and its numbers as titles of its parts.

import { drawn, element, number } from "./dom.js";

const CHART = { width: 360, height: 150, left: 44, right: 6, top: 8, bottom: 28 };

/** Places of values on a linear scale between two pixels. */
function scaled(low, high, from, to) {
  const span = high - low || 1;
  return (value) => from + ((value - low) / span) * (to - from);
}

/** About so many round numbers between two values. */
function ticks(low, high, count = 5) {
  const rough = (high - low || 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step / 1e6; at += step) {
    found.push(Number(at.toPrecision(6)));
  }
  return found;
}

function axisNumber(value) {
  return value && Math.abs(value) < 0.001 ? value.toExponential(0) : number(value);
}

function frame(title, x, y, xTicks, yTicks, xLabel, ...marks) {
  const { width, height, left, right, top, bottom } = CHART;
  return drawn(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img", "aria-label": title },
    yTicks.map((value) => [
      drawn("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
      drawn("text", { x: left - 4, y: y(value) + 4, "text-anchor": "end" }, axisNumber(value)),
    ]),
    xTicks.map(({ at, text }) =>
      drawn("text", { x: x(at), y: height - bottom + 14, "text-anchor": "middle" }, text),
    ),
    xLabel &&
      drawn("text", { x: (left + width - right) / 2, y: height - 2, "text-anchor": "middle" }, xLabel),
    drawn("line", { class: "axis", x1: left, x2: left, y1: top, y2: height - bottom }),
    marks,
  );
}

/**
 * Distributions side by side: a line at the median, a band from the 25th to the 75th percentile and
 * a paler one from the 5th to the 95th.
 *
 * @param {string} title
 * @param {Array} sites Each `{site, neurons, values}`, values at 5, 25, 50, 75 and 95 %, or null.
 */
export function distributionChart(title, sites) {
  const { width, height, left, right, top, bottom } = CHART;
  const known = sites.flatMap(({ values }) => values ?? []);
  const y = scaled(Math.min(...known), Math.max(...known), height - bottom, top);
  const x = scaled(-0.5, sites.length - 0.5, left, width - right);
  const half = (x(1) - x(0)) * 0.45;
  const every = Math.ceil(sites.length / 8);
  const columns = sites.map(({ site, neurons, values }, at) => {
    if (!values) return null;
    const [least, low, middle, high, most] = values;
    const band = (name, from, to) =>
      drawn("rect", {
        class: name, x: x(at) - half, width: 2 * half, y: y(to), height: Math.max(y(from) - y(to), 0.5),
      });
    return drawn(
      "g",
      {},
      drawn(
        "title",
        {},
        `${site}: median ${number(middle)}, half between ${number(low)} and ${number(high)}, ` +
          `9 of 10 between ${number(least)} and ${number(most)}; ${number(neurons)} neurons`,
      ),
      band("wide", least, most),
      band("band", low, high),
      drawn("line", { class: "median", x1: x(at) - half, x2: x(at) + half, y1: y(middle), y2: y(middle) }),
    );
  });
  const named = sites.map(({ site }, at) => ({ at, text: site })).filter(({ at }) => at % every === 0);
  return frame(title, x, y, named, ticks(Math.min(...known), Math.max(...known)), "layer", columns);
}

/** Rows with a bar each: `{label, value, text}`; the longest bar is that of `most`. */
export function barRows(title, rows, most = Math.max(...rows.map(({ value }) => value), 0)) {
  return element(
    "table",
    { class: "bars" },
    element("caption", {}, title),
    element(
      "tbody",
      {},
      rows.map(({ label, value, text }) =>
        element(
          "tr",
          {},
          element("th", { scope: "row" }, label),
          element(
            "td",
            {},
            element("span", { class: "bar", style: { width: `${most > 0 ? (100 * value) / most : 0}%` } }),
          ),
          element("td", { class: "number" }, text ?? number(value)),
        ),
      ),
    ),
  );
}
