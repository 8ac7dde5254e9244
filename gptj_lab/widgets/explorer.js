// The Explorer's view: a prompt, all heads, one head's weights, what comes next, and below them
// the lens, attribution, patching, comparison, generation and GPT-J's own views. Every pane asks
// the kernel for its own data and shows the same selection. The kernel's half is explorer.py.

const STARTS = { of: "a", reduce: "mean", sink: false, ramp: "plain", gamma: 1, score: "", sorted: false,
  reads: true, tab: "lens", lens: "logit", how: "zero", pins: [] };
const SAVED = Object.keys(STARTS);
const KEYS = [["/", "prompt"], ["h", "heads"], ["m", "matrix"], ["t", "tokens"], ["a", "switch the head off or on"], ["l", "its layer's MLP"],
  ["x", "cut the arrow under the crosshair"], ["u", "undo"], ["s", "hide the first token"], ["[ and ]", "layer down, up"], ["p", "pin a picture"],
  ["c", "code"], ["?", "this list"], ["arrows, Home, End, PgUp, PgDn", "move inside heads, matrix, tokens and grids"],
  ["Enter", "choose, hold the cell"], ["Space", "add a head to the selection"], ["+ and −", "zoom the matrix"]];
const SLOW = "The kernel is busy. If it was restarted, run this view's cell again.";
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
  const cuts = () => model.get("interventions") ?? []; // what is changed in the run
  let ran = null; // the run that is shown
  let slowly = false;
  let refused; // the pane whose error is shown
  let patterns = new Map(); // "of:layer.head" → {size, signed, scale, bytes: its triangle}
  let timers = {};

  const root = make("section", "gptj-view gptj-explorer", { "aria-label": "Explorer" });
  const theme = () => root.dataset.theme || "light";
  const later = (name, wait, f) => {
    clearTimeout(timers[name]);
    timers[name] = setTimeout(f, wait);
  };

  // --- The kernel ---
  const mail = mailbox(model, `explorer-${Date.now()}-${views++}`, (message, pane) => {
    settle();
    if (message.op === "outdated") return void hello();
    if (pane === "run") busy(false);
    if (message.op === "stale") return void stale(message.text);
    if (pane === "intervene") x.next();
    refused = pane;
    alarm(message.text);
  });
  function post(message, kinds, then, pane) {
    mail.ask(message, kinds, (answer, ...arrays) => {
      settle();
      if (refused === (pane ?? message.op)) alarm("");
      learn(answer.names);
      then(answer, ...arrays);
    }, pane);
    root.dataset.waiting = String(mail.waiting());
    later("slow", 5000, () => mail.waiting() && (status.textContent = SLOW));
  }
  const ask = (message, ...rest) => ran && post({ ...message, run: ran.run }, ...rest);
  function settle() {
    root.dataset.waiting = String(mail.waiting());
    if (status.textContent === SLOW) status.textContent = "";
  }
  function stale(text) {
    root.dataset.stale = String(Boolean(text));
    alarm(text);
    again.hidden = !text || text === GONE;
    if (text) status.textContent = "";
  }
  function alarm(text) {
    alert.textContent = said.textContent = text;
    alert.hidden = !text;
  }
  function busy(on) {
    root.dataset.busy = String(on);
    root.setAttribute("aria-busy", String(on));
    status.textContent = on ? "computing…" : "";
  }
  function hello() {
    busy(true);
    post({ op: "hello" }, "ufif", arrive, "run");
  }
  function run(more = {}) {
    clearTimeout(timers.edit); // what was typed is read now, once
    stale("");
    busy(true);
    post({ op: "run", prompt: prompt.value, ...more }, "ufif", arrive);
  }
  function arrive(message, small, logprobs) {
    busy(false);
    alarm("");
    ran = message;
    slowly = message.seconds > 1.5 && !message.compiled;
    ran.logprobs = logprobs;
    patterns = new Map();
    allHeads.begin(message, small);
    if (state.fresh !== false) state.query = null; // the last
    if (doc.activeElement !== prompt) prompt.value = message.prompt;
    counter.textContent = `${ran.tokens.length} of ${about.context} tokens`;
    note.textContent = message.notes.join(" ");
    note.hidden = !note.textContent;
    status.textContent = `read in ${message.seconds < 0.1 ? (1000 * message.seconds).toFixed(0) + " ms" : message.seconds.toFixed(2) + " s"}${message.compiled ? ", with compiling" : ""}`;
    matrix.begin();
    chipbar.show(message);
    x.refresh();
    tabs.run();
    allHeads.fresh();
  }
  const names = new Map();
  const learn = (more) => Object.entries(more ?? {}).forEach(([id, name]) => names.set(Number(id), name));

  // --- What all panes use ---
  const x = {
    make, model, about, state, ask, run, theme,
    get ran() { return ran; },
    name: (id) => names.get(id)?.[0] ?? `#${id}`,
    text: (id) => names.get(id)?.[1] ?? x.name(id),
    of: () => state.of.split("-")[0], // the run that is shown, of a difference its first
    shown: () => (x.of() === "b" && ran.compare) || ran, // its tokens and ids
    token: (i, run = x.shown()) => run.tokens[i]?.[0] ?? "",
    label: (i) => `${x.token(i)} ${i}`,
    colours: (both = false) => ({ lut: both ? lut(DIVERGING[theme()]) : lut(ramp(state.ramp, theme()), state.gamma), mask: pixel(MASK[theme()]), zero: both ? 128 : 0 }),
    tell(sentence) { // at once for the eye, when it rests for the ear
      line.textContent = said.textContent = sentence;
      later("told", 250, () => (told.textContent = sentence));
    },
    pick(id) {
      if (!state.pins.includes(id)) state.pins = [...state.pins, id].slice(-5);
      save();
      tabs.open("lens");
    },
    intervene: (interventions, op = "intervene") => {
      for (const key of [...patterns.keys()]) if (key.startsWith("after")) patterns.delete(key);
      ask({ op, interventions, position: state.query }, "if", showNext); // not lost to a newer "next"
    },
    toggle: (change) => x.intervene(toggled(cuts(), { positions: null, ...change })),
    next: () => ask({ op: "next", position: state.query }, "if", showNext),
    choose(layer, head) {
      Object.assign(state, { layer, head });
      state.selected.clear();
      keep();
      allHeads.show(true);
      matrix.show();
      tabs.head();
    },
    at(query, key, from) { // the crosshair, wherever it was moved
      query = min(query, x.shown().tokens.length - 1);
      const moved = query !== state.query;
      Object.assign(state, { query, key: min(key ?? state.key, query) });
      matrix.row(from);
      matrix.say();
      if (from === "pointer") return; // pointing tells the kernel nothing
      later("keep", 400, keep);
      later(moved ? "next" : "head", 60, moved ? x.position : tabs.head);
    },
    position() {
      x.next();
      tabs.position();
    },
    refresh() {
      state.fresh = false;
      allHeads.show();
      matrix.show();
      x.next();
    },
    weights, need, hello, cuts, keep, all,
    ablated: () => new Set(cuts().filter((each) => each.kind === "head").map((each) => `${each.layer}.${each.head}`)),
    ablate: (layer, head) => x.toggle({ kind: "head", layer, head, how: state.how }),
    mlp: () => x.toggle({ kind: "mlp", layer: state.layer, how: state.how === "mean" ? "mean" : "zero" }),
    cutArrow: () => x.toggle({ kind: "edge", layer: state.layer, head: state.head, query: state.query, key: state.key }),
    set(name, value, then) {
      state[name] = value;
      save();
      then?.();
    },
  };
  function keep() {
    const { layer, head, query, key, of } = state;
    model.set("selection", { layer, head, query, key, of });
    save();
  }
  function save() {
    model.set("view", Object.fromEntries(SAVED.map((each) => [each, state[each]])));
    later("save", 300, flush);
  }
  function flush() {
    clearTimeout(timers.save);
    try {
      model.save_changes();
    } catch {
      stale(GONE);
    }
  }
  function asShown(...request) { // what is asked of the selection comes after it
    keep();
    flush();
    post(...request);
  }

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
  function showNext(message, ids, before, after, b, logits, now) {
    const other = x.of() === "b" ? "b" : "after";
    nextPane.show({ heading: `After '${x.token(message.position)}' (${message.position})`, vocab: about.vocab, kl: message.kl[other], other,
      rows: [...ids].map((id, i) => ({ id, name: x.name(id), before: exp(before[i]), after: exp((other === "b" ? b : after)[i]), delta: now[i] - logits[i] })) });
    chipbar.show(message);
    if (message.compiled !== undefined) {
      x.tell(message.chips.length ? `Changed: ${message.chips.join(", ")}. KL ${message.kl.after?.toFixed(4)} nats.` : "Nothing is changed: as before.");
      allHeads.changed();
      allHeads.show();
      matrix.show(true);
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
  const below = drawer(make, () => allHeads.focus());
  const title = make("div", "gx-head", make("strong", "gx-brand", "Explorer"), make.caption(`${about.title} ${about.name}: ${layers} layers of ${heads} heads`), make("span", "gx-space"),
    make.button("Code", "c", code), make.button("Pin", "p", pin), make.button("? Keys", "?", help));
  const prompt = make("textarea", "gx-prompt", { rows: 2, spellcheck: false, "aria-label": "Prompt" });
  prompt.value = model.get("prompt");
  const counter = make("span", "gx-caption");
  const promptBox = make("div", "gx-prompt-box", prompt, make("div", "gx-under-prompt", make.button("Run", "Ctrl+Enter", () => run(), "gx-primary"), again, counter, status));
  prompt.addEventListener("input", () => {
    state.fresh = true;
    status.textContent = "not read yet: Ctrl+Enter";
    if (!slowly) later("edit", 350, () => prompt.value && run()); // as one types, where that is quick
  });
  function all() {
    allHeads.show();
    matrix.show();
  }
  const undo = () => x.intervene([], "undo");
  const chipbar = chips(make, { change: (list) => x.intervene(list), undo });
  const nextPane = nextTokens(make, { pick: (id) => x.pick(id) });
  const line = make("p", "gx-line");
  const said = make("p", "gx-said"); // the same beside the tabs, far below
  const allHeads = headsPane(x);
  const matrix = matrixPane(x);
  Object.assign(x, { heads: allHeads, matrix });
  const tabs = x.tabs = panels(x, [lensPanel, attributionPanel, patchPanel, comparePanel, generatePanel, specialPanel, tablePanel]);
  tabs.node.prepend(said);
  root.append(title, promptBox, alert, note, ...matrix.strips, line, told, chipbar.node, make("div", "gx-main", allHeads.node, matrix.node, nextPane.node), tabs.node, below.node);
  el.append(root);

  function code() {
    asShown({ op: "code" }, "u", ({ text }) => below.show("The Python of this view", make("pre", "gx-code", text)));
  }
  function pin() {
    asShown({ op: "pin" }, "u", ({ alt, name, below: kept }, picture) => {
      const src = URL.createObjectURL(new Blob([picture], { type: "image/png" }));
      const link = make("a", "gx-link", { href: src, download: name }, "Download the picture");
      below.show("Pinned", make("img", "gx-pin", { src, alt }), hint(make, `${kept ? "It is below this view too. If not, or later: " : ""}explorer.pin() in a cell leaves it in the notebook. `, link));
    });
  }
  function help() {
    below.show("Keys", make("dl", "gx-keys", ...KEYS.flatMap(([key, what]) => [make("dt", "", make("kbd", "", key)), make("dd", "", what)])));
  }
  const keys = { "/": () => prompt.focus(), h: () => allHeads.focus(), m: matrix.focus, t: matrix.focusTokens,
    a: () => x.ablate(state.layer, state.head), l: x.mlp, x: x.cutArrow, u: undo, p: pin, c: code, "?": help,
    s: matrix.flip,
    "[": () => x.choose(max(0, state.layer - 1), state.head), "]": () => x.choose(min(layers - 1, state.layer + 1), state.head) };
  root.addEventListener("keydown", (event) => {
    const typing = ["TEXTAREA", "SELECT"].includes(event.target.tagName) || (event.target.tagName === "INPUT" && event.target.type !== "checkbox");
    if (event.target.tagName === "TEXTAREA" && event.key === "Enter" && chord(event)) run(event.target === prompt ? {} : { prompt_b: event.target.value });
    else if (event.key === "Escape" && event.target === prompt) allHeads.focus();
    else if (event.key === "Escape" && below.node.children.length) below.close();
    else if (!typing && !chord(event) && keys[event.key]) keys[event.key]();
    else {
      if (typing) event.stopPropagation();
      return;
    }
    taken(event);
  });

  // --- What changes without the view ---
  const unwatch = followTheme(root);
  const unguard = guardKeys(root, later);
  const view = doc.defaultView;
  const repaint = () => ran && (all(), tabs.run());
  const watcher = new view.MutationObserver(repaint);
  watcher.observe(root, { attributes: true, attributeFilter: ["data-theme"] });
  const sizes = view.ResizeObserver && new view.ResizeObserver(() => later("size", 80, () => { allHeads.paint(); matrix.paint(); tabs.size(); }));
  sizes?.observe(root);
  const receive = (message, buffers) => (message.op === "changed" ? hello() : mail.receive(message, buffers));
  const selection = () => {
    const next = model.get("selection");
    if (!ran || ["layer", "head", "query", "key", "of"].every((each) => next[each] === undefined || next[each] === state[each])) return;
    Object.assign(state, next);
    matrix.begin();
    state.selected.clear();
    all();
    tabs.head();
    x.position();
  };
  const staleTrait = () => stale(model.get("stale"));
  const live = () => later("live", 1000, hello); // the line was opened or closed: is there an answer?
  const handlers = { "msg:custom": receive, "change:selection": selection, "change:stale": staleTrait, comm_live_update: live };
  for (const [name, f] of Object.entries(handlers)) model.on(name, f);
  if (model.get("stale")) staleTrait();
  hello();
  return () => {
    unwatch();
    watcher.disconnect();
    unguard();
    sizes?.disconnect();
    Object.values(timers).forEach(clearTimeout);
    for (const [name, f] of Object.entries(handlers)) model.off(name, f);
  };
}

// The notebook's own keys stay out: it looks for this mark from the focused node upwards, and may
// find that node first. A click that makes another cell active takes the focus: back with it.
function guardKeys(root, later) {
  const doc = root.ownerDocument;
  const view = doc.defaultView;
  let last = null;
  root.addEventListener("focusin", (event) => {
    last = event.target;
    last.dataset.lmSuppressShortcuts = "true";
  });
  const shield = (event) => { // saving stays the notebook's
    if (!root.contains(event.target)) return;
    if ((event.ctrlKey || event.metaKey) && event.key === "s") delete event.target.dataset.lmSuppressShortcuts;
    else event.target.dataset.lmSuppressShortcuts = "true";
  };
  root.addEventListener("click", () => later("focus", 60, () => root.contains(doc.activeElement) || last?.focus({ preventScroll: true })));
  view.addEventListener?.("keydown", shield, true); // before the notebook's own listener
  return () => view.removeEventListener?.("keydown", shield, true);
}

// What is opened below all panes, one thing at a time; closed, the focus goes back.
function drawer(make, back) {
  const node = make("div", "gx-below");
  const close = () => {
    node.replaceChildren();
    back();
  };
  const show = (heading, ...content) => {
    const button = make.button("Close", "Escape", close);
    node.replaceChildren(make("div", "gx-head", make("h3", "gx-title", heading), make("span", "gx-space"), button), ...content);
    button.focus();
  };
  return { node, show, close };
}

// Triangles as squares, so that a thumbnail is a picture.
export function square(bytes, size) {
  const whole = new Uint8Array(size * size);
  for (let r = 0, at = 0; r < size; r++) for (let c = 0; c <= r; c++) whole[r * size + c] = bytes[at++];
  return whole;
}

export default { render };
