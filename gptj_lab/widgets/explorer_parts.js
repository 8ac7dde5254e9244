// The Explorer's numbers, bars and lines.

export function share(p) { // a probability as a person reads it
  if (!isFinite(p)) return "–";
  const of = 100 * p;
  if (of === 0) return "0 %";
  return `${of >= 99.95 ? of.toFixed(0) : of >= 1 ? of.toFixed(1) : of >= 0.1 ? of.toFixed(2) : of.toPrecision(1)} %`;
}

export function signed(value, digits = 2) {
  const text = abs(value).toFixed(digits);
  return isFinite(value) ? `${Number(text) ? (value > 0 ? "+" : "−") : ""}${text}` : "–";
}

// A canvas of so many CSS pixels, each as fine as the screen; its pen.
function penOf(canvas, width, height) {
  const dense = canvas.ownerDocument.defaultView.devicePixelRatio || 1;
  Object.assign(canvas, { width: round(width * dense), height: round(height * dense) });
  Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  const pen = canvas.getContext("2d");
  pen.scale(dense, dense);
  return pen;
}

// A canvas with one pixel a cell, 32-bit colours; put() shows them.
function pixelsOf(make, width, height) {
  const canvas = make("canvas");
  Object.assign(canvas, { width, height });
  const pen = canvas.getContext("2d");
  const image = pen.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  return { canvas, pixels, put: () => pen.putImageData(image, 0, 0) };
}

// A grid's header and rows; its cells (row, column → node), row after row.
function gridOf(make, node, corner, rows, columns, cell) {
  const axis = (role, name) => make("div", "gx-axis", { role }, String(name));
  const line = (...all) => make("div", "gx-row", { role: "row" }, ...all);
  const cells = rows.map((_, r) => columns.map((_, c) => cell(r, c)));
  node.replaceChildren(line(...[corner, ...columns].map((name) => axis("columnheader", name))),
    ...rows.map((name, r) => line(axis("rowheader", name), ...cells[r])));
  return cells.flat();
}

const hint = (make, ...content) => make("p", "gx-hint", ...content);
const tools = (make, ...all) => make("div", "gx-tools", ...all);

// Lines over the layers: [{name, values, style}], NaN where nothing is. upside: 1 is on top (ranks).
export function lines(make, { series, theme, caption, unit, upside = false, log = false, at = null, width = 460, height = 190, names }) {
  const [left, right, top, bottom] = [46, 124, 10, 36];
  const scale = (v) => (log ? log10(max(v, 1)) : v);
  const all = series.flatMap((each) => [...each.values]).filter(isFinite).map(scale);
  let [low, high] = [min(...all), max(...all)];
  if (!all.length) [low, high] = [0, 1];
  low = min(low, 0); // of all that is drawn so, zero is the least
  if (high - low < 1e-6) high = low + 1;
  const count = max(2, ...series.map((each) => each.values.length));
  const x = (i) => left + (i / (count - 1)) * (width - left - right);
  const y = (v) => {
    const part = (scale(v) - low) / (high - low);
    return top + (upside ? part : 1 - part) * (height - top - bottom);
  };
  const svg = make.svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "gx-lines", style: `max-width: ${1.1 * width}px`, role: "img", "aria-label": caption });
  const size = 10 ** floor(log10((high - low) / 5));
  const between = size * [1, 2, 5, 10].find((each) => 5.001 * each * size >= high - low);
  const ticks = log ? [1, 10, 100, 1000, 10000, 100000].filter((t) => log10(t) <= high + 0.2)
    : times(6, (i) => (ceil(low / between) + i) * between).filter((t) => t <= high);
  for (const tick of ticks) {
    const name = String(Number(tick.toPrecision(6)));
    svg.append(make.svg("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), class: "gx-rule" }),
      make.svg("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, name));
  }
  const every = ceil(count / 14);
  for (let i = 0; i < count; i += every) {
    svg.append(make.svg("text", { x: x(i), y: height - bottom + 16, "text-anchor": "middle" }, names?.[i] ?? String(i)));
  }
  if (at !== null) svg.append(make.svg("line", { x1: x(at), x2: x(at), y1: top, y2: height - bottom, class: "gx-at" }));
  svg.append(make.svg("text", { x: left, y: height - 4 }, unit));
  const ends = []; // names beside the lines' ends, pushed apart
  series.forEach((each) => {
    const points = [...each.values].map((v, i) => (isFinite(v) ? `${x(i).toFixed(1)},${y(v).toFixed(1)}` : null));
    const line = LINES[each.style % LINES.length];
    svg.append(make.svg("polyline", { points: points.filter(Boolean).join(" "), fill: "none", stroke: line[theme],
      "stroke-width": 2.2, "stroke-dasharray": line.dash }));
    const last = points.findLastIndex(Boolean);
    if (last >= 0) ends.push({ y: y(each.values[last]), name: each.name, line });
  });
  ends.sort((a, b) => a.y - b.y);
  ends.forEach((end, i) => {
    if (i && end.y < ends[i - 1].y + 14) end.y = ends[i - 1].y + 14;
    svg.append(make.svg("text", { x: width - right + 5, y: end.y + 4, fill: end.line[theme], class: "gx-end" },
      `${end.line.mark} ${end.name.slice(0, 14)}`));
  });
  return svg;
}

// One row of a bar chart around zero or of a waterfall: from and to as fractions of the width.
export function bar(make, { name, from, to, value, kind, title, click }) {
  const fill = make("span", `gx-fill gx-${kind}`);
  fill.style.left = `${(100 * min(from, to)).toFixed(2)}%`;
  fill.style.width = `${max(0.3, 100 * abs(to - from)).toFixed(2)}%`;
  const row = make("li", "gx-bar-row");
  const label = click ? make.button(name, title, click, "gx-link") : make("span", "gx-name", { title: name }, name);
  row.append(label, make("span", "gx-track", fill), make("span", "gx-number", value));
  return row;
}
