// Where the pages' data come from: the viewer's server, or, in an exported site, files beside it.
//
// An exported page sets `window.FASTEXPLAIN = {address: path => file, given: {}}` before this runs.
// Its files are scripts, since a page that is opened as a file may load nothing else; each calls
// `FASTEXPLAIN.give(path, data)`.

const exported = window.FASTEXPLAIN;
const waiting = new Map();

if (exported) {
  exported.give = (path, data) => {
    exported.given[path] = data;
    waiting.get(path)?.();
  };
}

/** Whether there is a server that can run the subject, take ratings and the like. */
export function live() {
  return !exported;
}

/**
 * The data at a path such as "run" or "neuron/5:131".
 *
 * @throws {Error} With one line to show.
 */
export async function load(path, signal) {
  if (exported) return loadFile(path);
  const answer = await ask(path, { signal });
  return answer.json();
}

/** Packed numbers at a path, as an ArrayBuffer. */
export async function loadPacked(path, signal) {
  if (exported) {
    const bytes = atob(await loadFile(path));
    return Uint8Array.from(bytes, (character) => character.charCodeAt(0)).buffer;
  }
  const answer = await ask(path, { signal });
  return answer.arrayBuffer();
}

/** The answer to what writes or runs something; `body` is sent as JSON. */
export async function send(path, body, signal) {
  const { token } = await run();
  const answer = await ask(path, {
    signal,
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Fastexplain-Token": token },
    body: JSON.stringify(body),
  });
  return answer.json();
}

let known;

/** What the run is; asked for once. */
export function run() {
  known ??= load("run").catch((error) => {
    known = undefined;
    throw error;
  });
  return known;
}

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(`api/${path}`, { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The viewer does not answer; is `fastexplain view` still running?");
  }
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw new Error(said.error ?? `The viewer answered ${answer.status}.`);
  }
  return answer;
}

function loadFile(path) {
  if (path in exported.given) return Promise.resolve(exported.given[path]);
  const file = exported.address(path);
  if (!file) return Promise.reject(new Error("That is not part of this exported site."));
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    waiting.set(path, () => resolve(exported.given[path]));
    script.onerror = () => reject(new Error(`${file} can't be read.`));
    script.onload = () => {
      if (!(path in exported.given)) reject(new Error("That is not part of this exported site."));
      script.remove();
    };
    script.src = file;
    document.head.append(script);
  });
}
