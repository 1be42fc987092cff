// Where the pages' data come from: the viewer's server, or, in an exported page, the page itself and
// files beside it.
//
// An exported page sets `window.FASTEXPLAIN` before this runs:
//   given: data by their paths, such as "run", that are in the page;
//   files: by path, the files of data that are one for the run;
//   neurons: those that were exported, as [site, first, last] in their order;
//   shard: so many neurons' data are in each file of "neuron/..." paths; 0 where there is none;
//   texts: so many neurons' best explanations are in each file of "texts/..." paths, as lists of
//     method, model, text and score, or null; 0 where there is none;
//   home: the address that the page opens at.
// The files are scripts, since a page that is opened as a file may load nothing else. Each calls
// `FASTEXPLAIN.give(path, data)` for what it holds.

import { findOffline } from "./offline.js";

const exported = window.FASTEXPLAIN;
const given = new Map(Object.entries(exported?.given ?? {}));
const loading = new Map();

// Neurons' data that are kept; a file of them has about 1 MB.
const KEPT_FILES = 16;

const AGAIN = 1000; // ms until a viewer that did not answer is asked again

if (exported) exported.give = (path, data) => given.set(path, data);

/** Whether there is a server that can run the subject, take ratings and the like. */
export function live() {
  return !exported;
}

/** Whether there are data at a path; of a server it is not known before it is asked. */
export function offers(path) {
  return !exported || given.has(path) || Boolean(fileOf(path));
}

/** Whether there is anything to search. */
export function searchable() {
  return !exported || exported.texts > 0;
}

/** The address of the page that the viewer opens at. */
export function homeAddress() {
  return exported?.home ?? "#/";
}

/** All neurons there are to look at, as [site, first, last] in their order. */
export async function neuronRanges() {
  if (exported) return exported.neurons;
  return (await run()).sites.map(({ name, units }) => [name, 0, units - 1]);
}

/** How many neurons are in ranges. */
export function countOf(ranges) {
  return ranges.reduce((sum, [, first, last]) => sum + last - first + 1, 0);
}

/** The name of the neuron at a place in ranges, from 0; after the last comes the first. */
export function neuronAt(ranges, place) {
  const total = countOf(ranges);
  let left = ((place % total) + total) % total;
  for (const [site, first, last] of ranges) {
    if (left <= last - first) return `${site}:${first + left}`;
    left -= last - first + 1;
  }
  throw new Error("There are no neurons.");
}

/** The place in ranges of a neuron's name; -1 where it has none. */
export function placeIn(ranges, name) {
  const [site, text] = name.split(":");
  const index = Number(text);
  let place = 0;
  for (const [own, first, last] of ranges) {
    if (own === site && index >= first && index <= last) return place + index - first;
    place += last - first + 1;
  }
  return -1;
}

/**
 * The data at a path such as "run" or "neuron/5:131".
 *
 * @throws {Error} With one line to show; `passing` where the same may succeed later.
 */
export async function load(path, signal) {
  if (exported) return loadExported(path);
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

/**
 * The answer to what writes or runs something; `body` is sent as JSON.
 *
 * A viewer that was started again has another token, and has done nothing of what it refused.
 */
export async function send(path, body, signal) {
  const { token } = await run();
  try {
    return await post(path, body, token, signal);
  } catch (error) {
    if (!error.renew) throw error;
  }
  return post(path, body, await newToken(), signal);
}

async function post(path, body, token, signal) {
  const answer = await ask(path, {
    signal,
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Fastexplain-Token": token },
    body: JSON.stringify(body),
  });
  return answer.json();
}

async function newToken() {
  const now = await load("run");
  if (identityOf(now) !== identityOf(await run())) {
    throw new Error("The viewer shows another run by now; open it anew.");
  }
  known = now;
  return now.token;
}

function identityOf({ name, subject, corpus, settings, sweep, sites }) {
  return JSON.stringify([name, subject, corpus, settings, sweep, sites]);
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

/**
 * What waits for a viewer that did not answer, and goes on when it is back: once, however often it is called until
 * then; never, if the page is left.
 */
export function returning(signal, goOn) {
  let waiting = false;
  return async () => {
    if (waiting) return;
    waiting = true;
    while (!(await answers(signal))) {
      if (signal.aborted) return;
    }
    waiting = false;
    goOn();
  };
}

/** Whether the viewer answers, a while from now. */
async function answers(signal) {
  await new Promise((resolve) => { setTimeout(resolve, AGAIN); });
  return load("run", signal).then(() => true, () => false);
}

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(`api/${path}`, { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw Object.assign(new Error("The viewer does not answer; is `fastexplain view` still running?"), { passing: true });
  }
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw Object.assign(new Error(said.error ?? `The viewer answered ${answer.status}.`), { renew: Boolean(said.renew) });
  }
  return answer;
}

async function loadExported(path) {
  const [kind, rest] = path.split(/[?/](.*)/s);
  if (kind === "search" && exported.texts) return searchExported(new URLSearchParams(rest));
  if (kind === "glance" && exported.texts) {
    const place = placeIn(exported.neurons, rest);
    const texts = place < 0 ? [] : await textsIn(Math.floor(place / exported.texts));
    const found = texts[place % exported.texts];
    if (found) return found;
  }
  return loadFile(path);
}

async function searchExported(query) {
  const texts = (await Promise.all([...Array(textFiles()).keys()].map(textsIn))).flat();
  const names = texts.map((each) => each.neuron);
  return findOffline(texts, names, query.get("q") ?? "", Number(query.get("limit") ?? 8));
}

/** How many files of best explanations there are. */
function textFiles() {
  return exported.texts ? Math.ceil(countOf(exported.neurons) / exported.texts) : 0;
}

/** The best explanations of a file of them, by objects; one of nulls where there is none. */
async function textsIn(file) {
  const found = await loadFile(`texts/${file}`);
  const first = file * exported.texts;
  return found.map((own, place) => {
    const [method, model, text, score] = own ?? [null, null, null, null];
    return { neuron: neuronAt(exported.neurons, first + place), method, model, text, score };
  });
}

async function loadFile(path) {
  const file = given.has(path) ? null : fileOf(path);
  if (file) await loadScript(file);
  if (!given.has(path)) throw new Error("That is not part of this exported site.");
  return structuredClone(given.get(path)); // each caller has its own, as from a server
}

/** The file in which a path's data are, if they are in one. */
function fileOf(path) {
  if (path.startsWith("neuron/") && exported.shard) {
    const place = placeIn(exported.neurons, path.slice("neuron/".length));
    return place < 0 ? null : `data/neurons-${Math.floor(place / exported.shard)}.js`;
  }
  if (path.startsWith("texts/") && Number(path.slice("texts/".length)) < textFiles()) {
    return `data/${path.replace("/", "-")}.js`;
  }
  return Object.hasOwn(exported.files, path) ? exported.files[path] : null;
}

function loadScript(file) {
  if (!loading.has(file)) {
    const script = document.createElement("script");
    const own = new Promise((resolve, reject) => {
      script.onload = resolve;
      script.onerror = () => reject(new Error(`${file} can't be read.`));
      script.src = file;
      document.head.append(script);
    }).finally(() => {
      script.remove();
      loading.delete(file);
    });
    loading.set(file, own);
    forget();
  }
  return loading.get(file);
}

/** Let go of the neurons that were loaded first, where there are many. */
function forget() {
  const names = [...given.keys()].filter((path) => path.startsWith("neuron/"));
  const most = KEPT_FILES * (exported.shard || names.length);
  for (const path of names.slice(0, Math.max(names.length - most, 0))) given.delete(path);
}
