// The Explorer's small parts: nodes, the kernel's mailbox, bars and lines. Texts are untrusted:
// they only ever become textContent or a canvas's fillText.

const { abs, ceil, exp, floor, log10, max, min, round, sqrt } = Math;
export const times = (n, f) => Array.from({ length: n }, (_, i) => f(i));
const taken = (event) => { // the notebook's own keys stay out
  event.preventDefault();
  event.stopPropagation();
};

// make(tag, class, {attribute: value}?, text or nodes ...); role and label are attributes.
export function maker(doc) {
  const make = (tag, className, ...content) => {
    const node = doc.createElement(tag);
    if (className) node.className = className;
    if (content[0]?.constructor === Object) {
      for (const [name, value] of Object.entries(content.shift())) node.setAttribute(name, value);
    }
    if (content.length === 1 && typeof content[0] !== "object") node.textContent = content[0];
    else node.append(...content);
    return node;
  };
  make.caption = (...content) => make("span", "gx-caption", ...content);
  make.button = (text, title, click, kind = "gx-small") => {
    const node = make("button", kind, { type: "button", title }, text);
    node.addEventListener("click", click);
    return node;
  };
  // An input of that kind in its label, which has it as .input.
  make.input = (caption, attributes, change, on = "change") => {
    const node = make("input", "", attributes);
    node.value = attributes.value ?? "";
    node.addEventListener(on, () => change?.(node.type === "checkbox" ? node.checked : node.value));
    const label = make("label", "gx-control", make.caption(caption), node);
    label.input = node;
    return label;
  };
  // A labelled <select>; options are [value, text].
  make.select = (caption, options, value, change) => {
    const node = make("select");
    const label = make("label", "gx-control", make.caption(caption), node);
    label.input = node;
    label.fill = (all, chosen) => {
      node.replaceChildren(...all.map(([each, text]) => {
        const option = make("option", "", text);
        option.value = each;
        return option;
      }));
      node.value = chosen;
    };
    label.fill(options, value);
    node.addEventListener("change", () => change(node.value));
    return label;
  };
  make.check = (caption, checked, change, title = "") => {
    const label = make.input(caption, { type: "checkbox", title }, change);
    label.input.type = "checkbox";
    label.input.checked = checked;
    return label;
  };
  make.svg = (tag, attributes = {}, ...content) => {
    const node = doc.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
    node.append(...content);
    return node;
  };
  return make;
}

// The step that a key means in a grid, or null.
export function step(key, index, wide, count) {
  const column = index % wide;
  const to = { ArrowRight: column < wide - 1 ? index + 1 : index, ArrowLeft: column ? index - 1 : index, ArrowDown: index + wide, ArrowUp: index - wide,
    Home: index - column, End: min(index - column + wide - 1, count - 1),
    PageDown: column + wide * floor((count - 1 - column) / wide), PageUp: column }[key];
  if (to === undefined) return null;
  return to < 0 || to >= count ? index : to;
}

// Cells of which Tab reaches one; a click or an arrow key moves to another.
export function rove(node, go, other) {
  let [cells, wide, at] = [[], 1, 0];
  const find = (event) => cells.findIndex((cell) => cell === event.target || cell.contains?.(event.target));
  function choose(i) {
    for (const [cell, on] of [[cells[at], false], [cells[i], true]]) {
      if (!cell) continue;
      cell.tabIndex = on ? 0 : -1;
      cell.setAttribute("aria-selected", String(on));
    }
    at = i;
  }
  node.addEventListener("click", (event) => {
    const i = find(event);
    if (i < 0) return;
    choose(i);
    go(i, event);
  });
  node.addEventListener("keydown", (event) => {
    const i = find(event);
    if (i < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const to = step(event.key, i, wide, cells.length);
    if (to !== null) {
      choose(to);
      cells[to].focus();
      go(to, event);
      cells[to]?.focus();
    } else if (!other?.(event.key, i)) return;
    taken(event);
  });
  const set = (next, columns, current) => {
    [cells, wide] = [next, columns];
    cells.forEach((cell) => (cell.tabIndex = -1));
    choose(min(current ?? at, cells.length - 1));
  };
  return { set, choose, focus: () => cells[at]?.focus(), get at() { return at; }, get cells() { return cells; } };
}

// At most one message in flight for each pane; of those that wait the newest is sent, answers to
// older requests are dropped.
export function mailbox(model, me, failed) {
  const panes = new Map();
  let count = 0;
  function send(pane) {
    const slot = panes.get(pane);
    const { message, kinds, then } = slot.next;
    slot.sent = { req: `${me}-${++count}`, kinds, then, dropped: false };
    slot.next = null;
    model.send({ ...message, req: slot.sent.req });
  }
  function ask(message, kinds, then, pane = message.op) {
    const slot = panes.get(pane) ?? {};
    panes.set(pane, slot);
    slot.next = { message, kinds, then };
    if (slot.sent) slot.sent.dropped = true;
    else send(pane);
  }
  function receive(message, buffers) {
    for (const [pane, slot] of panes) {
      if (!slot.sent || slot.sent.req !== message.req) continue;
      const { then, kinds, dropped } = slot.sent;
      if (message.parts > message.part + 1) { // more of this answer is on its way
        if (!dropped) then(message, ...arrays(kinds, buffers ?? []));
        return;
      }
      slot.sent = null;
      if (slot.next) send(pane);
      if (dropped) return;
      if (["error", "outdated", "stale"].includes(message.op)) failed(message, pane);
      else then(message, ...arrays(kinds, buffers ?? []));
      return;
    }
  }
  const waiting = () => [...panes.values()].some((slot) => slot.sent);
  return { ask, receive, waiting };
}

// The kernel's buffers as arrays: "uif" are bytes, integers, floats; the last kind goes on.
export function arrays(kinds, buffers) {
  return buffers.map((buffer, i) => new { u: Uint8Array, i: Int32Array, f: Float32Array }[kinds[i] ?? kinds.at(-1)](
    buffer.buffer ? buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.byteLength) : buffer));
}

export function share(p) { // a probability as a person reads it
  if (!isFinite(p)) return "–";
  const of = 100 * p;
  if (of === 0) return "0 %";
  return `${of >= 99.95 ? of.toFixed(0) : of >= 10 ? of.toFixed(1) : of >= 1 ? of.toFixed(1) : of >= 0.1 ? of.toFixed(2) : of.toPrecision(1)} %`;
}

export const signed = (value, digits = 2) =>
  isFinite(value) ? `${value > 0 ? "+" : value < 0 ? "−" : ""}${abs(value).toFixed(digits)}` : "–";

// Lines over the layers: [{name, values, style}], NaN where nothing is. upside: 1 is on top (ranks).
export function lines(make, { series, theme, caption, unit, upside = false, log = false, at = null, width = 460, height = 190, from = 0 }) {
  const [left, right, top, bottom] = [46, 124, 10, 30];
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
  const ticks = log ? [1, 10, 100, 1000, 10000, 100000].filter((t) => log10(t) <= high + 0.2)
    : [0, 1, 2, 3, 4].map((i) => low + (i / 4) * (high - low));
  for (const tick of ticks) {
    const name = log || high - low >= 1 ? tick.toFixed(log || high - low >= 8 ? 0 : 1) : String(Number(tick.toPrecision(2)));
    svg.append(make.svg("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), class: "gx-rule" }),
      make.svg("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, name));
  }
  const every = ceil(count / 14);
  for (let i = 0; i < count; i += every) {
    svg.append(make.svg("text", { x: x(i), y: height - bottom + 16, "text-anchor": "middle" }, String(i + from)));
  }
  if (at !== null) svg.append(make.svg("line", { x1: x(at), x2: x(at), y1: top, y2: height - bottom, class: "gx-at" }));
  svg.append(make.svg("text", { x: left, y: height - 2 }, unit));
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
  const label = click ? make.button(name, title, click, "gx-link") : make("span", "gx-name", name);
  row.append(label, make("span", "gx-track", fill), make("span", "gx-number", value));
  return row;
}

// A text table, the alternative to a picture.
export function table(make, caption, head, rows) {
  return make("table", "gx-table", make("caption", "", caption),
    make("thead", "", make("tr", "", ...head.map((each) => make("th", "", { scope: "col" }, each)))),
    make("tbody", "", ...rows.map(([first, ...rest]) =>
      make("tr", "", make("th", "", { scope: "row" }, first), ...rest.map((each) => make("td", "", each))))));
}
