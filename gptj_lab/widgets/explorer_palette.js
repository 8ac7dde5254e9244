// The Explorer's colours: ramps that grow in lightness alone, so that no colour vision and no
// grey printer loses their order; a blue-to-orange scale around zero; marks and dashes that say
// the same without colour. Held by tests/widgets/explorer_palette.test.mjs.

// "plain" is the page's own colour at zero; cividis and viridis are matplotlib's.
export const RAMPS = {
  plain: {
    light: ["#fbfcfe", "#d3e3f3", "#8fbfe0", "#4292c6", "#1a62a8", "#08306b"],
    dark: ["#181d24", "#1f3a5a", "#2c6791", "#4b9fb5", "#9fd4b4", "#fdf5b8"],
  },
  cividis: ["#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838"],
  viridis: ["#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725"],
};
// Below zero, zero, above zero.
export const DIVERGING = {
  light: ["#08417a", "#5d9fd3", "#f6f6f4", "#e79440", "#843500"],
  dark: ["#a5d4ff", "#3d7cb5", "#22272e", "#b0691f", "#ffc88a"],
};
export const MASK = { light: "#e9ebee", dark: "#0c0f12" }; // the future: nothing is read there

const channels = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

export function mix(anchors, at) {
  const place = min(max(at, 0), 1) * (anchors.length - 1);
  const i = min(floor(place), anchors.length - 2);
  const [from, to] = [channels(anchors[i]), channels(anchors[i + 1])];
  return from.map((v, c) => round(v + (place - i) * (to[c] - v)));
}

// 256 colours as the 32-bit pixels of an ImageData. gamma below 1 lifts what is small.
export function lut(anchors, gamma = 1) {
  const pixels = new Uint8ClampedArray(1024);
  for (let q = 0; q < 256; q++) pixels.set([...mix(anchors, (q / 255) ** gamma), 255], 4 * q);
  return new Uint32Array(pixels.buffer);
}

export function pixel(hex) {
  return new Uint32Array(new Uint8ClampedArray([...channels(hex), 255]).buffer)[0];
}

// A pixel of a table as [red, green, blue].
export const parts = (value) => [value & 255, (value >> 8) & 255, (value >> 16) & 255];
export const css = ([r, g, b]) => `rgb(${r}, ${g}, ${b})`;

// Black or white, whichever is read better on that colour.
export function inkOn(rgb) {
  return luminance(css(rgb)) > 0.179 ? "#000000" : "#ffffff";
}

// Colours a node, or takes its colour away.
export function tint(node, rgb) {
  node.style.background = rgb ? css(rgb) : "";
  node.style.color = rgb ? inkOn(rgb) : "";
  return node;
}

export function ramp(name, theme) {
  const found = RAMPS[name] ?? RAMPS.plain;
  return Array.isArray(found) ? found : found[theme];
}
