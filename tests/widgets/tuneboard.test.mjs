// tuneboard.js with a fake document and a fake kernel: the pull loop, controls, keys, escaping.
import assert from "node:assert/strict";
import { afterEach, mock, test } from "node:test";

import { Node, module, page as makePage } from "./page.mjs";

const { source, view } = await module("tuneboard");
const NAUGHTY = "<img src=x onerror=alert(1)>";
const FIELDS = [
  { name: "method", owner: "method", kind: "choice", label: "method", default: "lora", method: null, choices: [["lora", "LoRA"], ["full", "full"]], hint: "" },
  { name: "rank", owner: "method", kind: "int", label: "rank", default: 8, method: "lora", choices: [], hint: NAUGHTY },
  { name: "targets", owner: "method", kind: "targets", label: "matrices", default: ["q"], method: "lora", choices: [["q", "q"], ["v", "v"]], hint: "" },
  { name: "steps", owner: "run", kind: "int", label: "steps", default: 200, method: null, choices: [], hint: "" },
  { name: "prompts", owner: "run", kind: "lines", label: "prompts", default: [], method: null, choices: [], hint: "" },
  { name: "seed", owner: "run", kind: "int", label: "seed", default: 0, method: null, choices: [], hint: "" },
];
const FORM = { method: "lora", rank: 8, targets: ["q"], steps: 200, prompts: ["Once"], seed: 0 };
const PLAN = { sentence: "LoRA trains little", fits: true, needed: 2e9, device: 8e9, trainable: 1000, total: 1e6, flops: 1e9, bytes: [["weights", 1e9], ["gradients", 1e9]], rate: 2e-4, tokens: 1024, context: 128 };
const STATE = { op: "state", data: 1, preparing: false, data_error: "", has_data: true, runs: 0, run: null, status: "none", table: [], others: [], flags: [], evaluations: 0, note: "" };
const RUNNING = { ...STATE, runs: 1, run: 0, status: "running", step: 40, steps: 200, seconds_left: 75, base_loss: 3.5, tokens_per_second: 1234, error: "", title: "tiny", can_save: true, active: true,
  flags: [{ kind: "note", text: NAUGHTY }], evaluations: 2, table: [{ run: 0, status: "running", step: 40, steps: 200, loss: 2.5, held_out: 2.75, best_step: 20, seconds: 12, differs: {} }] };
const DATA = { op: "data", name: NAUGHTY, sentences: [NAUGHTY, "LEAK: one"], documents: 2, tokens: 300, bytes: 900, context: 128, train_windows: 3, held_out_windows: 1, padding: 0.25, trained: 1, copies: 0, near_copies: 0,
  overlap: 0.01, edges: [1, 2, 4], counts: [0, 1, 2], windows: [[100, 28], [64]] };

function setup() {
  mock.timers.enable({ apis: ["setTimeout"] });
  const doc = makePage();
  const el = new Node("div", doc);
  const sent = [];
  const handlers = {};
  const about = { version: 1, session: "s", name: "tiny", title: NAUGHTY, context: 128, upload_bytes: 1000, part_bytes: 300, fields: FIELDS };
  const model = {
    get: () => about,
    send: (message, _, buffers) => sent.push({ ...message, buffers }),
    on: (name, f) => (handlers[name] = f),
    off: (name) => delete handlers[name],
  };
  const close = view.default.render({ model, el });
  const answer = (op, content, buffers = []) => {
    const asked = sent.findLast((each) => each.op === op && !each.answered);
    assert.ok(asked, `${op} was asked`);
    asked.answered = true;
    handlers["msg:custom"]({ ...content, req: asked.req }, buffers.map((each) => new DataView(each.buffer)));
  };
  const ops = () => sent.map((each) => each.op);
  const last = (op) => sent.findLast((each) => each.op === op);
  return { doc, el, model, sent, ops, last, answer, close, handlers };
}
afterEach(() => mock.timers.reset());

function curves(n, f = (i) => 3 - i / n) {
  const all = new Float32Array(7 * n);
  for (let c = 0; c < 7; c++) for (let i = 0; i < n; i++) all[c * n + i] = c === 0 ? i + 1 : c === 1 ? f(i) : c + i;
  return all;
}
const EVALUATIONS = Float32Array.from([0, 20, 3.5, 2.75, NaN, 2.9]);

test("it asks for board and state, for the text when there is one, and again after a while", () => {
  const { ops, answer, el } = setup();
  assert.deepEqual(ops(), ["hello", "poll"]);
  answer("hello", { op: "board", form: FORM, plan: PLAN });
  answer("poll", STATE);
  assert.deepEqual(ops().slice(2), ["data"]);
  answer("data", DATA);
  assert.match(el.get("gt-verdict").textContent, /✓ it fits: about 2\.0 GB of 8\.0 GB/);
  assert.equal(el.get("gt-start").disabled, false);
  mock.timers.tick(4900);
  assert.equal(ops().length, 3);
  mock.timers.tick(200);
  assert.equal(ops().at(-1), "poll");
});

test("start sends the form; while it runs there are two questions a second, one in flight", () => {
  const { el, ops, last, answer } = setup();
  answer("hello", { op: "board", form: FORM, plan: PLAN });
  answer("poll", STATE);
  el.get("gt-start").fire("click");
  assert.deepEqual(last("start").form, { ...FORM, rank: 8, steps: 200 });
  answer("start", RUNNING, [curves(40), EVALUATIONS]);
  assert.equal(el.get("gt-start").disabled, true);
  assert.equal(el.get("gt-pause").textContent, "Pause");
  assert.match(el.get("gt-status").textContent, /running: step 40 of 200, 1 min 15 s left/);
  assert.equal(last("samples").index, 1);
  const before = ops().filter((each) => each === "poll").length;
  mock.timers.tick(2000); // the poll from before the start is answered? one is in flight at most
  assert.equal(ops().filter((each) => each === "poll").length, before + 1);
  mock.timers.tick(3000);
  assert.equal(ops().filter((each) => each === "poll").length, before + 1, "it waits for its answer");
});

test("pause, resume, stop and checkpoint, by button and by key, only where they mean something", () => {
  const { el, last, ops, answer } = setup();
  answer("hello", { op: "board", form: FORM, plan: PLAN });
  answer("poll", RUNNING, [curves(40), EVALUATIONS]);
  el.get("gt-pause").fire("click");
  assert.equal(last("pause").run, null);
  answer("pause", { ...RUNNING, status: "paused" }, [curves(40), EVALUATIONS]);
  assert.equal(el.get("gt-pause").textContent, "Resume");
  el.get("gt-tab").fire("keydown", { key: "p" });
  answer("resume", RUNNING, [curves(40), EVALUATIONS]);
  el.get("gt-tab").fire("keydown", { key: "k" });
  answer("checkpoint", RUNNING, [curves(40), EVALUATIONS]);
  el.get("gt-stop").fire("click");
  answer("stop", { ...RUNNING, status: "stopped", active: false }, [curves(40), EVALUATIONS]);
  assert.equal(el.get("gt-stop").disabled, true);
  assert.equal(el.get("gt-start").disabled, false);
  const count = ops().length;
  el.get("gt-tab").fire("keydown", { key: "x" });
  assert.equal(ops().length, count, "nothing is running");
  el.get("gt-lines").fire("keydown", { key: "s" });
  assert.equal(ops().length, count, "who writes a prompt starts nothing");
});

test("numbers, curves, flags and samples are those that came, and never markup", () => {
  const { el, answer } = setup();
  answer("hello", { op: "board", form: FORM, plan: PLAN });
  answer("poll", RUNNING, [curves(40), EVALUATIONS]);
  answer("data", DATA);
  answer("samples", { op: "samples", index: 1, count: 2, step: 20, items: [{ prompt: NAUGHTY, pieces: [["the ", false], [NAUGHTY, true]] }] });
  assert.equal(el.get("gt-flag").textContent, NAUGHTY);
  assert.equal(el.get("gt-sample").textContent, `${NAUGHTY}the ${NAUGHTY}`);
  assert.equal(el.all("gt-new")[0].tagName, "INS");
  assert.equal(el.all("gt-value")[1].textContent, "2.750");
  assert.equal(el.all("gt-value")[2].textContent, "2.750 at 20");
  const chart = find(el, "SVG", (each) => each.attributes.class === "gt-chart");
  assert.match(chart.getAttribute("aria-label"), /held-out loss 2\.750 at step 20/);
  chart.fire("keydown", { key: "Home" });
  assert.match(el.get("gt-line").textContent, /training loss 3\.000 at step 1/);
  assert.match(el.get("gt-sentences").textContent, /LEAK/);
  assert.ok(!/innerHTML|outerHTML|insertAdjacentHTML|document\.write/.test(source));
  assert.ok(!/https?:/.test(source.replaceAll("http://www.w3.org/2000/svg", "")));
});
function find(node, tag, is = () => true) {
  return node.tagName === tag && is(node) ? node : node.children.map((each) => find(each, tag, is)).find(Boolean);
}

test("a dropped file goes in parts, one at a time; a large one is refused here", async () => {
  const { el, last, sent, answer } = setup();
  answer("hello", { op: "board", form: FORM, plan: PLAN });
  answer("poll", STATE);
  const drop = el.get("gt-drop");
  const file = (n, name) => Object.assign(new Blob(["x".repeat(n)]), { name });
  drop.fire("drop", { dataTransfer: { files: [file(700, "a.txt")] } });
  await new Promise(setImmediate);
  for (const part of [0, 1, 2]) {
    const up = last("upload");
    assert.equal(up.part, part);
    assert.equal(up.parts, 3);
    assert.equal(up.buffers[0].byteLength, part === 2 ? 100 : 300);
    answer("upload", { op: "uploaded", next: part + 1, done: part === 2 });
  }
  assert.equal(sent.at(-1).op, "poll");
  const count = sent.length;
  drop.fire("drop", { dataTransfer: { files: [file(1001, `${NAUGHTY}.txt`)] } });
  await new Promise(setImmediate);
  assert.equal(sent.length, count);
  assert.ok(el.get("gptj-alert").textContent.startsWith(`${NAUGHTY}.txt is larger than`));
});

test("the form shows the lines of its method, tells changes, and what does not fit", () => {
  const { el, last, answer } = setup();
  answer("hello", { op: "board", form: FORM, plan: PLAN });
  answer("poll", STATE);
  const [method, rank] = el.all("gt-field");
  assert.equal(rank.hidden, false);
  const select = find(method, "SELECT");
  select.value = "full";
  select.fire("change");
  mock.timers.tick(200);
  assert.equal(last("change").form.method, "full");
  answer("change", { op: "board", form: { ...FORM, method: "full" }, plan: { ...PLAN, fits: false } });
  assert.equal(rank.hidden, true);
  assert.match(el.get("gt-verdict").textContent, /✗ it does not fit/);
});

test("an error is a sentence and the questions go on; a script's change is asked for", () => {
  const { el, ops, answer, handlers } = setup();
  answer("hello", { op: "board", form: FORM, plan: PLAN });
  answer("poll", { op: "error", text: NAUGHTY });
  assert.equal(el.get("gptj-alert").textContent, NAUGHTY);
  assert.equal(el.get("gptj-alert").hidden, false);
  mock.timers.tick(5100);
  assert.equal(ops().at(-1), "poll");
  answer("poll", STATE);
  handlers["msg:custom"]({ op: "changed", req: "" }, []);
  assert.deepEqual(ops().slice(-2), ["hello", "poll"]);
});

test("base and tuned model open below, in any notebook's widget manager, or a sentence says how", async () => {
  const { el, model, last, answer } = setup();
  answer("hello", { op: "board", form: FORM, plan: PLAN });
  answer("poll", RUNNING, [curves(4), EVALUATIONS]);
  const shown = new Node("p", model.doc);
  model.widget_manager = { get_model: async (id) => ({ id }), create_view: async (m) => ({ el: Object.assign(shown, { text: m.id }) }) };
  el.all("gx-primary")[1].fire("click");
  assert.equal(last("open").what, "playground");
  answer("open", { op: "opened", what: "playground", model: "m7", step: 40 });
  await new Promise(setImmediate);
  assert.equal(el.get("gt-stage").textContent, "m7");
  delete model.widget_manager;
  el.all("gx-primary")[2].fire("click");
  answer("open", { op: "opened", what: "explorer", model: "m8", step: 40 });
  await new Promise(setImmediate);
  assert.ok(el.textContent.includes("run board.explorer() in a cell"));
});

test("the best model is offered when the run has ended, and what is open is opened anew", async () => {
  const { el, model, last, ops, answer } = setup();
  answer("hello", { op: "board", form: FORM, plan: PLAN });
  answer("poll", RUNNING, [curves(4), EVALUATIONS]);
  const box = find(el, "LABEL", (each) => each.textContent === "the best model, not the last").input;
  assert.equal(box.disabled, true);
  assert.ok(el.textContent.includes("when the run has ended"));
  model.widget_manager = { get_model: async (id) => ({ id }), create_view: async () => ({ el: new Node("p", model.doc) }) };
  el.all("gx-primary")[1].fire("click");
  answer("open", { op: "opened", what: "playground", model: "m7", step: 40 });
  mock.timers.tick(600);
  const ended = { ...RUNNING, status: "finished", active: false, best: false };
  answer("poll", ended, [curves(4), EVALUATIONS]);
  assert.equal(box.disabled, false);
  assert.ok(el.textContent.includes("held-out loss 2.750 at step 20 of 40"));
  Object.assign(box, { type: "checkbox", checked: true });
  box.fire("change");
  assert.equal(last("weights").best, true);
  answer("weights", { op: "scaled", scale: 1, best: true, step: 20, text: NAUGHTY });
  assert.ok(el.textContent.includes(NAUGHTY));
  assert.equal(ops().at(-1), "open");
  mock.timers.tick(5100);
  answer("poll", { ...ended, best: true, table: [{ ...RUNNING.table[0], held_out: null }] }, [curves(4), EVALUATIONS]);
  assert.equal(box.checked, true);
  assert.equal(box.disabled, true);
  assert.ok(el.textContent.includes("needs a held-out loss"));
});

test("the kernel that is gone or silent is told, and a closed view lets go", () => {
  const { doc, el, close, model, handlers } = setup();
  mock.timers.tick(8100);
  assert.match(el.get("gt-status").textContent, /kernel is busy/);
  model.comm_live = false;
  handlers.comm_live_update();
  assert.match(el.get("gptj-alert").textContent, /kernel of this view is gone/);
  close();
  assert.deepEqual(handlers, {});
  assert.ok(doc.disconnected);
});

test("tabs are walked by arrow keys and numbers", () => {
  const { doc, el, answer } = setup();
  answer("hello", { op: "board", form: FORM, plan: PLAN });
  answer("poll", STATE);
  const tabs = el.all("gt-tab");
  tabs[0].focus();
  tabs[0].fire("keydown", { key: "ArrowRight" });
  assert.equal(doc.active, tabs[1]);
  assert.deepEqual(tabs.map((each) => each.getAttribute("aria-selected")), ["false", "true", "false", "false", "false"]);
  tabs[1].fire("keydown", { key: "5" });
  assert.equal(doc.active, tabs[4]);
  assert.equal(el.get("gt-panels").children.filter((each) => !each.hidden).length, 1);
});

test("numbers are as a person reads them", () => {
  assert.deepEqual([0.00021, 2.5, 1234.5, 0, NaN, null].map((v) => view.digits(v)), ["2.1e-4", "2.50", "1235", "0", "–", "–"]);
  assert.deepEqual([75, 4000, 5, null].map(view.span), ["1 min 15 s", "1 h 6 min", "5 s", "–"]);
  assert.deepEqual([999, 1500, 2.5e9].map(view.size), ["999 bytes", "1.5 kB", "2.5 GB"]);
  assert.deepEqual(view.ticks(0, 10, 5), [0, 2, 4, 6, 8, 10]);
  assert.deepEqual(view.smoothed([2, NaN, 4, 5, 9]), [2, 3, 5, 6, 9]);
});
