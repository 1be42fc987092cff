// Sections that are filled anew while somebody reads: nothing that is seen moves by itself.

import { element } from "./dom.js";

/**
 * A section with a title. What is shown anew takes the place of what was there, unless that would move what is seen
 * below it: then a button offers it, until it is pressed or the section is out of sight.
 *
 * @returns {{node, show, settle}} `show` takes nodes; `settle` shows what is offered, if it moves nothing by now.
 */
export function steadySection(title) {
  const node = element("section");
  const offer = element("button", { type: "button", class: "offer", on: { click: taken } }, "Show what is new");
  let waiting = null;

  function settle() {
    if (!waiting) return;
    if (movesOthers(node, waiting)) node.append(offer);
    else replace();
  }

  function replace() {
    replaceWithin(node, waiting);
    waiting = null;
  }

  function taken() {
    replace();
    node.firstChild.focus();
  }

  function show(content) {
    waiting = [element("h2", { tabindex: -1 }, title), ...content];
    const open = [...node.querySelectorAll("details")].map((each) => each.open);
    const details = waiting.flatMap((each) => [...each.querySelectorAll("details"), ...(each.matches("details") ? [each] : [])]);
    details.forEach((each, place) => { each.open = open[place] ?? false; });
    settle();
  }

  return { node, show, settle };
}

/** Whether a section with other content in it would be of another height, where what is below it is in view. */
function movesOthers(section, content) {
  if (!section.firstChild) return false;
  const { height, bottom } = section.getBoundingClientRect();
  // Above what is in view a browser makes up for it, if it knows this.
  if (bottom >= innerHeight || (bottom <= 0 && CSS.supports("overflow-anchor: auto"))) return false;
  const trial = element("section", { class: "trial", inert: true }, content);
  section.parentNode.append(trial);
  const wanted = trial.getBoundingClientRect().height;
  trial.remove();
  return Math.abs(wanted - height) > 0.5;
}

/** Replace what is in a section; a link keeps the focus. */
function replaceWithin(section, content) {
  const focused = section.contains(document.activeElement) ? document.activeElement : null;
  section.replaceChildren(...content);
  if (!focused) return;
  const same = [...section.querySelectorAll("a, summary")].find((each) =>
    each.tagName === focused.tagName && each.getAttribute("href") === focused.getAttribute("href"));
  same?.focus({ preventScroll: true });
}
