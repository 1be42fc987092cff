// Search in an exported site, which no server does: over names and explanations, as `search` does.

/**
 * What is found for a text, as the server's `search` gives it.
 *
 * @param {Object[]} texts Neurons' best explanations: neuron, method, model, text, score.
 * @param {string[]} names Of neurons; those that begin with the text are found.
 */
export function findOffline(texts, names, text, limit) {
  const wanted = text.trim();
  const neurons = /^\d+(\.\w+)?:\d*$/.test(wanted) ? firstOf(names, wanted, limit) : [];
  // A name's numbers are not meant as words.
  const holds = wanted && !neurons.length ? wordTest(wanted) : () => false;
  const found = texts.filter((each) => each.text !== null && holds(each.text));
  found.sort((one, other) => (other.score ?? -Infinity) - (one.score ?? -Infinity) || 0);
  return {
    neurons,
    token: null,
    explanations: found.slice(0, limit),
    more: found.length > limit,
    ranked: true,
  };
}

/** Whether a text has all words of another, the last of which may go on; or it whole, of signs. */
function wordTest(wanted) {
  const words = wordsOf(wanted);
  if (!words.length) return (text) => text.includes(wanted);
  const whole = words.slice(0, -1).map((word) => ` ${word} `);
  const last = ` ${words.at(-1)}`;
  return (text) => {
    const own = ` ${wordsOf(text).join(" ")} `;
    return own.includes(last) && whole.every((word) => own.includes(word));
  };
}

function wordsOf(text) {
  return text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
}

function firstOf(names, beginning, limit) {
  const found = [];
  for (const name of names) {
    if (name.startsWith(beginning)) found.push(name);
    if (found.length === limit) break;
  }
  return found;
}
