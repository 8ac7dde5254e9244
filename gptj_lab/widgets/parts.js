// What several views are made of: nodes, cells that keys walk over, the kernel's mailbox, tables.
// Texts are untrusted: they only ever become textContent or a canvas's fillText.

const { abs, ceil, exp, floor, log10, max, min, round, sqrt } = Math;
export const times = (n, f) => Array.from({ length: n }, (_, i) => f(i));
const taken = (event) => { // the notebook's own keys stay out
  event.preventDefault();
  event.stopPropagation();
};

const chord = (event) => event.ctrlKey || event.metaKey || event.altKey; // the browser's or the notebook's

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
  // A labelled <select>; options are [value, text], or a text that is both.
  make.select = (caption, options, value, change) => {
    const node = make("select");
    const label = make("label", "gx-control", make.caption(caption), node);
    label.input = node;
    label.fill = (all, chosen) => {
      node.replaceChildren(...all.map((each) => {
        const [value, text = value] = [each].flat();
        const option = make("option", "", text);
        option.value = value;
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
    if (i < 0 || chord(event)) return;
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
  return { set, choose, focus: () => cells[at]?.focus(), get cells() { return cells; } };
}

export const GONE = "The kernel of this view is gone, so what you see is stale: run its cell again.";

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
    const { buffers, ...content } = message;
    try {
      model.send({ ...content, req: slot.sent.req }, undefined, buffers);
    } catch { // the notebook's end of the line is closed: the kernel was restarted or shut down
      slot.sent = null;
      failed({ op: "stale", text: GONE }, pane);
    }
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

// A text table, the alternative to a picture.
export function table(make, caption, head, rows) {
  return make("table", "gx-table", make("caption", "", caption),
    make("thead", "", make("tr", "", ...head.map((each) => make("th", "", { scope: "col" }, each)))),
    make("tbody", "", ...rows.map(([first, ...rest]) =>
      make("tr", "", make("th", "", { scope: "row" }, first), ...rest.map((each) => make("td", "", each))))));
}

// Lines of several tokens or models: colour, dash and the mark at their ends differ together.
export const LINES = [
  { light: "#17508f", dark: "#78b2ea", dash: "", mark: "●" },
  { light: "#a34700", dark: "#ffab5c", dash: "7 4", mark: "■" },
  { light: "#9116e8", dark: "#f3f6da", dash: "2 3", mark: "▲" },
  { light: "#00634a", dark: "#5cd6ae", dash: "10 3 2 3", mark: "◆" },
  { light: "#4a4f57", dark: "#9aa3ad", dash: "4 2 1 2 1 2", mark: "✚" },
];
