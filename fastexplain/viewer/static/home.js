// The overview: what the run is.

import { element } from "./dom.js";
import { run } from "./source.js";

export async function homePage(content) {
  const found = await run();
  const neurons = found.sites.reduce((sum, site) => sum + site.units, 0);
  content.replaceChildren(
    element("h1", {}, found.name),
    element(
      "p",
      {},
      `${neurons.toLocaleString("en")} neurons of ${found.subject.name} on ${found.corpus.sources.join(", ")}: `,
      `${found.sweep.excerpts.toLocaleString("en")} excerpts.`,
    ),
  );
  return { title: found.name };
}
