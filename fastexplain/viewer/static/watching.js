// What has been made since a page was opened: the viewer is asked now and then while somebody looks.

import { live, load } from "./source.js";

const OFTEN = 1000; // ms until it is asked again while baselines are being computed
const SELDOM = 5000; // and else

/**
 * Call a function with what the viewer answers to "progress", until the page is left.
 *
 * @returns {function()} Asks at once.
 */
export function watchProgress(changed, signal) {
  if (!live()) return () => {};
  let waiting;

  async function ask() {
    clearTimeout(waiting);
    if (signal.aborted || document.hidden) return; // who comes back asks at once
    let working = false;
    try {
      const progress = await load("progress", signal);
      if (signal.aborted) return;
      working = progress.baselines.state === "working";
      changed(progress);
    } catch {
      // Another time: what is shown stays true.
    }
    clearTimeout(waiting);
    waiting = setTimeout(ask, working ? OFTEN : SELDOM);
  }

  document.addEventListener("visibilitychange", ask, { signal });
  signal.addEventListener("abort", () => clearTimeout(waiting));
  ask();
  return ask;
}
