// The picture of all neurons on a canvas: a block for each site, a cell for each neuron.
//
// A row of thousands of neurons would be a hair's breadth, so the neurons of a site fill a block of
// their own, row by row; blocks stand in rows, in ascending order. One image has a pixel for each
// neuron, and the canvas shows a part of it, larger or smaller.

import { keepState, keptState } from "./addresses.js";
import { element } from "./dom.js";
import { blankColour, palette } from "./colours.js";

const GAP = 3; // pixels of the image between blocks
const LABEL = 10; // and above each, for its name
const LARGEST = 40; // pixels of a cell at the most
const RESTING = 150; // ms without a change before what is shown is kept for going back

/** Where each neuron's cell is: blocks, and the size of it all, in cells. */
export function blocksOf(sites, ratio) {
  const most = Math.max(...sites.map(({ units }) => units));
  // The widths that blocks may have are tried; the one that fills a picture of this shape best wins.
  let best;
  for (let columns = 1; columns <= sites.length; columns += 1) {
    const rows = Math.ceil(sites.length / columns);
    // width = columns * w, height = rows * most / w, and width / height = ratio.
    const cells = Math.max(1, Math.round(Math.sqrt((ratio * rows * most) / columns)));
    const tall = Math.ceil(most / cells);
    const width = columns * (cells + GAP) + GAP;
    const height = rows * (tall + LABEL) + GAP;
    const waste = Math.max(width, height * ratio) + 20 * Math.abs(Math.log(cells / tall));
    if (!best || waste < best.waste) best = { columns, cells, tall, width, height, waste };
  }
  let start = 0;
  const blocks = sites.map((site, number) => {
    const x = GAP + (number % best.columns) * (best.cells + GAP);
    const y = LABEL + Math.floor(number / best.columns) * (best.tall + LABEL);
    const block = { site: site.name, units: site.units, start, x, y };
    start += site.units;
    return block;
  });
  return { ...best, blocks, total: start };
}

/** The place of the cell at a point of the image, or null. */
export function placeAt(laid, x, y) {
  const [column, row] = [Math.floor(x), Math.floor(y)];
  for (const block of laid.blocks) {
    const [across, down] = [column - block.x, row - block.y];
    if (across < 0 || down < 0 || across >= laid.cells || down >= laid.tall) continue;
    const unit = down * laid.cells + across;
    return unit < block.units ? block.start + unit : null;
  }
  return null;
}

/** Site and unit of a place, and the cell's corner in the image. */
export function cellOf(laid, place) {
  const block = laid.blocks.find(({ start, units }) => place < start + units);
  const unit = place - block.start;
  return {
    name: `${block.site}:${unit}`,
    x: block.x + (unit % laid.cells),
    y: block.y + Math.floor(unit / laid.cells),
  };
}

/**
 * A canvas that shows the neurons, with keys, wheel and pointer.
 *
 * @param {Array} sites Of the run.
 * @param {Object} handlers `pointed(place)`: the pointer or cursor is at a neuron, or null;
 *   `chosen(place)`: it was clicked, or Enter pressed.
 * @returns {{canvas, show, zoom}} `show(values, scale)` colours all neurons anew.
 */
export function neuronPicture(sites, { pointed, chosen }, signal) {
  const canvas = element("canvas", { class: "picture", tabindex: 0, role: "application" });
  const image = document.createElement("canvas");
  const view = keptState("picture") ?? { zoom: 1, x: 0, y: 0 };
  const shown = {};
  let laid;
  let cursor = 0;
  let marked = false;
  let queued = false;

  function fit() {
    const { clientWidth, clientHeight } = canvas;
    if (!clientWidth) return;
    const dots = devicePixelRatio || 1;
    [canvas.width, canvas.height] = [clientWidth * dots, clientHeight * dots];
    laid = blocksOf(sites, clientWidth / clientHeight);
    [image.width, image.height] = [laid.width, laid.height];
    paint();
    clamp();
    draw();
  }

  function paint() {
    if (!shown.values || !laid) return;
    const pixels = new ImageData(laid.width, laid.height);
    const words = new Uint32Array(pixels.data.buffer);
    const word = ([r, g, b]) => (255 << 24) | (b << 16) | (g << 8) | r;
    const colours = palette().map(word);
    const blank = word(blankColour());
    for (const block of laid.blocks) {
      for (let unit = 0; unit < block.units; unit += 1) {
        const value = shown.values[block.start + unit];
        const at = (block.y + Math.floor(unit / laid.cells)) * laid.width + block.x + (unit % laid.cells);
        words[at] = Number.isFinite(value) ? colours[Math.round(255 * shown.scale.share(value))] : blank;
      }
    }
    image.getContext("2d").putImageData(pixels, 0, 0);
  }

  /** Pixels of the canvas for a cell. */
  function size() {
    return view.zoom * Math.min(canvas.width / laid.width, canvas.height / laid.height);
  }

  function clamp() {
    const cell = size();
    for (const [axis, room, full] of [
      ["x", canvas.width / cell, laid.width],
      ["y", canvas.height / cell, laid.height],
    ]) {
      view[axis] = room >= full ? (full - room) / 2 : Math.min(Math.max(view[axis], 0), full - room);
    }
  }

  let resting;
  signal.addEventListener("abort", () => clearTimeout(resting));

  function draw() {
    canvas.toggleAttribute("data-enlarged", view.zoom > 1); // then a finger moves it, not the page
    clearTimeout(resting);
    resting = setTimeout(() => keepState("picture", { ...view }), RESTING);
    if (queued) return;
    queued = true;
    requestAnimationFrame(() => {
      queued = false;
      if (!laid) return;
      const context = canvas.getContext("2d");
      const cell = size();
      context.clearRect(0, 0, canvas.width, canvas.height);
      context.imageSmoothingEnabled = cell < 1;
      context.drawImage(
        image, -view.x * cell, -view.y * cell, laid.width * cell, laid.height * cell,
      );
      const style = getComputedStyle(canvas);
      const letters = Math.min(11 * (devicePixelRatio || 1), Math.max(LABEL * cell - 2, 0));
      context.font = `${letters}px system-ui, sans-serif`;
      context.fillStyle = style.color;
      for (const block of letters > 5 ? laid.blocks : []) {
        context.fillText(block.site, (block.x - view.x) * cell, (block.y - view.y) * cell - 2);
      }
      if (!marked) return;
      const { x, y } = cellOf(laid, cursor);
      const side = Math.max(cell, 4);
      context.lineWidth = 2 * (devicePixelRatio || 1);
      context.strokeStyle = style.getPropertyValue("caret-color");
      context.strokeRect(
        (x + 0.5 - view.x) * cell - side / 2 - 2, (y + 0.5 - view.y) * cell - side / 2 - 2,
        side + 4, side + 4,
      );
    });
  }

  function point(event) {
    const box = canvas.getBoundingClientRect();
    const dots = canvas.width / box.width;
    return [(event.clientX - box.left) * dots, (event.clientY - box.top) * dots];
  }

  /** Show it so many times as large; what is at this point of the canvas stays there. */
  function zoom(factor, [x, y] = [canvas.width / 2, canvas.height / 2]) {
    const before = size();
    const most = Math.max(1, LARGEST / (before / view.zoom));
    view.zoom = Math.min(Math.max(view.zoom * factor, 1), most);
    const after = size();
    view.x += x / before - x / after;
    view.y += y / before - y / after;
    clamp();
    draw();
  }

  function at(event) {
    const [x, y] = point(event);
    return placeAt(laid, view.x + x / size(), view.y + y / size());
  }

  function moveTo(place) {
    cursor = Math.min(Math.max(place, 0), laid.total - 1);
    marked = true;
    const { x, y } = cellOf(laid, cursor);
    const cell = size();
    const [across, down] = [canvas.width / cell, canvas.height / cell];
    if (x < view.x || x + 1 > view.x + across) view.x = x - across / 2;
    if (y < view.y || y + 1 > view.y + down) view.y = y - down / 2;
    clamp();
    draw();
    pointed(cursor);
  }

  const KEYS_OF_CANVAS = {
    ArrowLeft: () => moveTo(cursor - 1),
    ArrowRight: () => moveTo(cursor + 1),
    ArrowUp: () => moveTo(cursor - laid.cells),
    ArrowDown: () => moveTo(cursor + laid.cells),
    PageUp: () => moveTo(blockStep(-1)),
    PageDown: () => moveTo(blockStep(1)),
    Home: () => moveTo(0),
    End: () => moveTo(laid.total - 1),
    "+": () => zoomAtCursor(1.5),
    "=": () => zoomAtCursor(1.5),
    "-": () => zoomAtCursor(1 / 1.5),
    0: () => zoom(1e-9),
    Enter: () => chosen(cursor),
  };

  function zoomAtCursor(factor) {
    const { x, y } = cellOf(laid, cursor);
    zoom(factor, marked ? [(x - view.x) * size(), (y - view.y) * size()] : undefined);
  }

  /** The first neuron of the next or the former block. */
  function blockStep(step) {
    const number = laid.blocks.findIndex(({ start, units }) => cursor < start + units);
    return laid.blocks[Math.min(Math.max(number + step, 0), laid.blocks.length - 1)].start;
  }

  canvas.addEventListener("keydown", (event) => {
    const found = KEYS_OF_CANVAS[event.key];
    if (!found || !laid || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    found();
  });
  canvas.addEventListener("wheel", (event) => {
    // At its smallest the page scrolls on.
    if (!laid || (event.deltaY > 0 && view.zoom === 1)) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 300), point(event));
  }, { passive: false });
  let held = null;
  let pinch = null;
  const fingers = new Map(); // where each pointer that is down is, by its id

  /** Where two fingers are: their middle, and how far apart. */
  function spread() {
    const [[x, y], [across, down]] = fingers.values();
    return { middle: [(x + across) / 2, (y + down) / 2], apart: Math.max(Math.hypot(x - across, y - down), 1) };
  }

  function moveBy([x, y], [fromX, fromY]) {
    view.x -= (x - fromX) / size();
    view.y -= (y - fromY) / size();
    clamp();
    draw();
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || fingers.size === 2) return; // other buttons open menus, or scroll
    fingers.set(event.pointerId, point(event));
    pinch = laid && fingers.size === 2 ? spread() : null;
    held = { from: [event.clientX, event.clientY], last: point(event), moved: Boolean(pinch) };
    if (pinch || view.zoom > 1) canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!laid) return;
    if (!held) {
      pointed(at(event));
      return;
    }
    if (!fingers.has(event.pointerId)) return;
    fingers.set(event.pointerId, point(event));
    if (pinch) {
      const now = spread();
      moveBy(now.middle, pinch.middle);
      zoom(now.apart / pinch.apart, now.middle);
      pinch = now;
      return;
    }
    held.moved ||= Math.hypot(event.clientX - held.from[0], event.clientY - held.from[1]) > 4;
    if (!held.moved) return;
    moveBy(point(event), held.last);
    held.last = point(event);
  });
  canvas.addEventListener("pointerup", (event) => {
    const place = held && !held.moved && laid ? at(event) : null;
    lift(event);
    if (place !== null) chosen(place);
  });
  canvas.addEventListener("pointercancel", lift);

  /** A finger that is left goes on moving the picture. */
  function lift(event) {
    fingers.delete(event.pointerId);
    pinch = null;
    const [left] = fingers.values();
    held = left ? { from: [0, 0], last: left, moved: true } : null;
  }

  canvas.addEventListener("blur", () => {
    marked = false;
    draw();
  });

  const watching = new ResizeObserver(fit);
  watching.observe(canvas);
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  scheme.addEventListener("change", () => {
    paint();
    draw();
  }, { signal });
  signal.addEventListener("abort", () => watching.disconnect());

  return {
    canvas,
    zoom: (factor) => laid && zoom(factor),
    name: (place) => cellOf(laid, place).name,
    show(values, scale) {
      Object.assign(shown, { values, scale });
      paint();
      draw();
    },
  };
}
