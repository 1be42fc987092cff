// A scatter of two scores of all neurons on a canvas: tens of thousands of points are too many for
// elements.

import { element, number, visible } from "./dom.js";

const EDGE = 46; // pixels for the axes' numbers and names
const REACH = 8; // pixels from the pointer to a point
const PAGES_OF_POINTS = 20; // so many times a page key is pressed from the lowest score to the highest

/**
 * A canvas of points.
 *
 * @param {Object} handlers `pointed(place)`: the pointer or cursor is at a point, or null;
 *   `chosen(place)`: it was clicked, or Enter pressed.
 * @returns {{canvas, show}} `show(a, b, first, second)` draws anew: NaN is left out.
 */
export function pointCloud({ pointed, chosen }, signal) {
  const canvas = element("canvas", { class: "points", tabindex: 0, role: "application" });
  const shown = { a: [], b: [], low: 0, cells: new Map(), orders: new Map() };
  let cursor = null;
  let marked = false;

  const toPixel = (value) => EDGE + ((value - shown.low) / (1 - shown.low)) * (side(canvas) - EDGE - 8);
  const across = (value) => toPixel(value);
  const down = (value) => side(canvas) - toPixel(value);

  function draw() {
    const size = side(canvas);
    const dots = devicePixelRatio || 1;
    canvas.width = canvas.height = Math.round(size * dots);
    const pen = canvas.getContext("2d");
    pen.scale(dots, dots);
    const style = getComputedStyle(canvas);
    axes(pen, style);
    pen.fillStyle = style.getPropertyValue("accent-color");
    const many = shown.a.length > 5000;
    const dot = many ? 2 : 5;
    pen.globalAlpha = many ? 0.35 : 0.8;
    shown.cells.clear();
    for (let place = 0; place < shown.a.length; place += 1) {
      if (Number.isNaN(shown.a[place]) || Number.isNaN(shown.b[place])) continue;
      const [x, y] = [across(shown.a[place]), down(shown.b[place])];
      pen.fillRect(x - dot / 2, y - dot / 2, dot, dot);
      const cell = cellAt(x, y);
      if (!shown.cells.has(cell)) shown.cells.set(cell, []);
      shown.cells.get(cell).push(place);
    }
    pen.globalAlpha = 1;
    if (!marked || cursor === null) return;
    pen.lineWidth = 2;
    pen.strokeStyle = style.getPropertyValue("caret-color");
    pen.strokeRect(across(shown.a[cursor]) - 6, down(shown.b[cursor]) - 6, 12, 12);
  }

  function axes(pen, style) {
    const size = side(canvas);
    pen.font = "12px system-ui, sans-serif";
    pen.fillStyle = pen.strokeStyle = style.color;
    for (let step = Math.ceil(shown.low * 5); step <= 5; step += 1) {
      const value = step / 5;
      pen.globalAlpha = step ? 0.2 : 0.6;
      pen.beginPath();
      pen.moveTo(across(value), down(shown.low));
      pen.lineTo(across(value), down(1));
      pen.moveTo(across(shown.low), down(value));
      pen.lineTo(across(1), down(value));
      pen.stroke();
      pen.globalAlpha = 1;
      pen.textAlign = "center";
      pen.fillText(number(value), across(value), size - EDGE + 16);
      pen.textAlign = "right";
      pen.fillText(number(value), EDGE - 4, down(value) + 4);
    }
    pen.beginPath();
    pen.moveTo(across(shown.low), down(shown.low));
    pen.lineTo(across(1), down(1));
    pen.globalAlpha = 0.4;
    pen.stroke();
    pen.globalAlpha = 1;
    pen.textAlign = "center";
    pen.fillText(shown.first ?? "", size / 2, size - 10, size - EDGE);
    pen.save();
    pen.rotate(-Math.PI / 2);
    pen.fillText(shown.second ?? "", -size / 2, 12, size - EDGE);
    pen.restore();
  }

  /** The point next to the pointer, or null. */
  function nearest(event) {
    let best = null;
    let least = REACH ** 2;
    for (const dx of [-REACH, 0, REACH]) {
      for (const dy of [-REACH, 0, REACH]) {
        for (const place of shown.cells.get(cellAt(event.offsetX + dx, event.offsetY + dy)) ?? []) {
          const away = (across(shown.a[place]) - event.offsetX) ** 2 + (down(shown.b[place]) - event.offsetY) ** 2;
          if (away < least) [best, least] = [place, away];
        }
      }
    }
    return best;
  }

  /** The places of all points in ascending order of a column, and where each place stands in it. */
  function orderBy(name) {
    if (!shown.orders.has(name)) {
      const { a, b } = shown;
      const column = shown[name];
      const places = Uint32Array.from(a.keys()).filter((place) => !Number.isNaN(a[place]) && !Number.isNaN(b[place]));
      places.sort((one, other) => column[one] - column[other] || one - other);
      const ranks = new Uint32Array(a.length);
      places.forEach((place, rank) => { ranks[place] = rank; });
      shown.orders.set(name, { places, ranks });
    }
    return shown.orders.get(name);
  }

  /** Move the cursor by so many points in the order of a column; at first it is at the lowest. */
  function moveBy(name, step) {
    const { places, ranks } = orderBy(name);
    if (!places.length) return;
    const rank = (cursor === null ? -1 : ranks[cursor]) + step;
    [cursor, marked] = [places[Math.min(Math.max(rank, 0), places.length - 1)], true];
    draw();
    pointed(cursor);
  }

  const page = () => Math.ceil(orderBy("a").places.length / PAGES_OF_POINTS);
  const KEYS_OF_POINTS = {
    ArrowLeft: () => moveBy("a", -1),
    ArrowRight: () => moveBy("a", 1),
    ArrowDown: () => moveBy("b", -1),
    ArrowUp: () => moveBy("b", 1),
    PageDown: () => moveBy("a", -page()),
    PageUp: () => moveBy("a", page()),
    Home: () => moveBy("a", -shown.a.length),
    End: () => moveBy("a", shown.a.length),
    Enter: () => marked && chosen(cursor),
  };

  canvas.addEventListener("keydown", (event) => {
    const found = KEYS_OF_POINTS[event.key];
    if (!found || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    found();
  });
  canvas.addEventListener("blur", () => {
    marked = false;
    draw();
  });
  canvas.addEventListener("pointermove", (event) => pointed(nearest(event)));
  canvas.addEventListener("pointerleave", () => pointed(null));
  canvas.addEventListener("click", (event) => {
    const place = nearest(event);
    if (place !== null) chosen(place);
  });
  const resized = new ResizeObserver(draw);
  resized.observe(canvas);
  signal.addEventListener("abort", () => resized.disconnect());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw, { signal });

  function show(a, b, first, second) {
    let least = 0;
    for (const column of [a, b]) for (const value of column) if (value < least) least = value;
    [first, second] = [visible(first), visible(second)];
    Object.assign(shown, { a, b, first, second, low: Math.floor(least * 5) / 5, orders: new Map() });
    [cursor, marked] = [null, false];
    canvas.setAttribute(
      "aria-label",
      `Scores of all neurons: ${first} from left to right, ${second} upwards. Left and right arrows go from point to ` +
        "point across, up and down upwards, page keys go by many; Enter opens one.",
    );
    draw();
  }

  return { canvas, show };
}

function side(canvas) {
  return canvas.clientWidth || 400;
}

function cellAt(x, y) {
  return Math.floor(x / REACH) * 4096 + Math.floor(y / REACH);
}
