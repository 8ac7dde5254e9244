// The Explorer's view: a prompt, all heads, one head's weights, what comes next, and below them
// the lens, attribution, patching, comparison, generation and GPT-J's own views. Every pane asks
// the kernel for its own data and shows the same selection. The kernel's half is explorer.py.

const STARTS = { of: "a", reduce: "mean", sink: false, ramp: "plain", gamma: 1, score: "", sorted: false,
  reads: true, tab: "lens", how: "zero", pins: [] };
const SAVED = Object.keys(STARTS);
const OF = { a: "this run", after: "after switching off", "after-a": "after − before", b: "B", "b-a": "B − A" };
const KEYS = [["/", "prompt"], ["h", "heads"], ["m", "matrix"], ["t", "tokens"], ["a", "switch the head off or on"], ["l", "its layer's MLP"],
  ["x", "cut the arrow under the crosshair"], ["u", "undo"], ["s", "hide the first token"], ["[ and ]", "layer down, up"], ["p", "pin a picture"],
  ["c", "code"], ["?", "this list"], ["arrows, Home, End, PgUp, PgDn", "move inside heads, matrix, tokens and grids"],
  ["Enter", "choose, hold the cell"], ["Space", "add a head to the selection"], ["+ and −", "zoom the matrix"]];
let views = 0;

function render({ model, el }) {
  const doc = el.ownerDocument;
  const make = maker(doc);
  const about = model.get("about");
  const { layers, heads } = about;
  const first = model.get("selection") ?? {};
  const state = { ...STARTS, ...model.get("view"), layer: first.layer ?? 0, head: first.head ?? 0,
    query: first.query ?? null, key: first.key ?? null, selected: new Set() };
  state.of = first.of ?? state.of;
  const cuts = () => model.get("interventions") ?? []; // what is switched off
  const history = [];
  let ran = null; // the run that is shown
  let patterns = new Map(); // "of:layer.head" → {size, signed, scale, bytes: its triangle}
  let thumbs = null; // {of, size, signed, all: [L·H] of [S, S]}
  let scores = []; // [{name, label, unit, values}]
  let own = []; // scores that panes add
  let timers = {};

  const root = make("section", "gptj-view gptj-explorer", { "aria-label": "Explorer" });
  root.dataset.lmSuppressShortcuts = "true"; // JupyterLab's own keys stay out
  const theme = () => root.dataset.theme || "light";
  const later = (name, wait, f) => {
    clearTimeout(timers[name]);
    timers[name] = setTimeout(f, wait);
  };

  // --- The kernel ---
  const mail = mailbox(model, `explorer-${Date.now()}-${views++}`, (message, pane) => {
    if (message.op === "outdated") return void hello();
    if (message.op === "stale") return void stale(message.text);
    if (pane === "run") busy(false);
    if (pane === "next") x.next();
    alarm(message.text);
  });
  function ask(message, kinds, then, pane) {
    if (!ran) return;
    mail.ask({ ...message, run: ran.run }, kinds, (answer, ...arrays) => {
      settle();
      learn(answer.names);
      then(answer, ...arrays);
    }, pane);
    expect();
  }
  function expect() {
    root.dataset.waiting = "true";
    later("slow", 5000, () => mail.waiting() && slow());
  }
  const settle = () => {
    if (!mail.waiting()) clearTimeout(timers.slow);
    root.dataset.waiting = String(mail.waiting());
    if (status.dataset.slow) status.textContent = status.dataset.slow = "";
  };
  function slow() {
    status.dataset.slow = "1";
    status.textContent = "The kernel is busy: waiting for it. If it was restarted, this view is stale: run its cell again.";
  }
  function stale(text) {
    root.dataset.stale = String(Boolean(text));
    alarm(text);
    again.hidden = !text;
  }
  function alarm(text) {
    alert.textContent = text;
    alert.hidden = !text;
  }
  function busy(on) {
    root.dataset.busy = String(on);
    root.setAttribute("aria-busy", String(on));
    if (on) status.textContent = "computing…";
  }
  function hello() {
    busy(true);
    mail.ask({ op: "hello" }, "uffif", arrive, "run");
    expect();
  }
  function run(more = {}) {
    stale("");
    busy(true);
    mail.ask({ op: "run", prompt: prompt.value, ...more }, "uffif", arrive);
  }
  function arrive(message, small, values, logprobs) {
    busy(false);
    settle();
    alarm("");
    ran = message;
    ran.logprobs = logprobs;
    patterns = new Map();
    own = [];
    learn(message.names);
    takeThumbs(message, small);
    takeScores(message.scores, values);
    const last = ran.tokens.length - 1;
    state.query = min(state.query ?? last, last);
    if (state.fresh !== false) state.query = last;
    state.key = min(state.key ?? 0, state.query);
    if (doc.activeElement !== prompt) prompt.value = message.prompt;
    counter.textContent = `${ran.tokens.length} of ${about.context} tokens`;
    note.textContent = [...message.notes, ...(message.mode === "pooled" ? [`Above 1,024 tokens a cell of the matrix is the largest of several weights; exact rows come when you hold a cell.`] : [])].join(" ");
    note.hidden = !note.textContent;
    status.textContent = `${ran.tokens.length} tokens in ${message.seconds < 0.1 ? (1000 * message.seconds).toFixed(0) + " ms" : message.seconds.toFixed(2) + " s"}`;
    tokens.fill(ran.tokens.map((each) => each[0]), ran.ids);
    const there = Object.entries(OF).filter(([of]) => (of === "b-a" ? ran.compare?.aligned : of !== "b" || ran.compare));
    if (!there.some(([of]) => of === state.of)) state.of = "a";
    ofs.fill(there, state.of);
    chipbar.show(message.interventions, message.chips, history.length);
    x.refresh();
    tabs.run();
  }
  const names = new Map();
  const learn = (more) => Object.entries(more ?? {}).forEach(([id, name]) => names.set(Number(id), name));
  function takeThumbs({ of = "a", thumb: size, signed }, bytes) {
    const long = (size * (size + 1)) / 2;
    thumbs = { of, size, signed, all: times(layers * heads, (i) => square(bytes.subarray(i * long, (i + 1) * long), size)) };
  }
  function takeScores(meta, values) {
    const each = layers * heads;
    scores = meta.map((one, i) => ({ ...one, values: values.subarray(i * each, (i + 1) * each) }));
    fillScores();
  }
  function fillScores() {
    const all = [["", "attention patterns"], ...x.scores().map((each) => [each.name, each.label])];
    if (!all.some(([value]) => value === state.score)) state.score = "";
    scoreBox.fill(all, state.score);
  }

  // --- What all panes use ---
  const x = {
    make, model, about, state, ask, run, theme,
    get ran() { return ran; },
    name: (id) => names.get(id)?.[0] ?? `#${id}`,
    text: (id) => names.get(id)?.[1] ?? x.name(id),
    token: (i) => ran?.tokens[i]?.[0] ?? "",
    label: (i) => `${ran.tokens[i][0]} ${i}`,
    colours: (both = false) => ({ lut: both ? lut(DIVERGING[theme()]) : lut(ramp(state.ramp, theme()), state.gamma), mask: pixel(MASK[theme()]), zero: both ? 128 : 0 }),
    tell(sentence) { // at once for the eye, when it rests for the ear
      line.textContent = sentence;
      later("told", 250, () => (told.textContent = sentence));
    },
    addScore(score) {
      own = [...own.filter((each) => each.name !== score.name), score];
      fillScores();
      showHeads();
    },
    freshScores: () => ask({ op: "scores", of: "a" }, "f", (message, values) => {
      takeScores(message.scores, values);
      showHeads();
    }),
    pick(id) {
      if (!state.pins.includes(id)) state.pins = [...state.pins, id].slice(-5);
      save();
      tabs.open("lens");
    },
    intervene(list, back = true) {
      if (back) history.push(cuts());
      for (const key of [...patterns.keys()]) if (key.startsWith("after")) patterns.delete(key);
      ask({ op: "intervene", interventions: list, position: state.query }, "if", showNext, "next");
    },
    toggle: (change) => x.intervene(toggled(cuts(), { positions: null, ...change })),
    next: () => ask({ op: "next", position: state.query }, "if", showNext),
    choose(layer, head) {
      Object.assign(state, { layer, head });
      state.selected.clear();
      keep();
      showHeads(true);
      showMatrix();
      tabs.head();
    },
    at(query, key, from) { // the crosshair, wherever it was moved
      const moved = query !== state.query;
      Object.assign(state, { query, key: min(key ?? state.key, query) });
      showRow();
      say();
      if (from === "pointer") return; // pointing tells the kernel nothing
      later("keep", 400, keep);
      if (moved) later("next", 60, x.position);
    },
    position() {
      x.next();
      tabs.position();
    },
    refresh() {
      state.fresh = false;
      showHeads();
      showMatrix();
      x.next();
    },
    weights, need, hello,
    scores: () => [...scores, ...own],
  };
  const keep = () => {
    const { layer, head, query, key, of } = state;
    model.set("selection", { layer, head, query, key, of });
    save();
  };
  const save = () => {
    model.set("view", Object.fromEntries(SAVED.map((each) => [each, state[each]])));
    later("save", 300, () => model.save_changes());
  };

  // --- Patterns ---
  function weights(layer, head, of = state.of) {
    return patterns.get(`${of}:${layer}.${head}`);
  }
  function need(list, then) { // [[layer, head, of]], one request after the other
    const missing = list.find((each) => !weights(...each));
    if (!missing) return then();
    const [layer, head, of] = missing;
    ask({ op: "pattern", layer, of, ...(ran.mode === "layer" ? {} : { head }) }, "u", (message, all) => {
      const { first, heads: count, size, signed, scale } = message;
      const long = all.length / count;
      for (let h = 0; h < count; h++) patterns.set(`${of}:${layer}.${first + h}`, { size, signed, scale, bytes: all.subarray(h * long, (h + 1) * long) });
      while (patterns.size > 640) patterns.delete(patterns.keys().next().value);
      if (!(message.parts > message.part + 1)) need(list, then);
    });
  }
  const chosen = () => (state.selected.size
    ? [...state.selected].map((each) => each.split(".").map(Number)) : [[state.layer, state.head]]);
  let field = null; // {size, bytes [S, S], signed, scale}
  function showMatrix(quiet = false) {
    if (!ran) return;
    const list = chosen().map(([layer, head]) => [layer, head, state.of]);
    matrixTitle.textContent = list.length > 1
      ? `${state.reduce === "max" ? "Maximum" : "Mean"} of ${list.length} heads` : `Layer ${state.layer}, head ${state.head}`;
    ablateButton.textContent = ablated().has(list[0].slice(0, 2).join(".")) ? "Restore head" : "Switch head off";
    need(list, () => {
      const all = list.map((each) => weights(...each));
      const { size, signed } = all[0];
      const triangles = all.map((each) => each.bytes);
      field = { ...all[0], bytes: signed ? square(triangles[0], size) : combine(triangles, size, state) };
      sinkText.textContent = signed ? "" : `The first token takes ${share(sinkShare(triangles, size))} on average.`;
      drawMatrix();
      showRow();
      if (quiet !== true) say();
    });
  }
  const tile = (p) => floor(((p + 1) * field.size - 1) / ran.tokens.length);
  const spot = (i) => floor((i * ran.tokens.length) / field.size);
  function drawMatrix() {
    const { size, bytes, signed } = field;
    const axis = times(size, (i) => x.label(spot(i)));
    const skip = state.sink && !signed ? 1 : 0;
    matrix.show({ rows: axis, cols: axis, last: (r) => r, ...x.colours(signed),
      q: (r, c) => (c > r || r < skip || c < skip ? -1 : bytes[r * size + c]),
      text: (r, c) => (signed ? "" : (100 * weight(bytes[r * size + c])).toFixed(0)) }, [tile(state.query), tile(min(state.key, state.query))]);
  }
  const value = (query, key) => {
    const q = field.bytes[tile(query) * field.size + tile(key)];
    return field.signed ? ((q - 128) / 127) * field.scale : weight(q);
  };
  function showRow() {
    if (!field) return;
    const { query, key } = state;
    const n = ran.tokens.length;
    const numbers = times(n, (i) => {
      const [r, c] = state.reads ? [query, i] : [i, query];
      return c > r ? -1 : field.bytes[tile(r) * field.size + tile(c)];
    });
    const texts = numbers.map((q, i) => {
      if (q < 0) return "";
      const p = state.reads ? value(query, i) : value(i, query);
      return field.signed ? (abs(p) < 0.005 ? "" : signed(100 * p, 0)) : p < 0.005 ? "" : (100 * p).toFixed(0);
    });
    tokens.choose(query);
    tokens.paint(numbers, texts, x.colours(field.signed).lut, key);
    stripTitle.textContent = `${state.reads ? "What" : "Who reads"} ${x.token(query)} ${query}${state.reads ? " reads" : ""}, in %`;
  }
  function say(exact) {
    if (!field) return;
    const { layer, head, query, key } = state;
    const p = exact ?? value(query, key);
    const who = state.selected.size ? `${state.selected.size} heads` : `Layer ${layer} head ${head}`;
    x.tell(field.signed ? `${who}: the share of '${x.token(key)}' (${key}) for '${x.token(query)}' (${query}) differs by ${signed(100 * p)} points`
      : `${who}: '${x.token(query)}' (${query}) reads ${exact === undefined ? share(p) : `${(100 * p).toFixed(3)} %`} from '${x.token(key)}' (${key})${state.sink ? ", first token left out" : ""}`);
  }
  function exact() { // of the cell that is held; the bytes carry two to three digits
    const { layer, head, of, query, key } = state;
    if (state.selected.size || of.includes("-") || !ran) return;
    ask({ op: "exact", layer, head, of, query }, "f", (message, row) => {
      if (matrix.held && query === state.query) say(state.sink ? row[key] / (1 - row[0]) : row[key]);
    });
  }

  // --- Heads ---
  const ablated = () => new Set(cuts().filter((each) => each.kind === "head").map((each) => `${each.layer}.${each.head}`));
  function showHeads(only = false) {
    if (!ran) return;
    const marks = { chosen: [state.layer, state.head], selected: state.selected, ablated: ablated() };
    if (only) return heatmap.mark(marks);
    const score = x.scores().find((each) => each.name === state.score);
    scoreNote.textContent = score ? `${score.note ?? ""} ${score.unit && `(${score.unit})`}` : "";
    const draw = () => heatmap.show({ thumbs, score, ...x.colours(thumbs.signed), tables: [x.colours().lut, x.colours(true).lut], sorted: state.sorted && Boolean(score), ...marks });
    draw();
    if (thumbs.of !== state.of) {
      const { of } = state;
      ask({ op: "thumbs", of }, "u", (message, bytes) => {
        takeThumbs(message, bytes);
        draw();
      });
    }
  }
  function showNext(message, ids, before, after, b, logits, now) {
    nextPane.show({ heading: `After '${x.token(message.position)}' (${message.position})`, vocab: about.vocab, kl: message.kl.after,
      rows: [...ids.subarray(0, 10)].map((id, i) => ({ id, name: x.name(id), before: exp(before[i]), after: exp(after[i]), delta: now[i] - logits[i] })) });
    chipbar.show(message.interventions, message.chips, history.length);
    if (message.compiled !== undefined) {
      x.tell(message.chips.length ? `Switched off: ${message.chips.join(", ")}. KL ${message.kl.after?.toFixed(4)} nats.` : "Nothing is switched off: as before.");
      if (thumbs.of.startsWith("after")) thumbs.of = "";
      showHeads();
      showMatrix(true);
      tabs.position();
    }
  }

  // --- The page ---
  const status = make("span", "gx-status");
  const told = make("span", "gptj-told", { role: "status" });
  const again = make.button("Run again", "", () => run(), "gx-primary");
  again.hidden = true;
  const alert = make("p", "gptj-alert", { role: "alert" });
  alert.hidden = true;
  const note = make("p", "gx-note");
  note.hidden = true;
  const below = make("div", "gx-below");
  const title = make("div", "gx-head", make("strong", "gx-brand", "Explorer"), make.caption(`${about.title} ${about.name}: ${layers} layers of ${heads} heads`), make("span", "gx-space"),
    make.button("Code", "c", code), make.button("Pin", "p", pin), make.button("? Keys", "?", help));
  const prompt = make("textarea", "gx-prompt", { rows: 2, spellcheck: false, "aria-label": "Prompt" });
  prompt.value = model.get("prompt");
  const counter = make("span", "gx-caption");
  const promptBox = make("div", "gx-prompt-box", prompt, make("div", "gx-under-prompt", make.button("Run", "Ctrl+Enter", () => run(), "gx-primary"), again, counter, status));
  prompt.addEventListener("input", () => {
    state.fresh = true;
    if ((ran?.seconds ?? 9) < 1) later("edit", 350, () => prompt.value && run());
  });
  const tokens = strip(make, { label: "Tokens of the prompt; arrow keys move", point: (i, from) => {
    x.at(i, min(state.key, i), "strip");
    matrix.show(matrix.data ?? { rows: [], cols: [] }, field && [tile(i), tile(state.key)]);
    if (from === "pointer") x.position();
  } });
  const stripTitle = make("span", "gx-caption");
  const sink = make.check("hide the first token", state.sink, (on) => set("sink", on, showMatrix), "s: leave out the first token and let the other weights add up to 100 %");
  const sinkText = make("span", "gx-caption");
  const reads = make.select("show", [["reads", "what it reads"], ["read", "who reads it"]], state.reads ? "reads" : "read", (value) => set("reads", value === "reads", showRow));
  const set = (name, value, then) => {
    state[name] = value;
    save();
    then();
  };
  const all = () => {
    showHeads();
    showMatrix();
  };
  const scoreBox = make.select("show", [["", "attention patterns"]], state.score, (value) => set("score", value, showHeads));
  const sorted = make.check("sort", state.sorted, (on) => set("sorted", on, showHeads), "the highest score first; the cells then carry layer.head");
  const scoreNote = make("p", "gx-hint");
  const add = (layer, head) => {
    const name = `${layer}.${head}`;
    if (!state.selected.delete(name)) state.selected.add(name);
    showHeads(true);
    showMatrix();
    x.tell(`${state.selected.size} heads are selected`);
  };
  const ablateHead = (layer, head) => x.toggle({ kind: "head", layer, head, how: state.how });
  const heatmap = overview(make, { layers, heads, choose: x.choose, toggle: add, ablate: ablateHead });
  const matrixTitle = make("h3", "gx-title");
  const matrix = heat(make, { label: "Attention weights", point: (r, c, from) => x.at(spot(r), spot(c), from),
    lock: (r, c, held) => {
      keep();
      if (held) exact();
      else say();
      x.position();
    } });
  const ofs = make.select("of", Object.entries(OF), state.of, (value) => set("of", value, () => { keep(); all(); }));
  const reduce = make.select("several heads", [["mean", "mean"], ["max", "maximum"]], state.reduce, (value) => set("reduce", value, showMatrix));
  const ramps = make.select("colours", Object.keys(RAMPS).map((each) => [each, each]), state.ramp, (value) => set("ramp", value, () => { all(); tabs.run(); }));
  const gamma = make.input("γ", { type: "range", min: 0.3, max: 2.5, step: 0.1, value: state.gamma, title: "below 1 lifts what is small" },
    (value) => set("gamma", Number(value), all), "input");
  const hows = make.select("by", [["zero", "zero"], ["mean", "mean of the text"], ["freeze", "frozen pattern"]], state.how, (value) => set("how", value, () => {}));
  const ablateButton = make.button("Switch head off", "a", () => chosen().forEach((each) => ablateHead(...each)));
  const mlp = () => x.toggle({ kind: "mlp", layer: state.layer, how: state.how === "mean" ? "mean" : "zero" });
  const cutArrow = () => x.toggle({ kind: "edge", layer: state.layer, head: state.head, query: state.query, key: state.key });
  const undo = () => history.length && x.intervene(history.pop(), false);
  const chipbar = chips(make, { change: (list) => x.intervene(list), undo });
  const nextPane = nextTokens(make, { pick: (id) => x.pick(id) });
  const line = make("p", "gx-line");
  const panes = make("div", "gx-main",
    make("section", "gx-pane gx-heads-pane", make("h3", "gx-title", "All heads"), make("div", "gx-tools", scoreBox, sorted), scoreNote, heatmap.node,
      make("p", "gx-hint", "Rows: layers. Columns: heads. Click, or walk with the arrows; Ctrl+click or Space selects several.")),
    make("section", "gx-pane gx-matrix-pane", matrixTitle, make("div", "gx-tools", ofs, reduce, ramps, gamma,
      make.button("−", "zoom out", () => matrix.enlarge(0.5)), make.button("+", "zoom in around the crosshair", () => matrix.enlarge(2))),
    matrix.node, make("div", "gx-tools", ablateButton, hows, make.button("MLP off", "l: this layer's MLP", mlp), make.button("Cut arrow", "x: the cell under the crosshair", cutArrow))),
    nextPane.node);
  const tabs = panels(x, [lensPanel, attributionPanel, patchPanel, comparePanel, generatePanel, specialPanel, tablePanel]);
  root.append(title, promptBox, alert, note, make("div", "gx-strip-head", stripTitle, reads, sink, sinkText), tokens.node, line, told, chipbar.node, panes, tabs.node, below);
  el.append(root);

  function code() {
    mail.ask({ op: "code" }, "u", ({ text }) => show("The Python of this view", make("pre", "gx-code", text)));
  }
  function pin() {
    mail.ask({ op: "pin" }, "u", ({ alt, name }, picture) => {
      const src = URL.createObjectURL(new Blob([picture], { type: "image/png" }));
      const link = make("a", "gx-link", { href: src, download: name }, "Download the picture");
      show("Pinned", make("img", "gx-pin", { src, alt }), make("p", "gx-hint", "explorer.pin() in a cell leaves this picture in the notebook. ", link));
    });
  }
  function help() {
    show("Keys", make("dl", "gx-keys", ...KEYS.flatMap(([key, what]) => [make("dt", "", make("kbd", "", key)), make("dd", "", what)])));
  }
  function show(heading, ...content) {
    const close = make.button("Close", "Escape", () => {
      below.replaceChildren();
      heatmap.focus();
    });
    below.replaceChildren(make("div", "gx-head", make("h3", "gx-title", heading), make("span", "gx-space"), close), ...content);
    close.focus();
  }
  const keys = { "/": () => prompt.focus(), h: () => heatmap.focus(), m: () => matrix.node.focus(), t: () => tokens.focus(),
    a: () => ablateHead(state.layer, state.head), l: mlp, x: cutArrow, u: undo, p: pin, c: code, "?": help,
    s: () => { sink.input.checked = !state.sink; set("sink", !state.sink, showMatrix); },
    "[": () => x.choose(max(0, state.layer - 1), state.head), "]": () => x.choose(min(layers - 1, state.layer + 1), state.head) };
  root.addEventListener("keydown", (event) => {
    const typing = ["TEXTAREA", "SELECT"].includes(event.target.tagName) || (event.target.tagName === "INPUT" && event.target.type !== "checkbox");
    if (event.target === prompt && event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
    else if (event.key === "Escape" && event.target === prompt) heatmap.focus();
    else if (event.key === "Escape" && below.children.length) {
      below.replaceChildren();
      heatmap.focus();
    } else if (!typing && !event.ctrlKey && !event.metaKey && !event.altKey && keys[event.key]) keys[event.key]();
    else {
      if (typing) event.stopPropagation();
      return;
    }
    taken(event);
  });

  // --- What changes without the view ---
  const unwatch = followTheme(root);
  const view = doc.defaultView;
  const repaint = () => ran && (all(), tabs.run());
  const watcher = new view.MutationObserver(repaint);
  watcher.observe(root, { attributes: true, attributeFilter: ["data-theme"] });
  const sizes = view.ResizeObserver && new view.ResizeObserver(() => later("size", 80, () => { heatmap.paint(); matrix.paint(); tabs.size(); }));
  sizes?.observe(root);
  const receive = (message, buffers) => (message.op === "changed" ? hello() : mail.receive(message, buffers));
  const selection = () => {
    const next = model.get("selection");
    if (!ran || ["layer", "head", "query", "key", "of"].every((each) => next[each] === undefined || next[each] === state[each])) return;
    Object.assign(state, next);
    ofs.input.value = state.of;
    state.selected.clear();
    all();
    tabs.head();
  };
  const staleTrait = () => stale(model.get("stale"));
  const live = () => model.comm_live === false && stale("The kernel of this view is gone: run its cell again.");
  const handlers = { "msg:custom": receive, "change:selection": selection, "change:stale": staleTrait, comm_live_update: live };
  for (const [name, f] of Object.entries(handlers)) model.on(name, f);
  if (model.get("stale")) staleTrait();
  hello();
  return () => {
    unwatch();
    watcher.disconnect();
    sizes?.disconnect();
    Object.values(timers).forEach(clearTimeout);
    for (const [name, f] of Object.entries(handlers)) model.off(name, f);
  };
}

// Triangles as squares, so that a thumbnail is a picture.
export function square(bytes, size) {
  const whole = new Uint8Array(size * size);
  for (let r = 0, at = 0; r < size; r++) for (let c = 0; c <= r; c++) whole[r * size + c] = bytes[at++];
  return whole;
}

export default { render };
