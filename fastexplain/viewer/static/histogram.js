// How a neuron's largest activations of excerpts are distributed.

import { drawn, element, number } from "./dom.js";

const WIDTH = 480;
const HEIGHT = 140;
const LOWER = 24;

/** The histogram as a picture, and its numbers as a table. */
export function histogramFigure({ bins, marks }) {
  if (!bins.length) return element("p", { class: "quiet" }, "No excerpt was counted.");
  const width = WIDTH / bins.length;
  const tallest = Math.log1p(Math.max(...bins.map((bin) => bin.count)));
  const bars = bins.map((bin, place) => {
    const height = (Math.log1p(bin.count) / tallest) * (HEIGHT - 20);
    return drawn(
      "rect",
      { class: "bar", x: place * width, y: HEIGHT - height, width: Math.max(width - 0.5, 0.5), height },
      drawn("title", {}, `${binRange(bin)}: ${bin.count.toLocaleString("en")} excerpts`),
    );
  });
  const median = marks.find((mark) => mark.share === 0.5);
  const lines = marks.map((mark) => {
    const x = (mark.bin + 0.5) * width;
    return drawn("line", { class: "mark", x1: x, x2: x, y1: 16, y2: HEIGHT });
  });
  const said = `Excerpts by their largest activation, ${bins.length} bins from ${binRange(bins[0])} to ${binRange(bins.at(-1))}; half of them are in the bins up to ${binRange(bins[median.bin])}.`;
  return element(
    "figure",
    {},
    drawn(
      "svg",
      { class: "histogram", viewBox: `0 0 ${WIDTH} ${HEIGHT + LOWER}`, role: "img", "aria-label": said },
      bars,
      lines,
      drawn("text", { x: 0, y: HEIGHT + 18 }, number(bins[0].low ?? bins[0].high)),
      drawn("text", { x: WIDTH, y: HEIGHT + 18, "text-anchor": "end" }, number(bins.at(-1).high ?? bins.at(-1).low)),
    ),
    element("figcaption", { class: "quiet" }, "Excerpts by their largest activation; both scales are logarithmic. Lines: ", marks.map((mark) => `${number(100 * mark.share)}% ${binRange(bins[mark.bin])}`).join("; "), "."),
    element(
      "details",
      {},
      element("summary", {}, "Numbers"),
      element(
        "div",
        { class: "scrolled", tabindex: 0, role: "region", "aria-label": "The histogram's numbers" },
        element(
          "table",
          {},
          element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Largest activation"), element("th", { scope: "col" }, "Excerpts"))),
          element("tbody", {}, bins.map((bin) => element("tr", {}, element("td", {}, binRange(bin)), element("td", {}, bin.count)))),
        ),
      ),
    ),
  );
}

function binRange({ low, high }) {
  if (low === null) return `below ${number(high)}`;
  return high === null ? `${number(low)} and more` : `${number(low)} to ${number(high)}`;
}
