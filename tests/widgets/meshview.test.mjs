// meshview.js with a fake document and a fake kernel: protocol, keys, escaping, geometry, palette.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Node, module, page } from "./page.mjs";

const { source, view } = await module("meshview");
const NAUGHTY = "blocks.0.<img src=x onerror=alert(1)>";
const MESH = {
  title: "tiny on a mesh", axes: ["data", "model"], devices: [[0, 1], [2, 3]],
  held: [["1 kB", "1 kB"], ["1 kB", "1 kB"]], exchange: "1 all-reduce", why: "<b>why</b>",
  groups: [["blocks.0", [["blocks.0.q", "q", "8 x 6"], [NAUGHTY, NAUGHTY.slice(9), "6"]]],
    ["outside the blocks", [["embed", "embed", "8 x 6"]]]],
};

function setup(mesh = MESH) {
  const doc = page();
  const el = new Node("div", doc);
  const sent = [];
  const handlers = {};
  const state = { mesh, weight: "blocks.0.q" };
  const model = {
    get: (name) => state[name],
    send: (message) => sent.push(message),
    on: (name, f) => (handlers[name] = f),
    off: (name) => delete handlers[name],
  };
  const close = view.default.render({ model, el });
  const answer = (message, buffers = []) => handlers["msg:custom"](message, buffers);
  return { doc, el, sent, answer, close, handlers, state };
}

const bytes = (array) => new DataView(array.buffer);

// [8, 6] cut over `model` into two slices of columns: devices 0 and 2, 1 and 3.
function columns(req, more = {}) {
  return [{ op: "weight", req, name: "blocks.0.q", shape: [8, 6], cut: "cut in 2",
    tells: ["zero", "one", "two", "three"], ...more },
  [Int32Array.from([0, 8, 0, 3, 0, 8, 3, 6]), Int32Array.from([0, 1, 0, 1])].map(bytes)];
}

test("it asks for the weight at once; the mesh is there before the answer", () => {
  const { el, sent } = setup();
  assert.equal(sent.length, 1);
  assert.deepEqual([sent[0].op, sent[0].weight], ["show", "blocks.0.q"]);
  assert.equal(el.all("gptj-device").length, 4);
  assert.deepEqual(el.all("gptj-group").map((n) => Boolean(n.open)), [true, false]);
  assert.ok(el.textContent.includes("tiny on a mesh") && el.textContent.includes("1 all-reduce<b>why</b>"));
});

test("many devices stand above the weights, few beside the matrix", () => {
  const wide = { ...MESH, devices: [[0, 1, 2, 3, 4, 5, 6, 7]], held: [Array(8).fill("1 kB")] };
  for (const [mesh, parent] of [[MESH, "gptj-left"], [wide, "gptj-mesh-body"]]) {
    const { el } = setup(mesh);
    assert.equal(el.get("gptj-devices").parentNode.className, parent);
    assert.equal(el.all("gptj-device").length, mesh.devices.flat().length);
  }
});

test("slices are drawn where their bounds are, with number and holders", () => {
  const { el, sent, answer } = setup();
  answer(...columns(sent[0].req));
  const slices = el.all("gptj-slice");
  assert.deepEqual(slices.map((n) => [n.style.left, n.style.top, n.style.width, n.style.height]),
    [["0%", "0%", "50%", "100%"], ["50%", "0%", "50%", "100%"]]);
  assert.deepEqual(slices.map((n) => n.textContent), ["slice 1 devices 0, 2", "slice 2 devices 1, 3"]);
  assert.deepEqual(el.all("gptj-device").map((n) => n.children[2].textContent),
    ["slice 1", "slice 2", "slice 1", "slice 2"]);
  assert.equal(el.get("gptj-weight").getAttribute("aria-pressed"), "true");
});

test("pointing at a device or a slice shows the sentence and who holds the same", () => {
  const { el, sent, answer } = setup();
  el.all("gptj-device")[3].fire("pointermove"); // before the slices are there
  answer(...columns(sent[0].req));
  assert.equal(el.get("gptj-sentence").textContent, "three");
  el.all("gptj-device")[2].fire("pointermove");
  assert.equal(el.get("gptj-sentence").textContent, "two");
  assert.deepEqual(el.all("gptj-device").map((n) => n.dataset.same), ["true", "false", "true", "false"]);
  assert.deepEqual(el.all("gptj-slice").map((n) => n.dataset.held), ["true", "false"]);
  el.all("gptj-slice")[1].fire("pointermove");
  assert.equal(el.get("gptj-sentence").textContent, "one");
});

test("a replicated weight says so, and a vector is one row", () => {
  const { el, sent, answer } = setup();
  answer({ op: "weight", req: sent[0].req, name: NAUGHTY, shape: [6], cut: "not cut", tells: ["a", "b", "c", "d"] },
    [Int32Array.from([0, 6]), new Int32Array(4)].map(bytes));
  assert.equal(el.get("gptj-slice").textContent, "all of it on every device");
  assert.ok(el.all("gptj-device").every((n) => n.children[2].textContent === "all of it"));
  assert.deepEqual(view.box([[2, 4]], [8]), [0.25, 0, 0.25, 1]);
  assert.deepEqual(view.box([[2, 4], [0, 6]], [8, 6]), [0, 0.25, 1, 0.25]);
  assert.ok(view.aspect([6]) > view.aspect([4, 4000]) && view.aspect([4, 4]) === 1);
});

test("arrow keys walk through the mesh and stop at its edges", () => {
  const { doc, el, sent, answer } = setup();
  answer(...columns(sent[0].req));
  const cells = el.all("gptj-device");
  cells[0].focus();
  const press = (key) => doc.active.fire("keydown", { key });
  for (const [key, to] of [["ArrowLeft", 0], ["ArrowRight", 1], ["ArrowDown", 3], ["ArrowDown", 3],
    ["ArrowRight", 3], ["Home", 2], ["End", 3], ["ArrowUp", 1], ["ArrowUp", 1]]) {
    press(key);
    assert.equal(doc.active, cells[to], key);
  }
  assert.equal(cells.filter((n) => n.tabIndex === 0).length, 1);
  assert.equal(el.get("gptj-sentence").textContent, "one");
  const weights = el.all("gptj-weight");
  weights[0].focus();
  press("ArrowDown");
  assert.equal(doc.active, weights[1]);
  press("ArrowDown"); // the next lies in a closed group
  assert.equal(doc.active, weights[1]);
});

test("a choice asks the kernel; answers to older choices are dropped, errors are shown", () => {
  const { el, sent, answer } = setup();
  answer(...columns(sent[0].req));
  el.all("gptj-weight")[2].fire("click");
  assert.equal(sent[1].weight, "embed");
  answer(...columns(sent[0].req, { tells: ["old", "old", "old", "old"] }));
  assert.equal(el.get("gptj-sentence").textContent, "zero");
  answer({ op: "error", req: sent[1].req, text: "no such weight" });
  assert.equal(el.get("gptj-alert").textContent, "no such weight");
  assert.equal(el.get("gptj-alert").hidden, false);
  el.all("gptj-weight")[0].fire("click");
  answer(...columns(sent[2].req));
  assert.equal(el.get("gptj-alert").hidden, true);
});

test("what Python sets is shown, what is shown already is not asked again", () => {
  const { sent, answer, handlers, state } = setup();
  answer(...columns(sent[0].req));
  handlers["change:weight"]();
  assert.equal(sent.length, 1);
  state.weight = "embed";
  handlers["change:weight"]();
  assert.equal(sent[1].weight, "embed");
});

test("names are never markup, and a closed view lets go", () => {
  const { doc, el, sent, answer, close, handlers } = setup();
  answer(...columns(sent[0].req, { name: NAUGHTY, cut: NAUGHTY, tells: Array(4).fill(NAUGHTY) }));
  assert.ok(el.get("gptj-cut").textContent.startsWith(NAUGHTY));
  assert.equal(el.get("gptj-sentence").textContent, NAUGHTY);
  assert.ok(el.all("gptj-weight")[1].textContent.startsWith(NAUGHTY.slice(9)));
  assert.ok(!/innerHTML|outerHTML|insertAdjacentHTML|document\.write/.test(source));
  close();
  assert.deepEqual(handlers, {});
  assert.ok(doc.disconnected);
});

test("every slice can be read and has its own hatch", () => {
  const contrast = (a, b) => {
    const [x, y] = [view.luminance(a), view.luminance(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  for (const each of view.SLICES) {
    for (const kind of ["light", "dark"]) assert.ok(contrast(...each[kind]) >= 4.5, each[kind].join());
  }
  assert.equal(new Set(view.SLICES.map((each) => each.hatch)).size, view.SLICES.length);
  assert.equal(new Set(view.SLICES.map((each) => each.light[0])).size, view.SLICES.length);
  assert.ok(source.length < 60_000);
});
