// Colours by which numbers are shown: even in lightness, so that they are in order for everybody
// and in black and white too. Blue to yellow, as cividis (Nuñez, Anderton and Renslow 2018).

const STOPS = [
  [0, 34, 78], [53, 69, 108], [87, 93, 109], [112, 113, 115], [138, 134, 120],
  [165, 156, 116], [195, 179, 105], [225, 204, 85], [254, 232, 56],
];

/** Whether the page is dark now. */
export function isDark() {
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

/** 256 colours as `[r, g, b]`: high values stand out from the page, light or dark. */
export function palette(dark = isDark()) {
  return Array.from({ length: 256 }, (_, step) => {
    const share = (dark ? step : 255 - step) / 255;
    const at = Math.min(share * (STOPS.length - 1), STOPS.length - 1 - 1e-9);
    const first = Math.floor(at);
    return STOPS[first].map((low, channel) =>
      Math.round(low + (at - first) * (STOPS[first + 1][channel] - low)),
    );
  });
}

/** The colour of what has no number. */
export function blankColour(dark = isDark()) {
  return dark ? [38, 46, 56] : [228, 231, 235];
}

/**
 * How numbers become shares from 0 to 1: between the 1st and the 99th percentile.
 *
 * @param {Float32Array} values
 * @param {boolean} logarithmic By the logarithm, where no value in between is negative.
 * @returns {{low, high, share, at, known}} `share` of a value, `at` the value of a share, and how
 *   many values are known.
 */
export function colourScale(values, logarithmic) {
  const sorted = values.filter(Number.isFinite).sort();
  const known = sorted.length;
  if (!known) return { low: 0, high: 1, share: () => 0, at: (share) => share, known };
  const high = sorted[Math.floor((known - 1) * 0.99)];
  let low = sorted[Math.ceil((known - 1) * 0.01)];
  const least = logarithmic ? sorted.find((value) => value > 0) : undefined;
  const isLog = least !== undefined && low >= 0 && high > least;
  if (isLog) low = Math.max(low, least);
  const [from, to] = isLog ? [Math.log(low), Math.log(high)] : [low, high];
  const span = to - from || 1;
  return {
    low, high, known,
    share: (value) =>
      Math.min(Math.max(((isLog ? Math.log(Math.max(value, low)) : value) - from) / span, 0), 1),
    at: (share) => (isLog ? Math.exp(from + share * span) : from + share * span),
  };
}
