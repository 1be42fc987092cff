// The page's address, and how far it was scrolled and enlarged: kept with each place in the browser's
// history, since pages are made anew when somebody goes back to them.

const STILL = 100; // ms without scrolling before it is kept

let waiting;

/** Change the address without opening it, as for what was chosen on a page. */
export function setAddress(address) {
  history.replaceState(history.state, "", address);
}

/** Keep something of a page for going back to it: `keptState(name)` is it then. */
export function keepState(name, value) {
  history.replaceState({ ...history.state, [name]: value }, "");
}

/** What was kept with this place in the history; undefined for a new one. */
export function keptState(name) {
  return history.state?.[name];
}

/** Pixels that this place in the history was scrolled by when it was left; 0 for a new one. */
export function scrolledBefore() {
  clearTimeout(waiting);
  return keptState("scrolled") ?? 0;
}

/** Scroll to there, though parts of the content may still be loading. */
export function scrollBack(content, scrolled) {
  content.style.setProperty("min-height", scrolled ? `${scrolled + innerHeight - content.offsetTop}px` : "");
  scrollTo(0, scrolled);
}

/** Keep from now on how far the content is scrolled whenever it is whole. */
export function keepScrolled(content) {
  history.scrollRestoration = "manual";
  addEventListener("scroll", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      if (content.getAttribute("aria-busy") === "true") return;
      keepState("scrolled", Math.round(scrollY));
    }, STILL);
  });
}
