// The TuneBoard's view. It pulls: a run goes on in the kernel, and this asks how it is, at most
// twice a second. Texts from the kernel are untrusted: textContent only.

const FAST = 500, SLOW = 5000; // ms between two questions while something is under way, or not
const TABS = [["data", "1 Data"], ["settings", "2 Settings"], ["run", "3 Training"], ["after", "4 Before and after"], ["runs", "Runs"]];
const KEYS = [["1 – 5", "the tabs"], ["s", "start a run"], ["p", "pause, resume"], ["x", "stop"], ["k", "save a checkpoint"], ["c", "the Python of this run"], ["i", "a picture of the curves"], ["?", "these keys"], ["arrows", "move over tabs and curves"]];
let views = 0;

function render({ model, el }) {
  const doc = el.ownerDocument;
  const make = maker(doc);
  const about = model.get("about");
  const timers = {};
  const root = make("section", "gptj-view gptj-tuneboard", { "aria-label": "TuneBoard" });
  const later = (name, wait, f) => {
    clearTimeout(timers[name]);
    timers[name] = setTimeout(f, wait);
  };
  let state = { status: "none", runs: 0, run: null, table: [], others: [], flags: [], evaluations: 0 };
  let chosen = null; // the run that is shown; null: the newest
  let data = -1; // the number of the text that is shown
  let fresh = true; // nothing has come yet
  let before = { status: "none", evaluations: 0, flags: 0 };

  const mail = mailbox(model, `tune-${Date.now()}-${views++}`, (message, pane) => {
    alarm(message.text);
    settle();
    if (pane === "poll") later("poll", SLOW, poll);
  });
  function ask(message, kinds, then, pane) {
    later("slow", 8000, () => mail.waiting() && (status.textContent = "The kernel is busy: waiting for it. If it was restarted, this view is stale: run its cell again."));
    mail.ask(message, kinds, (...answer) => {
      settle();
      then(...answer);
    }, pane);
  }
  const settle = () => mail.waiting() || clearTimeout(timers.slow);
  function alarm(text) {
    alert.textContent = text ?? "";
    alert.hidden = !text;
  }
  const poll = () => ask({ op: "poll", run: chosen }, "f", arrive);
  function arrive(next, curves = new Float32Array(0), evaluations = new Float32Array(0)) {
    state = { others: [], ...next };
    if (fresh && state.runs) tabs.open("run");
    if (next.data !== data && !next.preparing) {
      data = next.data;
      ask({ op: "data" }, "f", dataSide.show);
      if (!fresh) ask({ op: "hello" }, "f", board); // the window may have changed
    }
    fresh = false;
    dataSide.busy(next.preparing, next.data_error);
    controls();
    if (state.run !== null) runSide.show(state, curves, evaluations);
    runsSide.show(state);
    afterSide.offer(state);
    announce();
    later("poll", state.active || next.preparing ? FAST : SLOW, () => (doc.hidden ? later("poll", FAST, poll) : poll()));
  }
  function announce() { // for the ear: only what has changed
    const warnings = state.flags.filter((each) => each.kind === "warning");
    if (state.error) tell(state.error);
    else if (state.status !== before.status) tell(`The run is ${state.status}.`);
    else if (warnings.length > before.flags) tell(warnings.at(-1).text);
    else if (state.evaluations > before.evaluations) tell(`Step ${count(state.step)} is evaluated.`);
    before = { status: state.status, evaluations: state.evaluations, flags: warnings.length };
  }
  const tell = (sentence) => (told.textContent = sentence);

  // --- The page ---
  const status = make("span", "gt-status");
  const told = make("span", "gptj-told", { role: "status" });
  const alert = make("p", "gptj-alert", { role: "alert" });
  alert.hidden = true;
  const note = make("p", "gx-hint");
  const below = make("div", "gt-below");
  const progress = make("progress", "gt-progress", { max: 1, "aria-label": "Steps done" });
  const steer = (op) => ask({ op, run: chosen }, "f", arrive, "steer");
  const begin = make.button("Start", "s", () => {
    chosen = null;
    alarm("");
    status.textContent = "starting…";
    ask({ op: "start", form: form.read() }, "f", (...answer) => {
      tabs.open("run");
      arrive(...answer);
    }, "steer");
  }, "gx-primary gt-start");
  const pause = make.button("Pause", "p", () => steer(state.status === "running" || state.status === "compiling" ? "pause" : "resume"), "gx-small gt-pause");
  const stop = make.button("Stop", "x", () => steer("stop"), "gx-small gt-stop");
  const save = make.button("Checkpoint", "k", () => steer("checkpoint"), "gx-small gt-save");
  function controls() {
    const going = ["compiling", "running"].includes(state.status);
    begin.disabled = Boolean(state.active) || !state.has_data || state.preparing;
    begin.title = state.has_data ? "s" : "a text is needed first";
    pause.textContent = going ? "Pause" : "Resume";
    pause.disabled = !going && !["paused", "stopped"].includes(state.status);
    stop.disabled = !going && state.status !== "paused";
    save.disabled = !going && state.status !== "paused" || !state.can_save;
    save.title = state.can_save === false ? "a run without a folder keeps no states" : "k";
    progress.value = state.steps ? state.step / state.steps : 0;
    root.dataset.status = state.status;
    status.textContent = state.run === null ? (state.has_data ? "ready to start" : state.preparing ? "reading the text…" : "drop a text to begin")
      : `${state.status}: step ${count(state.step)} of ${count(state.steps)}${state.active && state.seconds_left !== null ? `, ${span(state.seconds_left)} left` : ""}`;
    note.textContent = state.note ?? "";
    note.hidden = !state.note;
  }

  const x = { make, model, about, doc, ask, poll, arrive, alarm, tell, later, theme: () => root.dataset.theme || "light",
    get state() { return state; },
    change() {
      later("change", 120, () => ask({ op: "change", form: form.read() }, "f", (answer) => {
        alarm("");
        board(answer);
        poll();
      }));
    },
    choose(run) {
      chosen = run;
      poll();
    },
    download(kind) {
      const pieces = [];
      ask({ op: "export", kind, run: chosen }, "u", ({ name, part, parts }, piece) => {
        pieces.push(piece);
        if (part + 1 < parts) return;
        const href = URL.createObjectURL(new Blob(pieces));
        const link = make("a", "gx-link", { href, download: name }, name);
        link.click?.();
        URL.revokeObjectURL && later("revoke", 60_000, () => URL.revokeObjectURL(href));
      }, "export");
    } };
  const dataSide = dataPane(x);
  const form = formPane(x);
  const runSide = runPane(x);
  const afterSide = afterPane(x);
  const runsSide = runsPane(x);
  function board(answer) {
    form.fill(answer.form);
    form.show(answer.plan);
  }
  const tabs = tabbed({ data: dataSide.node, settings: form.node, run: runSide.node, after: afterSide.node, runs: runsSide.node });
  function tabbed(panels) {
    const bar = make("div", "gt-tabs", { role: "tablist", "aria-label": "Parts of the board" });
    const cells = TABS.map(([name, text]) => {
      const tab = make.button(text, "", () => {}, "gt-tab");
      tab.setAttribute("role", "tab");
      tab.setAttribute("aria-selected", "false");
      tab.dataset.tab = name;
      return tab;
    });
    bar.append(...cells);
    const stage = make("div", "gt-panels");
    for (const [name, panel] of Object.entries(panels)) {
      panel.setAttribute("role", "tabpanel");
      panel.setAttribute("aria-label", TABS.find((each) => each[0] === name)[1]);
      stage.append(panel);
    }
    const show = (i) => TABS.forEach(([name], j) => (panels[name].hidden = i !== j));
    const roving = rove(bar, show);
    roving.set(cells, cells.length, 0);
    show(0);
    const open = (name) => {
      const i = TABS.findIndex((each) => each[0] === name);
      roving.choose(i);
      show(i);
    };
    return { bar, stage, open, focus: roving.focus };
  }
  root.append(
    make("div", "gt-head", make("strong", "gt-brand", "TuneBoard"), make.caption(`${about.name}: ${about.title}`), make("span", "gt-space"),
      make.button("Code", "c", code), make.button("Pin", "i", pin), make.button("? Keys", "?", help)),
    make("div", "gt-head gt-bar-of-run", begin, pause, stop, save, progress, status), alert, note, told, tabs.bar, tabs.stage, below);
  el.append(root);

  function code() {
    ask({ op: "code" }, "u", ({ text }) => show("The same run without the board", make("pre", "gt-text", text)));
  }
  function pin() {
    ask({ op: "pin", run: chosen }, "u", ({ alt, name }, picture) => {
      const src = URL.createObjectURL(new Blob([picture], { type: "image/png" }));
      show("Pinned", make("img", "gt-pin", { src, alt }), make("p", "gx-hint", "board.pin() in a cell leaves this picture in the notebook. ", make("a", "gx-link", { href: src, download: name }, "Download the picture")));
    });
  }
  function help() {
    show("Keys", make("dl", "gt-facts", ...KEYS.flatMap(([key, what]) => [make("dt", "", make("kbd", "", key)), make("dd", "", what)])));
  }
  function show(heading, ...content) {
    const close = make.button("Close", "Escape", leave);
    below.replaceChildren(make("div", "gt-head", make("h3", "", heading), make("span", "gt-space"), close), ...content);
    close.focus();
  }
  function leave() {
    below.replaceChildren();
    tabs.focus();
  }

  // --- Keys: the notebook's own stay out while something in here has the focus ---
  const press = (button) => !button.disabled && (button.click ? button.click() : button.fire("click"));
  const keys = { s: () => press(begin), p: () => press(pause), x: () => press(stop), k: () => press(save), c: code, i: pin, "?": help,
    ...Object.fromEntries(TABS.map(([name], i) => [String(i + 1), () => {
      tabs.open(name);
      tabs.focus();
    }])) };
  root.addEventListener("keydown", (event) => {
    const typing = ["TEXTAREA", "SELECT"].includes(event.target.tagName) || (event.target.tagName === "INPUT" && !["checkbox", "range"].includes(event.target.type));
    const inner = event.target.closest?.(".gptj-view");
    if (inner && inner !== root) return; // a view inside this one has keys of its own
    if (event.key === "Escape" && below.children.length) leave();
    else if (!typing && !event.ctrlKey && !event.metaKey && !event.altKey && keys[event.key]) keys[event.key]();
    else {
      if (typing) event.stopPropagation();
      return;
    }
    taken(event);
  });
  const shield = (event) => { // saving stays the notebook's
    if (!root.contains(event.target)) return;
    if ((event.ctrlKey || event.metaKey) && event.key === "s") delete event.target.dataset.lmSuppressShortcuts;
    else event.target.dataset.lmSuppressShortcuts = "true";
  };

  // --- What changes without the view ---
  const unwatch = followTheme(root);
  const view = doc.defaultView;
  view.addEventListener?.("keydown", shield, true);
  const watcher = new view.MutationObserver(() => runSide.repaint());
  watcher.observe(root, { attributes: true, attributeFilter: ["data-theme"] });
  const hello = () => {
    ask({ op: "hello" }, "f", board);
    poll();
  };
  const receive = (message, buffers) => (message.op === "changed" ? hello() : mail.receive(message, buffers));
  const live = () => model.comm_live === false && alarm("The kernel of this view is gone: run its cell again. A run with a folder goes on from its newest state.");
  const handlers = { "msg:custom": receive, comm_live_update: live };
  for (const [name, f] of Object.entries(handlers)) model.on(name, f);
  controls();
  hello();
  return () => {
    unwatch();
    watcher.disconnect();
    view.removeEventListener?.("keydown", shield, true);
    Object.values(timers).forEach(clearTimeout);
    for (const [name, f] of Object.entries(handlers)) model.off(name, f);
  };
}

export default { render };
