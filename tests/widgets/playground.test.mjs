// playground.js with a fake document and a fake kernel: protocol, keys, escaping, palette.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Node, module, page as makePage } from "./page.mjs";

const { source, view } = await module("playground");

function setup(more = {}) {
  const doc = makePage();
  const el = new Node("div", doc);
  const sent = [];
  const handlers = [];
  const state = { model_name: "tiny", prompt: "a <b>",
    settings: { temperature: 0.8, top_p: 0.95, top_k: 0, max_new_tokens: 9, seed: 0 }, ...more };
  const model = {
    get: (name) => state[name],
    send: (message) => sent.push(message),
    on: (_, f) => handlers.push(f),
    off: (_, f) => handlers.splice(handlers.indexOf(f), 1),
  };
  const close = view.default.render({ model, el });
  const answer = (message, buffers = []) => [...handlers].forEach((f) => f(message, buffers));
  return { doc, el, sent, answer, close, handlers };
}

function tokens(req, ids, names, more = {}) {
  const bytes = (array) => new DataView(array.buffer);
  const n = ids.length;
  const logprobs = Float32Array.from(ids, (_, i) => Math.log([0.9, 0.3, 0.004][i % 3]));
  const others = new Int32Array(10 * n).fill(7);
  const otherLogprobs = new Float32Array(10 * n).fill(-Infinity);
  for (let i = 0; i < n; i++) { others[10 * i] = ids[i]; otherLogprobs[10 * i] = logprobs[i]; otherLogprobs[10 * i + 1] = -9; }
  return [{ op: "tokens", req, where: "output", last: true, old: false, finish_reason: null, names, ...more },
    [Int32Array.from(ids), logprobs, others, otherLogprobs].map(bytes)];
}

test("it pulls: start, next after started, next after each chunk, nothing after the end", () => {
  const { el, sent, answer } = setup();
  assert.equal(sent[0].op, "hello");
  el.get("gptj-generate").fire("click");
  const start = sent.at(-1);
  assert.equal(start.op, "start");
  assert.equal(start.prompt, "a <b>");
  assert.equal(start.settings.temperature, "0.8");
  answer({ op: "started", req: start.req, notes: ["careful"] });
  assert.equal(el.get("gptj-note").textContent, "careful");
  assert.equal(sent.at(-1).op, "next");
  answer(...tokens(start.req, [1, 2], { 1: ["␣a", " a"], 2: ["b", "b"], 7: ["z", "z"] }));
  assert.equal(sent.at(-1).op, "next");
  assert.equal(sent.length, 4);
  answer(...tokens(start.req, [3], { 3: ["‹E2›", null] }, { finish_reason: "length" }));
  assert.equal(sent.length, 4);
  assert.equal(el.get("gptj-tokens").textContent, " ab‹E2›");
  assert.match(el.get("gptj-status").textContent, /length is reached: 3 tokens/);
  assert.equal(el.get("gptj-generate").disabled, false);
});

test("stop asks no more, tells the kernel, and drops what is on its way", () => {
  const { el, sent, answer } = setup();
  el.get("gptj-generate").fire("click");
  const { req } = sent.at(-1);
  answer({ op: "started", req, notes: [] });
  el.get("gptj-prompt").fire("keydown", { key: "Escape" });
  assert.deepEqual(sent.at(-1), { op: "cancel", req });
  answer(...tokens(req, [1], { 1: ["a", "a"] }));
  assert.equal(el.get("gptj-tokens").children.length, 0);
  assert.equal(sent.at(-1).op, "cancel");
  el.get("gptj-prompt").fire("keydown", { key: "Enter", ctrlKey: true });
  assert.equal(sent.at(-1).op, "start");
  assert.notEqual(sent.at(-1).req, req);
});

test("texts are never markup", () => {
  const { el, sent, answer } = setup();
  const naughty = "<img src=x onerror=alert(1)>";
  el.get("gptj-generate").fire("click");
  const { req } = sent.at(-1);
  answer({ op: "started", req, notes: [naughty] });
  answer(...tokens(req, [1], { 1: [naughty, naughty], 7: ["z", "z"] }));
  el.get("gptj-tokens").children[0].fire("pointerover");
  assert.equal(el.get("gptj-tokens").textContent, naughty);
  assert.ok(el.get("gptj-detail").textContent.includes(naughty));
  answer({ op: "error", req, text: naughty });
  assert.equal(el.get("gptj-alert").textContent, naughty);
  assert.ok(!/innerHTML|outerHTML|insertAdjacentHTML|document\.write/.test(source));
});

test("arrow keys walk, the chosen token shows its probability, rank and alternatives", () => {
  const { doc, el, sent, answer } = setup();
  el.get("gptj-generate").fire("click");
  const { req } = sent.at(-1);
  answer({ op: "started", req, notes: [] });
  answer(...tokens(req, [1, 2, 3], { 1: ["a", "a"], 2: ["b", "b"], 3: ["c", "c"], 7: ["z", "z"] }));
  const list = el.get("gptj-tokens").children;
  list[0].focus();
  list[0].fire("keydown", { key: "ArrowRight" });
  assert.equal(doc.active, list[1]);
  list[1].fire("keydown", { key: "End" });
  assert.equal(doc.active, list[2]);
  list[2].fire("keydown", { key: "ArrowRight" });
  assert.equal(doc.active, list[2]);
  assert.equal(list.filter((n) => n.tabIndex === 0).length, 1);
  assert.match(el.get("gptj-probability").textContent, /0\.4 %, number 1/);
  assert.equal(el.get("gptj-alternatives").children.length, 2);
});

test("two models: B's text is asked for after A's, and where they part is framed and told", () => {
  const { el, sent, answer } = setup({ model_b_name: "base <b>" });
  assert.equal(el.all("gptj-tokens").length, 2);
  assert.ok(el.get("gptj-texts").textContent.includes("base <b>"));
  el.get("gptj-generate").fire("click");
  const names = { 1: ["a", "a"], 2: ["b", "b"], 3: ["c", "c"], 7: ["z", "z"] };
  assert.equal(sent.at(-1).of, "a");
  answer({ op: "started", req: sent.at(-1).req, notes: [] });
  answer(...tokens(sent.at(-1).req, [1, 2, 3], names, { of: "a", finish_reason: "length" }));
  const start = sent.at(-1);
  assert.equal(start.op, "start");
  assert.equal(start.of, "b");
  answer({ op: "started", req: start.req, notes: [] });
  answer(...tokens(start.req, [1, 3], names, { of: "b", finish_reason: "length" }));
  const [a, b] = el.all("gptj-tokens");
  assert.deepEqual([a.textContent, b.textContent], ["abc", "ac"]);
  assert.ok(a.children[1].classList.contains("gptj-parting") && b.children[1].classList.contains("gptj-parting"));
  assert.match(el.get("gptj-status").textContent, /the texts share 1 token and then part/);
  assert.equal(el.get("gptj-generate").disabled, false);
  b.children[0].focus();
  b.children[0].fire("keydown", { key: "End" });
  assert.equal(b.children[1].getAttribute("aria-selected"), "true");
  assert.equal(a.children[1].getAttribute("aria-selected"), "false");
});

test("a closed view lets go", () => {
  const { doc, close, handlers } = setup();
  close();
  assert.equal(handlers.length, 0);
  assert.ok(doc.disconnected);
});

test("the theme is the notebook's", () => {
  const page = (attributes, html = "", background = "rgb(255, 255, 255)", code = "") => {
    const doc = makePage();
    Object.assign(doc.body.attributes, attributes);
    doc.documentElement.className = html;
    return view.theme(doc, () => ({ getPropertyValue: () => code, backgroundColor: background }));
  };
  assert.equal(page({ "data-jp-theme-light": "false" }), "dark");
  assert.equal(page({ "data-jp-theme-light": "true" }, "dark"), "light");
  assert.equal(page({}, "dark"), "dark");
  assert.equal(page({}, "", undefined, "#1e1e1e"), "dark");
  assert.equal(page({}, "", "rgb(20, 20, 20)"), "dark");
  assert.equal(page({}, "", "rgba(0, 0, 0, 0)"), "light");
});

test("every shade can be read, and told from its neighbours with any colour vision", () => {
  const contrast = (a, b) => {
    const [x, y] = [view.luminance(a), view.luminance(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  for (const kind of ["light", "dark"]) {
    const shades = view.BINS.map((each) => each[kind]);
    shades.forEach(([back, ink]) => assert.ok(contrast(back, ink) >= 4.5, `${kind} ${back} ${ink}`));
    // One hue, steps in lightness alone: what no colour vision can lose.
    const light = shades.map(([back]) => view.luminance(back));
    const sorted = [...light].sort((a, b) => (kind === "light" ? b - a : a - b));
    assert.deepEqual(light, sorted);
    for (let i = 1; i < shades.length; i++) {
      assert.ok(contrast(shades[i - 1][0], shades[i][0]) >= 1.15, `${kind} ${i}`);
    }
  }
  assert.deepEqual([0.9, 0.5, 0.49, 0.05, 0.01, 0.001, 0].map(view.bin), [0, 0, 1, 2, 3, 4, 4]);
  assert.equal(view.percent(Math.log(0.123)), "12 %");
  assert.equal(view.percent(Math.log(0.0042)), "0.4 %");
  assert.ok(source.length < 60_000);
});

test("settings beyond the usual ones have a control where they are set, and are sent", () => {
  const usual = { temperature: 0.8, top_p: 0.95, top_k: 0, max_new_tokens: 9, seed: 0 };
  const { el, sent } = setup({ settings: { ...usual, repetition_penalty: 1.1 } });
  el.get("gptj-generate").fire("click");
  assert.equal(sent.at(-1).settings.repetition_penalty, "1.1");
  assert.equal("min_p" in sent.at(-1).settings, false);
});
