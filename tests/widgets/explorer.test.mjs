// explorer.js with a fake document and a fake kernel: protocol, latest wins, keys, texts, stop.
import assert from "node:assert/strict";
import { test } from "node:test";

import { kernel, NAUGHTY, pattern } from "./explorer_kernel.mjs";
import { Node, module, page } from "./page.mjs";

const { source, view } = await module("explorer");

function setup(options = {}) {
  const doc = page();
  const el = new Node("div", doc);
  const k = kernel(options);
  const close = view.default.render({ model: k.model, el });
  const root = el.get("gptj-explorer");
  const ops = () => k.sent.map((each) => each.op);
  const last = (op) => k.sent.filter((each) => each.op === op).at(-1);
  const key = (node, name, more = {}) => node.fire("keydown", { key: name, ...more });
  const button = (text) => root.all("gx-small").concat(root.all("gx-primary")).find((each) => each.textContent === text);
  const tab = (i) => root.all("gx-tab")[i].fire("click");
  return { doc, el, root, k, close, ops, last, key, button, tab };
}
const line = (root) => root.get("gx-line").textContent;

test("it says hello, then asks for one layer, the next tokens, the open panel and last the scores: no more", () => {
  const { close, ops, root, k } = setup();
  assert.deepEqual(ops().slice(0, 1), ["hello"]);
  assert.deepEqual(ops(), ["hello", "pattern", "next", "lens", "scores"]);
  assert.equal(k.sent.filter((each) => each.op === "pattern").length, 1);
  assert.ok(k.sent.slice(1).every((each) => each.run === 1));
  assert.equal(root.all("gx-cell").length, 12);
  assert.equal(root.all("gx-token").length, 10);
  assert.equal(root.get("gx-next").children.length, 10);
  close();
});

test("the latest wins: one message in flight a pane, of those that wait the newest goes, late answers are dropped", () => {
  const sent = [];
  const failures = [];
  const mail = view.mailbox({ send: (message) => sent.push(message) }, "me", (message) => failures.push(message.text));
  const got = [];
  for (const n of [1, 2, 3]) mail.ask({ op: "x", n }, "f", (message, values) => got.push([n, values[0]]));
  mail.ask({ op: "y" }, "u", () => got.push("y"));
  assert.deepEqual(sent.map((each) => [each.op, each.n]), [["x", 1], ["y", undefined]]);
  const floats = (v) => [new DataView(Float32Array.of(v).buffer)];
  mail.receive({ op: "x", req: sent[0].req }, floats(1));
  assert.deepEqual(got, [], "1 was overtaken");
  assert.equal(sent.at(-1).n, 3, "2 was never sent");
  mail.receive({ op: "x", req: sent[0].req }, floats(1));
  mail.receive({ op: "x", req: sent.at(-1).req, part: 0, parts: 2 }, floats(3));
  assert.ok(mail.waiting());
  mail.receive({ op: "x", req: sent.at(-1).req, part: 1, parts: 2 }, floats(4));
  assert.deepEqual(got, [[3, 3], [3, 4]]);
  mail.receive({ op: "error", req: sent[1].req, text: "no" });
  assert.deepEqual(failures, ["no"]);
  assert.ok(!mail.waiting());
});

test("companded triangles: the weight that is shown is the array's within half a step", () => {
  const T = 7;
  const p = pattern(1);
  const rows = Array.from({ length: T }, (_, r) => Array.from({ length: r + 1 }, (_, c) => p(2, r, c)));
  const shares = rows.map((row) => row.map((v) => v / row.reduce((a, b) => a + b, 0)));
  const bytes = Uint8Array.from(shares.flat(), (v) => Math.round(255 * Math.sqrt(v)));
  const whole = view.square(bytes, T);
  shares.forEach((row, r) => row.forEach((v, c) => {
    assert.equal(whole[r * T + c], bytes[view.triangle(r, c)]);
    assert.ok(Math.abs(view.weight(whole[r * T + c]) - v) < 0.0041, `${r} ${c}`);
  }));
  const free = view.combine([bytes], T, { sink: true });
  for (let r = 1; r < T; r++) {
    const sum = Array.from({ length: r }, (_, i) => view.weight(free[r * T + i + 1])).reduce((a, b) => a + b, 0);
    assert.ok(Math.abs(sum - 1) < 0.03, `row ${r} adds up to ${sum}`);
  }
  const share = shares.slice(1).reduce((sum, row) => sum + row[0], 0) / (T - 1);
  assert.ok(Math.abs(view.sinkShare([bytes], T) - share) < 0.004);
  const both = view.combine([bytes, new Uint8Array(bytes.length)], T, { reduce: "mean" });
  assert.ok(Math.abs(view.weight(both[3 * T + 2]) - shares[3][2] / 2) < 0.004);
  assert.equal(view.combine([bytes, new Uint8Array(bytes.length)], T, { reduce: "max" })[3 * T + 2], bytes[view.triangle(3, 2)]);
});

test("keys walk over the heads; a switches off, u takes it back, all as data in one message", () => {
  const { root, k, key, last, close, doc } = setup();
  const cells = root.all("gx-cell");
  cells[0].focus();
  key(cells[0], "ArrowDown");
  assert.equal(doc.active, cells[4]);
  assert.equal(cells[4].dataset.lmSuppressShortcuts, "true", "the notebook's own keys stay out");
  key(cells[4], "ArrowRight");
  key(cells[5], "End");
  assert.equal(doc.active, cells[7]);
  key(cells[7], "ArrowRight");
  assert.equal(doc.active, cells[7], "a row ends");
  assert.match(root.all("gx-title").map((each) => each.textContent).join("|"), /Layer 1, head 3/);
  assert.equal(cells.filter((each) => each.tabIndex === 0).length, 1);
  assert.equal(cells.filter((each) => each.attributes["aria-selected"] === "true").length, 1);
  key(cells[7], "a");
  assert.deepEqual(last("intervene").interventions.map(({ kind, layer, head, how }) => [kind, layer, head, how]), [["head", 1, 3, "zero"]]);
  assert.equal(cells[7].textContent, "✕");
  assert.equal(root.all("gx-chip").length, 1);
  assert.match(root.get("gx-next").textContent, /was/);
  assert.match(root.get("gx-next-pane").textContent, /KL from before: 0\.1234 nats/);
  key(cells[7], "l");
  assert.equal(last("intervene").interventions.length, 2);
  key(cells[7], "u");
  key(cells[7], "u");
  assert.deepEqual(k.traits.interventions, []);
  assert.notEqual(cells[7].textContent, "✕");
  assert.deepEqual(k.traits.selection.layer, 1);
  close();
});

test("the matrix: arrows stay below the diagonal, Enter holds and asks for the exact row, pointing asks nothing", () => {
  const { root, k, key, last, close } = setup();
  const matrix = root.get("gx-heat");
  const before = k.sent.length;
  matrix.fire("pointermove", { clientX: 84 + 2.5 * 32, clientY: 88 + 5.5 * 32 });
  assert.equal(k.sent.length, before, "no message for pointing");
  assert.match(line(root), /Layer 0 head 0: '␣mat' \(5\) reads [\d.]+ % from '␣sat' \(2\)/);
  const said = Number(/reads ([\d.]+) %/.exec(line(root))[1]) / 100;
  const row = Array.from({ length: 6 }, (_, c) => pattern(0)(0, 5, c));
  assert.ok(Math.abs(said - row[2] / row.reduce((a, b) => a + b, 0)) < 0.005);
  for (let i = 0; i < 9; i++) key(matrix, "ArrowRight");
  assert.match(line(root), /\(5\) reads .* from '␣mat' \(5\)/, "not into the future");
  key(matrix, "ArrowLeft");
  key(matrix, "Enter");
  assert.deepEqual([last("exact").query, last("exact").layer], [5, 0]);
  assert.match(line(root), /reads 16\.667 % from '␣the' \(4\)/);
  matrix.fire("pointermove", { clientX: 90, clientY: 80 });
  assert.match(line(root), /\(5\) reads/, "held");
  key(matrix, "x");
  assert.deepEqual((({ kind, query, key: k2 }) => [kind, query, k2])(last("intervene").interventions[0]), ["edge", 5, 4]);
  close();
});

test("undo is the kernel's, so what a script changed and what was before a reload can be undone", () => {
  const { root, close, ops, button, k } = setup({ state: { interventions: [{ kind: "mlp", layer: 1, how: "zero" }] }, past: [[]] });
  assert.equal(root.all("gx-chip").length, 1);
  assert.equal(button("Undo").attributes["aria-disabled"], "false");
  button("Undo").fire("click");
  assert.deepEqual([k.traits.interventions, ops().at(-1) && button("Undo").attributes["aria-disabled"]], [[], "true"]);
  button("Undo").fire("click");
  button("Restore all").fire("click");
  assert.deepEqual(k.traits.interventions, [], "there was nothing to undo");
  close();
});

test("sort, colour and selection of several heads", () => {
  const { root, k, key, close } = setup();
  const [score] = root.all("gx-control").map((each) => each.input).filter((each) => each?.children.some((o) => o.value === "entropy"));
  score.value = "entropy";
  score.fire("change");
  assert.equal(root.get("gx-best").all("gx-link").length, 6);
  const sort = root.all("gx-control").find((each) => each.textContent === "sort").input;
  sort.checked = true;
  sort.fire("change");
  const scores = root.all("gx-cell").map((each) => Number(/entropy ([\d.]+)/.exec(each.attributes["aria-label"])[1]));
  assert.deepEqual(scores, [...scores].sort((a, b) => b - a));
  const cells = root.all("gx-cell");
  assert.match(cells[0].textContent, /^\d\.\d$/, "sorted, a cell carries its head's name");
  const titles = () => root.all("gx-title").map((each) => each.textContent).join("|");
  const name = (cell) => "Layer " + cell.dataset.head.replace(".", ", head ");
  cells[1].fire("click");
  cells[2].fire("click", { ctrlKey: true });
  assert.match(titles(), /Mean of 2 heads/, "the chosen one and the added one");
  key(cells[2], "Enter");
  assert.ok(titles().includes(name(cells[2])), "chosen alone again");
  key(cells[2], " "); // by keys: moving on keeps what is selected
  key(cells[2], "ArrowRight");
  assert.ok(titles().includes(name(cells[2])) && !titles().includes("Mean"));
  key(cells[3], " ");
  assert.match(titles(), /Mean of 2 heads/);
  key(cells[2], " ");
  assert.ok(titles().includes(name(cells[3])), "the one that is left, by its name");
  assert.deepEqual(view.order(1, 4, [0.1, NaN, 0.3, 0.3], true), [2, 3, 0, 1]);
  assert.equal(k.sent.filter((each) => each.op === "pattern").length, new Set(k.sent.filter((each) => each.op === "pattern").map((each) => each.layer)).size);
  close();
});

test("typing runs once it rests; what is typed is not a shortcut; Ctrl+Enter runs at once", (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const { root, k, key, ops, close } = setup();
  const prompt = root.get("gx-prompt");
  const runs = () => ops().filter((each) => each === "run").length;
  for (const text of ["a", "ab", "abc"]) {
    prompt.value = text;
    prompt.fire("input");
    t.mock.timers.tick(100);
  }
  assert.equal(runs(), 0);
  t.mock.timers.tick(400);
  assert.equal(runs(), 1);
  assert.equal(k.sent.filter((each) => each.op === "run").at(-1).prompt, "abc");
  const before = k.sent.length;
  for (const name of ["a", "p", "u", "x", "?"]) key(prompt, name);
  assert.equal(k.sent.length, before);
  key(prompt, "Enter", { ctrlKey: true });
  assert.equal(runs(), 2);
  close();
});

test("texts are never markup: tokens, names, code, errors", () => {
  const { root, k, key, close } = setup({ tokens: [NAUGHTY, "b", "<b>c</b>"] });
  assert.ok(root.get("gx-strip").textContent.includes(NAUGHTY));
  assert.ok(root.get("gx-next").textContent.includes(NAUGHTY));
  assert.ok(root.get("gx-lens").textContent.length > 10);
  key(root, "c");
  assert.ok(root.get("gx-code").textContent.includes(NAUGHTY));
  k.answers.pattern = () => [{ op: "error", text: NAUGHTY }, []];
  key(root, "]");
  assert.equal(root.get("gptj-alert").textContent, NAUGHTY);
  assert.ok(!/innerHTML|outerHTML|insertAdjacentHTML|document\.write/.test(source));
  close();
});

test("lens: each kind that the kernel has can be chosen, is asked for, and is kept", () => {
  const { root, k, last, close } = setup();
  const select = root.all("gx-control").map((each) => each.input).find((each) => each?.children.some((o) => o.value === "jacobian"));
  assert.deepEqual(select.children.map((each) => each.value), ["logit", "tuned", "jacobian"]);
  assert.equal(last("lens").kind, "logit");
  const hint = () => root.get("gx-panel").all("gx-hint").map((each) => each.textContent).join("");
  select.value = "jacobian";
  select.fire("change");
  assert.deepEqual([last("lens").kind, last("lens").stop - last("lens").start], ["jacobian", 8]);
  assert.match(hint(), /to first order/);
  assert.equal(k.model.get("view").lens, "jacobian");
  root.get("gx-next-pane").get("gx-link").fire("click");
  assert.equal(last("lens_of").kind, "jacobian");
  close();
  const without = setup({ about: { lenses: ["logit", "jacobian"] }, state: { view: { lens: "tuned" } } });
  assert.equal(without.last("lens").kind, "logit");
  without.close();
});

test("lens: rows from the output down, followed tokens as lines, an arrow at the border moves on", () => {
  const { root, k, key, last, close } = setup();
  const lens = root.get("gx-lens");
  assert.equal(lens.all("gx-lens-cell").length, 4 * 10);
  assert.equal(lens.all("gx-row")[1].children[0].textContent, "out");
  assert.equal(lens.all("gx-lens-cell").filter((each) => each.tabIndex === 0).length, 1);
  root.get("gx-next").all("gx-link")[1].fire("click");
  assert.deepEqual(last("lens_of").ids, [1]);
  assert.equal(k.traits.view.pins.length, 1);
  assert.ok(root.get("gx-plots").textContent.includes("rank (1 = likeliest)"));
  assert.match(root.get("gx-plots").textContent, /● ␣cat/);
  assert.match(root.get("gx-plots").textContent, /012output/, "the last place is the output's");
  const cells = lens.all("gx-lens-cell");
  const chosen = cells.find((each) => each.tabIndex === 0);
  key(chosen, "ArrowLeft");
  assert.equal(last("next").position, 8);
  close();
});

test("the run that is shown is shown below too, with B's next tokens", () => {
  const { root, k, last, close, tab, button } = setup();
  tab(3);
  root.all("gx-prompt").at(-1).value = "another";
  button("Run A and B").fire("click");
  tab(0);
  assert.match(root.get("gx-panel").textContent, /the text, unchanged: what/);
  k.answers.next = (m) => {
    const [message, buffers] = k.answers.intervene({ ...m, interventions: [] });
    buffers[3] = Float32Array.from({ length: 10 }, (_, i) => Math.log(i === 3 ? 0.25 : 0.05));
    return [{ ...message, compiled: undefined, kl: { after: null, b: 0.4321 } }, buffers];
  };
  const of = root.get("gx-matrix-pane").all("gx-control")[0].input;
  of.value = "b";
  of.fire("change");
  assert.equal(last("lens").of, "b");
  assert.match(root.get("gx-panel").textContent, /^.*B: what the network/);
  assert.match(root.get("gx-lens").textContent, /␣sat 2␣b3 3.*␣b9 9/, "B's own tokens");
  assert.match(line(root), /'␣b9' \(9\) reads/);
  assert.equal(root.get("gx-strip").children[4].children[0].textContent, "␣b4");
  assert.match(root.get("gx-next-pane").textContent, /After '␣b9'/);
  of.value = "b-a";
  of.fire("change");
  assert.equal(last("lens").of, "b", "as explorer.data has it");
  tab(1);
  assert.equal(last("attribute").of, "b");
  tab(6);
  assert.equal(last("exact").of, "b");
  tab(0);
  assert.match(root.get("gx-next-pane").textContent, /25\.0 %A .*KL from A: 0\.4321 nats.*full: B/);
  of.value = "a";
  of.fire("change");
  assert.ok(!/KL/.test(root.get("gx-next-pane").textContent));
  close();
});

test("of the next tokens the likeliest before or after are shown", () => {
  const { root, k, key, close } = setup();
  const own = k.answers.intervene;
  k.answers.intervene = (m) => {
    const [message] = own(m);
    const many = (f) => Float32Array.from({ length: 20 }, (_, i) => f(i));
    return [message, [Int32Array.from({ length: 20 }, (_, i) => i), many((i) => -1 - i), many((i) => (i === 17 ? -0.1 : -4 - i)), many(() => NaN), many(() => 0), many((i) => i)]];
  };
  key(root.all("gx-cell")[0], "a");
  const rows = root.get("gx-next").children.map((each) => each.textContent);
  assert.equal(rows.length, 10);
  assert.match(rows[0], /90\.5 %was/, "a token that was none of the likeliest");
  assert.match(rows[1], /^␣the/);
  close();
});

test("what is pinned or coded is what is shown at that moment", (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const { root, k, key, close } = setup();
  const told = [];
  k.model.save_changes = () => told.push(k.traits.selection.layer);
  key(root, "]");
  key(root, "c");
  assert.deepEqual(told, [1], "the selection goes before the question, without a pause");
  key(root, "]");
  key(root, "p");
  assert.deepEqual(told, [1, 2]);
  close();
});

test("a shorter B has its own tokens and cells, and no position beyond them", () => {
  const { root, k, close, tab, button, key, last } = setup();
  const own = k.answers.run;
  k.answers.run = (m) => {
    const [message, buffers] = own(m);
    const short = (all) => all.slice(0, 4);
    return [{ ...message, compare: { ...message.compare, aligned: false, tokens: short(message.compare.tokens), ids: short(message.compare.ids) } }, buffers];
  };
  const whole = k.answers.pattern;
  k.answers.pattern = (m) => {
    const [message, buffers] = whole(m);
    return m.of !== "b" ? [message, buffers] : [{ ...message, size: 4 }, [Uint8Array.from({ length: 4 * 10 }, (_, i) => i % 10 * 20)]];
  };
  tab(3);
  root.all("gx-prompt").at(-1).value = "another";
  button("Run A and B").fire("click");
  const of = root.get("gx-matrix-pane").all("gx-control")[0].input;
  assert.deepEqual(of.children.map((each) => each.value), ["a", "after", "after-a", "b"]);
  of.value = "b";
  of.fire("change");
  assert.match(line(root), /'␣b3' \(3\) reads 22\.1 % from 'The' \(0\)/, "120 of 255, squared");
  assert.equal(root.all("gx-token").length, 4);
  key(root.get("gx-heat"), "ArrowRight");
  assert.match(line(root), /'␣b3' \(3\) reads 30\.1 % from '␣cat' \(1\)/);
  of.value = "a";
  of.fire("change");
  assert.equal(root.all("gx-token").length, 10);
  assert.match(line(root), /'␣on' \(3\) reads/);
  close();
});

test("the crosshair follows the token, wherever that was chosen", () => {
  const { root, key, close } = setup();
  const matrix = root.get("gx-heat");
  key(root.all("gx-token")[9], "ArrowLeft");
  key(matrix, "ArrowUp");
  assert.match(line(root), /\(7\) reads/, "from the token that the strip chose");
  root.all("gx-lens-cell")[5].fire("click"); // position 5 of the first row
  key(matrix, "ArrowUp");
  assert.match(line(root), /\(4\) reads/, "from the one that the lens chose");
  close();
});

test("lines: a tick stands where its number says", () => {
  const make = view.maker(page());
  for (const [low, high, count] of [[0, 9.4, 5], [0, 0.57, 3], [-3, 1, 5], [0, 1, 6]]) {
    const svg = view.lines(make, { series: [{ name: "a", values: [low, high], style: 0 }], theme: "light", caption: "", unit: "" });
    const rules = svg.children.filter((each) => each.attributes.class === "gx-rule");
    assert.equal(rules.length, count, `${low} to ${high}`);
    for (const rule of rules) {
      const text = svg.children[svg.children.indexOf(rule) + 1].textContent;
      const there = 10 + (1 - (Number(text) - low) / (high - low)) * 144;
      assert.ok(Math.abs(there - rule.attributes.y1) < 1e-6, text);
    }
  }
});

test("attribution prints the sum and its check; the waterfall's steps add up", () => {
  const { root, tab, last, close } = setup();
  tab(1);
  assert.equal(last("attribute").position, 9);
  assert.match(root.get("gx-sum").textContent, /Σ of 18 parts = ([−-]?[\d.]+), logit of '␣cat' = \1.*✓/);
  const steps = view.waterfall([{ name: "a", value: 3 }, { name: "b", value: -5 }, { name: "c", value: 1 }, { name: "d", value: 0.5 }], 2);
  assert.deepEqual(steps.map((each) => each.name), ["b", "a", "2 others"]);
  assert.equal(steps.at(-1).to, -0.5);
  for (let i = 1; i < steps.length; i++) assert.equal(steps[i].from, steps[i - 1].to);
  assert.ok(steps.every((each) => each.left >= 0 && each.right <= 1));
  close();
});

test("a sweep is pulled; stop asks no more", () => {
  const { root, k, tab, button, close, ops } = setup({ late: false });
  tab(2);
  k.answers.sweep_next = (m) => {
    const asked = ops().filter((each) => each === "sweep_next").length;
    if (asked === 2) button("Stop").fire("click");
    return [{ op: "sweep", sweep: m.sweep, from: 0, done: asked, total: 30 }, [Float32Array.of(0.5)]];
  };
  button("Start").fire("click");
  assert.equal(ops().filter((each) => each === "sweep_next").length, 2);
  assert.ok(button("Start"));
  assert.match(root.get("gx-sentence").textContent, /Stopped at 1 of 30/);
  close();
});

test("a sweep of another prompt goes, and nothing that is left of it can fail", () => {
  const { root, tab, button, close } = setup();
  tab(2);
  button("Start").fire("click");
  button("Run").fire("click");
  const [map] = root.get("gx-panel").all("gx-heat");
  assert.ok(map.hidden);
  map.fire("keydown", { key: "+" }); // paints what was there
  map.fire("keydown", { key: "ArrowRight" });
  close();
});

test("patching shows the causal cone: nothing before the first token that differs", () => {
  const numbers = (pair) => {
    const { root, tab, button, key, close } = setup();
    tab(2);
    if (pair) {
      root.get("gx-panel").get("gx-prompt").value = "The cat sat off";
      button("Run A and B").fire("click");
    }
    button("Start").fire("click");
    const map = root.get("gx-panel").get("gx-heat");
    key(map, "+");
    const [canvas] = map.children;
    canvas.drawn = [];
    key(map, "-"); // painted anew, as a whole
    close();
    return canvas.drawn.filter((text) => /^[+−]?\d\.\d$/.test(text)).length;
  };
  assert.equal(numbers(false), 3 * 10);
  assert.equal(numbers(true), 3 * 7, "of ten tokens the first three are the same in A and B");
});

// The patching panel of a pair of prompts: B's cells, A's cells, and the pixel of a cell in them.
function patching(options) {
  const view = setup(options);
  view.tab(2);
  view.root.get("gx-panel").get("gx-prompt").value = "The cat sat off";
  view.button("Run A and B").fire("click");
  const [b, a] = view.root.get("gx-panel").get("gx-three").all("gx-heat");
  const at = (layer, position) => ({ clientX: 40 + (position + 0.5) * 37.4, clientY: 84 + (layer + 0.5) * 33 });
  return { ...view, a, b, at };
}
const put = ({ interventions }) => interventions.map(({ kind, site, layer, position, source }) => [kind, site, layer, position, source]);

test("patching by hand: a cell of B is dragged onto one of A", () => {
  const { a, b, at, last, ops, close, root } = patching();
  assert.deepEqual(root.all("gx-chip").length, 0);
  b.fire("pointerdown", at(1, 5));
  a.fire("pointermove", at(2, 7));
  a.fire("pointerup", at(2, 7));
  assert.deepEqual(put(last("intervene")), [["patch", "resid_pre", 2, 7, [1, 5]]]);
  assert.equal(last("lens").of, "after", "A's cells show what has become of it");
  b.fire("pointerdown", at(0, 4));
  b.fire("pointerup", { clientX: 5, clientY: 5 }); // beside both
  a.fire("pointerup", at(0, 4)); // nothing is dragged any more
  assert.equal(ops().filter((each) => each === "intervene").length, 1);
  b.fire("pointerdown", at(0, 4));
  a.fire("pointerup", at(0, 4));
  assert.equal(last("intervene").interventions.length, 2, "the first one stays");
  close();
});

test("patching by hand, by keys: Enter picks up, Enter drops, Escape leaves it", () => {
  const { a, b, key, last, ops, close, root } = patching();
  key(a, "Enter");
  assert.match(line(root), /Pick up a cell of B first/);
  for (const name of ["Home", "ArrowDown", "ArrowRight", "Enter"]) key(b, name);
  assert.match(line(root), /Picked up: B, layer 1, '␣cat' \(1\)/);
  key(b, "Escape");
  key(a, "Enter");
  assert.ok(!ops().includes("intervene"));
  key(b, "Enter");
  for (const name of ["Home", "ArrowRight", "ArrowRight", "Enter"]) key(a, name);
  assert.deepEqual(put(last("intervene")), [["patch", "resid_pre", 0, 2, [1, 1]]]);
  key(a, "Enter");
  assert.match(line(root), /Pick up a cell of B first/, "what was dropped is no longer carried");
  close();
});

test("two patches in one layer are two; B's value is offered where a sweep has a place for it", () => {
  const at = (layer, position) => ({ kind: "patch", site: "resid_pre", layer, position });
  assert.deepEqual(view.toggled([at(1, 2)], at(1, 3)), [at(1, 2), at(1, 3)]);
  assert.deepEqual(view.toggled([at(1, 2), at(1, 3)], at(1, 2)), [at(1, 3)]);
  const head = { kind: "patch_head", layer: 1, head: 0 };
  assert.deepEqual(view.toggled([head], { ...head, position: null }), []);
  const { button, close } = patching();
  const offered = () => button("Put B's value into A here");
  assert.ok(offered().disabled, "there was no sweep yet");
  button("Start").fire("click");
  assert.ok(!offered().disabled);
  close();
});

test("generation is pulled; stop asks no more and tells the kernel", () => {
  const { k, tab, button, close, ops } = setup();
  tab(4);
  k.answers.generate_next = () => {
    if (ops().filter((each) => each === "generate_next").length === 3) button("Stop").fire("click");
    return [{ op: "generated", names: {}, ids: [1], last: false }, [Float32Array.of(-1)]];
  };
  button("Continue the prompt").fire("click");
  assert.equal(ops().filter((each) => each === "generate_next").length, 3);
  assert.equal(ops().filter((each) => each === "generate_stop").length, 1);
  assert.equal(ops().at(-1) === "generate_next", false);
  close();
});

test("the scrubber tells with what probability a token came", () => {
  const { root, k, tab, close } = setup();
  const own = k.answers.run;
  k.answers.run = k.answers.hello = () => {
    const [message, buffers] = own({ prompt: "x" });
    return [{ ...message, prompt_tokens: 6 }, buffers];
  };
  k.reply({ op: "changed", req: "" });
  tab(4);
  const slider = root.get("gx-scrub").children[0].input;
  assert.deepEqual([slider.attributes.min ?? slider.min, slider.max], ["5", "9"]);
  slider.value = "6";
  slider.fire("input");
  assert.match(root.all("gx-sentence").at(-1).textContent, /At step 2 .*'␣the' came with 8\.2 %/);
  close();
});

test("compare: B's prompt, three matrices, heads that moved become a score", () => {
  const { root, k, tab, button, last, close, key } = setup();
  tab(3);
  const prompt = root.all("gx-prompt").at(-1);
  prompt.value = "another";
  button("Run A and B").fire("click");
  assert.equal(last("run").prompt_b, "another");
  const again = root.all("gx-prompt").at(-1);
  again.value = "a third";
  key(again, "Enter", { ctrlKey: true });
  assert.equal(last("run").prompt_b, "a third");
  assert.deepEqual(k.sent.filter((each) => each.op === "pattern").map((each) => each.of).slice(-2), ["b", "b-a"]);
  assert.match(root.get("gx-panel").textContent, /Head 1\.2 moved most/);
  root.get("gx-panel").all("gx-link")[0].fire("click");
  assert.deepEqual([k.traits.selection.layer, k.traits.selection.head], [1, 2]);
  close();
});

test("rotary and circuits are of the crosshair's two tokens", (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const { root, key, close, tab, last } = setup();
  tab(5);
  const matrix = root.get("gx-heat");
  key(matrix, "ArrowRight");
  key(matrix, "ArrowRight");
  t.mock.timers.tick(100);
  assert.deepEqual([last("rotary").query, last("rotary").key, last("circuit").token], [9, 2, 2]);
  close();
});

test("every panel opens, and is one of tabs that arrows walk", () => {
  const { root, key, close, tab } = setup();
  root.all("gx-tab").forEach((each, i) => {
    tab(i);
    assert.equal(root.all("gx-tab").filter((b) => b.attributes["aria-selected"] === "true").length, 1);
    assert.ok(root.get("gx-panel").textContent.length > 20, each.textContent);
  });
  key(root.all("gx-tab")[6], "Home");
  assert.equal(root.all("gx-tab")[0].attributes["aria-selected"], "true");
  assert.equal(root.get("gptj-alert").hidden, true);
  close();
});

test("stale weights grey the view until it is run again; an outdated run says hello", () => {
  const { root, k, ops, key, close, button } = setup();
  k.traits.stale = "The weights have changed.";
  k.fire("change:stale");
  assert.equal(root.dataset.stale, "true");
  assert.equal(root.get("gptj-alert").textContent, "The weights have changed.");
  button("Run again").fire("click");
  assert.equal(root.dataset.stale, "false");
  const own = k.answers.pattern;
  k.answers.pattern = () => [{ op: "outdated", run: 9 }, []];
  const hellos = ops().filter((each) => each === "hello").length;
  k.answers.hello = () => { k.answers.pattern = own; return k.answers.run({ prompt: "x" }); };
  key(root, "]");
  assert.equal(ops().filter((each) => each === "hello").length, hellos + 1);
  k.reply({ op: "changed", req: "" });
  assert.equal(ops().filter((each) => each === "hello").length, hellos + 2);
  close();
});

test("a kernel that is gone makes the view stale: by its own, and whatever is clicked", (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const closed = () => { throw new Error("Cannot send"); };
  const { root, k, close, button } = setup();
  k.model.send = closed;
  k.fire("comm_live_update");
  t.mock.timers.tick(1100);
  assert.equal(root.dataset.stale, "true");
  assert.match(root.get("gptj-alert").textContent, /kernel of this view is gone.*run its cell again/);
  assert.ok(button("Run again").hidden, "it would not help");
  assert.deepEqual([root.dataset.busy, root.dataset.waiting], ["false", "false"]);
  close();
  const other = setup();
  Object.assign(other.k.model, { send: closed, save_changes: closed });
  other.key(other.root, "]");
  t.mock.timers.tick(400);
  assert.equal(other.root.dataset.stale, "true");
  other.close();
});

test("an error ends the waiting, of a run too; a run that takes long says so", (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const { root, k, button, close, tab } = setup();
  const refuse = (m) => [{ op: "error", text: `no ${m.op}` }, []];
  const { sweep } = k.answers;
  Object.assign(k.answers, { sweep: refuse, run: refuse });
  tab(2);
  button("Start").fire("click");
  assert.deepEqual([root.get("gptj-alert").textContent, root.dataset.waiting], ["no sweep", "false"]);
  assert.equal(root.get("gx-said").textContent, "no sweep", "beside what was clicked, too");
  k.answers.sweep = sweep;
  k.answers.generate = refuse;
  tab(4);
  button("Continue the prompt").fire("click");
  assert.ok(button("Continue the prompt"), "nothing runs that could be stopped");
  k.reply({ op: "changed", req: "" }); // read anew, which takes an error away
  tab(2);
  k.answers.sweep = refuse;
  button("Start").fire("click");
  k.answers.sweep = sweep;
  tab(0);
  tab(2);
  assert.equal(root.get("gptj-alert").hidden, false, "until what was refused is done");
  button("Start").fire("click");
  assert.equal(root.get("gptj-alert").hidden, true);
  button("Run").fire("click");
  assert.deepEqual([root.get("gptj-alert").textContent, root.dataset.waiting, root.dataset.busy], ["no run", "false", "false"]);
  assert.equal(root.get("gx-status").textContent, "", "not computing any more");
  k.model.send = () => {};
  button("Run").fire("click");
  assert.equal(root.dataset.waiting, "true");
  t.mock.timers.tick(5100);
  assert.match(root.get("gx-status").textContent, /kernel is busy/);
  close();
});

test("a question that is refused is not asked again and again", () => {
  const { root, k, key, close, ops } = setup();
  Object.assign(k.answers, { next: () => [{ op: "error", text: "no memory" }, []] });
  const before = ops().length;
  key(root.all("gx-token")[3], "ArrowRight");
  root.all("gx-lens-cell")[5].fire("click");
  assert.ok(ops().length < before + 20);
  assert.equal(root.get("gptj-alert").textContent, "no memory");
  close();
});

test("what is typed and not read is said: of an empty prompt, and where reading is slow", (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const { root, ops, close } = setup();
  const prompt = root.get("gx-prompt");
  prompt.value = "";
  prompt.fire("input");
  t.mock.timers.tick(500);
  assert.ok(!ops().includes("run"));
  assert.match(root.get("gx-status").textContent, /not read yet/);
  close();
});

test("what Python selects is shown; a closed view lets go", () => {
  const { doc, root, k, last, close } = setup();
  k.traits.selection = { layer: 2, head: 1, query: 4, key: 2, of: "a" };
  k.fire("change:selection");
  assert.match(line(root), /Layer 2 head 1: '␣the' \(4\) reads .* from '␣sat' \(2\)/);
  assert.deepEqual([last("next").position, last("lens_of")?.position ?? last("lens").of], [4, "a"], "in every pane");
  assert.match(root.get("gx-next-pane").textContent, /After '␣the'/);
  assert.match(root.get("gx-aside").textContent, /after '␣the'/);
  for (const query of [null, 300]) { // the last token
    k.traits.selection = { layer: 2, head: 1, query, key: null, of: "a" };
    k.fire("change:selection");
    assert.match(line(root), /'␣slept' \(9\) reads .* from 'The' \(0\)/);
  }
  close();
  assert.ok(Object.values(k.handlers).every((each) => each.length === 0));
  assert.ok(doc.disconnected);
});

test("a long text comes head by head and pooled: cells stand for tiles, and the view says so", () => {
  const { root, k, key, last, close } = setup();
  const own = k.answers.run;
  k.answers.run = k.answers.hello = () => {
    const [message, buffers] = own({ prompt: "x" });
    return [{ ...message, mode: "pooled", notes: ["A cell is the largest of several weights."] }, buffers];
  };
  k.answers.pattern = (m) => [{ op: "pattern", layer: m.layer, of: m.of, first: m.head, heads: 1, mode: "pooled", size: 5, signed: false, scale: 1, part: 0, parts: 1 },
    [Uint8Array.from({ length: 15 }, (_, i) => 10 * i)]];
  k.reply({ op: "changed", req: "" });
  assert.equal(last("pattern").head, 0);
  assert.match(root.get("gx-note").textContent, /the largest of several weights/);
  const matrix = root.get("gx-heat");
  key(matrix, "Home");
  key(matrix, "ArrowUp"); // from the tile of tokens 8 and 9 to that of 6 and 7
  key(matrix, "ArrowRight");
  assert.match(line(root), /'␣and' \(6\) reads 7\.5 % from '␣sat' \(2\)/, "70 of 255, squared");
  key(matrix, "Enter");
  assert.equal(last("exact").query, 6);
  close();
});

test("zoom, layout and pooling", () => {
  assert.deepEqual(view.part(100, 4, 50), [38, 63]);
  assert.deepEqual(view.part(100, 4, 99), [75, 100]);
  assert.deepEqual(view.part(3, 8, 1), [0, 3]);
  const { n, m, found } = view.pool({ q: (r, c) => (c > r ? -1 : r * 10 + c) }, [0, 4], [0, 4], 2);
  assert.deepEqual([n, m, ...found], [2, 2, 11, -1, 31, 33]);
  assert.deepEqual([...view.pool({ zero: 128, q: (r, c) => [128, 10, 200, 130][c] }, [0, 1], [0, 4], 4).found], [10]);
  const place = view.layout(400, 10, 10);
  assert.ok(place.left + 10 * place.w <= 400);
  assert.equal(view.around(0, 1), 128);
  assert.deepEqual([view.around(5, 1), view.around(-5, 1), view.around(NaN, 1)], [255, 1, -1]);
});
