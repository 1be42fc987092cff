// The run's subject, which the server loads when somebody wants it.

import { load, send } from "./source.js";

const POLL = 400; // ms between two looks at a subject that is being loaded

/**
 * Have the subject loaded, and wait for it; `say` is called with a line meanwhile.
 *
 * @throws {Error} With one line to show, where it can't be.
 */
export async function subjectLoaded(say, signal) {
  let found = await send("subject", {}, signal);
  while (found.state === "loading") {
    say(`Loading ${found.name}…`);
    await new Promise((resolve) => { setTimeout(resolve, POLL); });
    found = await load("subject", signal);
  }
  if (found.state !== "ready") throw new Error(found.error ?? "The subject is not loaded.");
}
