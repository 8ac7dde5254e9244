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
  const history = [];
  let ran = null; // the run that is shown
  let slowly = false;
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
    if (message.op === "outdated") return void hello();
    if (pane === "run") busy(false);
    if (message.op === "stale") return void stale(message.text);
    if (pane === "next" || pane === "intervene") x.next();
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
    root.dataset.waiting = String(mail.waiting());
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
    again.hidden = !text || text === GONE;
    if (text) status.textContent = "";
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
    mail.ask({ op: "hello" }, "ufif", arrive, "run");
    expect();
  }
  function run(more = {}) {
    clearTimeout(timers.edit); // what was typed is read now, once
    stale("");
    busy(true);
    mail.ask({ op: "run", prompt: prompt.value, ...more }, "ufif", arrive);
  }
  function arrive(message, small, logprobs) {
    busy(false);
    settle();
    alarm("");
    ran = message;
    slowly = message.seconds > 1.5 && !message.compiled;
    ran.logprobs = logprobs;
    patterns = new Map();
    learn(message.names);
    allHeads.begin(message, small);
    const last = ran.tokens.length - 1;
    state.query = min(state.query ?? last, last);
    if (state.fresh !== false) state.query = last;
    state.key = min(state.key ?? 0, state.query);
    if (doc.activeElement !== prompt) prompt.value = message.prompt;
    counter.textContent = `${ran.tokens.length} of ${about.context} tokens`;
    note.textContent = [...message.notes, ...(message.mode === "pooled" ? [`Above 1,024 tokens a cell of the matrix is the largest of several weights; exact rows come when you hold a cell.`] : [])].join(" ");
    note.hidden = !note.textContent;
    status.textContent = `${ran.tokens.length} tokens in ${message.seconds < 0.1 ? (1000 * message.seconds).toFixed(0) + " ms" : message.seconds.toFixed(2) + " s"}${message.compiled ? ", with compiling" : ""}`;
    matrix.begin();
    chipbar.show(message.interventions, message.chips, history.length);
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
    token: (i) => ran?.tokens[i]?.[0] ?? "",
    label: (i) => `${ran.tokens[i][0]} ${i}`,
    colours: (both = false) => ({ lut: both ? lut(DIVERGING[theme()]) : lut(ramp(state.ramp, theme()), state.gamma), mask: pixel(MASK[theme()]), zero: both ? 128 : 0 }),
    tell(sentence) { // at once for the eye, when it rests for the ear
      line.textContent = sentence;
      later("told", 250, () => (told.textContent = sentence));
    },
    pick(id) {
      if (!state.pins.includes(id)) state.pins = [...state.pins, id].slice(-5);
      save();
      tabs.open("lens");
    },
    intervene(list, back = true) {
      if (back) history.push(cuts());
      for (const key of [...patterns.keys()]) if (key.startsWith("after")) patterns.delete(key);
      ask({ op: "intervene", interventions: list, position: state.query }, "if", showNext); // not lost to a newer "next"
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
      const moved = query !== state.query;
      Object.assign(state, { query, key: min(key ?? state.key, query) });
      matrix.row();
      matrix.say();
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
  const save = () => {
    model.set("view", Object.fromEntries(SAVED.map((each) => [each, state[each]])));
    later("save", 300, () => {
      try {
        model.save_changes();
      } catch {
        stale(GONE);
      }
    });
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
  function showNext(message, ids, before, after, b, logits, now) {
    nextPane.show({ heading: `After '${x.token(message.position)}' (${message.position})`, vocab: about.vocab, kl: message.kl.after,
      rows: [...ids.subarray(0, 10)].map((id, i) => ({ id, name: x.name(id), before: exp(before[i]), after: exp(after[i]), delta: now[i] - logits[i] })) });
    chipbar.show(message.interventions, message.chips, history.length);
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
    if (!slowly) later("edit", 350, () => prompt.value && run()); // as one types, where that is quick
  });
  function all() {
    allHeads.show();
    matrix.show();
  }
  const undo = () => history.length && x.intervene(history.pop(), false);
  const chipbar = chips(make, { change: (list) => x.intervene(list), undo });
  const nextPane = nextTokens(make, { pick: (id) => x.pick(id) });
  const line = make("p", "gx-line");
  const allHeads = headsPane(x);
  const matrix = matrixPane(x);
  Object.assign(x, { heads: allHeads, matrix });
  const tabs = x.tabs = panels(x, [lensPanel, attributionPanel, patchPanel, comparePanel, generatePanel, specialPanel, tablePanel]);
  root.append(title, promptBox, alert, note, ...matrix.strips, line, told, chipbar.node, make("div", "gx-main", allHeads.node, matrix.node, nextPane.node), tabs.node, below.node);
  el.append(root);

  function code() {
    mail.ask({ op: "code" }, "u", ({ text }) => below.show("The Python of this view", make("pre", "gx-code", text)));
  }
  function pin() {
    mail.ask({ op: "pin" }, "u", ({ alt, name, below: kept }, picture) => {
      const src = URL.createObjectURL(new Blob([picture], { type: "image/png" }));
      const link = make("a", "gx-link", { href: src, download: name }, "Download the picture");
      below.show("Pinned", make("img", "gx-pin", { src, alt }), hint(make, `${kept ? "It is also an output below this view, saved with the notebook; not so once the page was loaded anew. Then " : ""}explorer.pin() in a cell leaves it in the notebook. `, link));
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
    if (event.target === prompt && event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
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
    matrix.follow();
    state.selected.clear();
    all();
    tabs.head();
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
