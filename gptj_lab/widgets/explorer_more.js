// The tabs for causes and comparisons: patching, A against B, generation, GPT-J's own, a table.

const peak = (values) => max(...[...values].filter(isFinite).map(abs), 1e-9);
// Values as bytes around 128.
export const around = (value, most) => (isFinite(value) ? round(128 + 127 * min(max(value / most, -1), 1)) : -1);

function secondPrompt(x) {
  const { make, model, about } = x;
  if (about.compare === "model") return hint(make, `B is the model ${about.name_b}, on the same prompt.`);
  const input = make("textarea", "gx-prompt", { rows: 1, "aria-label": "Prompt B" });
  input.value = model.get("prompt_b") ?? "";
  return make("div", "gx-b", make.caption("Prompt B:"), input, make.button("Run A and B", "", () => x.run({ prompt_b: input.value })));
}

const figure = (make, caption, node) => make("figure", "", make("figcaption", "gx-caption", caption), node);

// B's cells beside A's. What is dragged from one to the other, or held and dropped by Enter, is
// B's value: A is run with it.
function patchByHand(x, site) {
  const { make, state } = x;
  let start = 0;
  let dragged = null;
  const cells = (name, what, lock) => heat(make, { label: `${name}: layers by tokens; ${what}`, options: { square: false, left: 40, top: 84, most: 60, height: 530 }, lock,
    point: (r, c) => x.tell(`${name}, layer ${r}, ${map[name].data.cols[c]}: ${map[name].data.text(r, c)} ${share(map[name].data.p(r, c))}`) });
  const map = {
    B: cells("B", "Enter picks a cell up", (r, c, held) => held && x.tell(`Picked up: B, layer ${r}, '${tokens("B")[c + start][0]}' (${c + start}). Enter on a cell of A drops it.`)),
    A: cells("A", "Enter drops what was picked up", (r, c, held) => {
      if (!held) return;
      map.A.hold(false);
      if (map.B.held) drop(map.B.at, [r, c]);
      else x.tell("Pick up a cell of B first.");
    }),
  };
  const tokens = (name) => (name === "B" ? x.ran.compare : x.ran).tokens;
  function drop([from, c], [layer, position]) {
    map.B.hold(false);
    x.intervene([...x.cuts(), { kind: "patch", site: site(), layer, position: position + start, source: [from, c + start] }]);
  }
  const node = make("div", "gx-three gx-pairs", figure(make, "B: drag a cell from here, or pick it up with Enter …", map.B.node), figure(make, "… A: and drop it here", map.A.node));
  node.addEventListener("pointerdown", (event) => (dragged = map.B.under(event)));
  for (const type of ["pointermove", "pointerup"]) {
    node.addEventListener(type, (event) => {
      const cell = dragged && map.A.under(event);
      if (dragged) map.B.move(...dragged); // its crosshair stays where the drag began
      if (cell && type === "pointermove") map.A.move(...cell);
      else if (cell) drop(dragged, cell);
      if (type === "pointerup") dragged = null;
    });
  }
  node.addEventListener("pointerleave", () => (dragged = null));
  function load() {
    const [from, stop] = windowOf(x.ran.tokens.length, state.query);
    start = from;
    for (const [name, of] of [["B", "b"], ["A", x.cuts().length ? "after" : "a"]]) {
      x.ask({ op: "lens", of, kind: "logit", start, stop }, "if", (message, ids, logprobs) => {
        const wide = message.stop - message.start;
        const at = (r, c) => 5 * (r * wide + c);
        const p = (r, c) => exp(logprobs[at(r, c)]);
        map[name].show({ rows: times(x.about.layers, String), cols: times(wide, (i) => `${tokens(name)[start + i][0]} ${start + i}`), flat: true, ...x.colours(), p,
          q: (r, c) => round(255 * sqrt(p(r, c))), text: (r, c) => x.name(ids[at(r, c)]) });
      }, name);
    }
  }
  return { node, load, size: () => Object.values(map).forEach((each) => each.paint()) };
}

function patchPanel(x) {
  const { make, state, about } = x;
  const WHAT = { resid_pre: "residual stream", attn_out: "attention's output", mlp_out: "MLP's output", heads: "heads", ablate_heads: "switch off each head", ablate_mlps: "switch off each MLP" };
  let what = "resid_pre";
  let job = null; // {…message, cells}
  let running = false;
  const text = make("p", "gx-sentence");
  const said = hint(make);
  const progress = make("progress", "", { "aria-label": "progress of the sweep" });
  const map = heat(make, { label: "Effect of each place", options: { square: false, top: 84, left: 40, most: 60, height: 400 }, point(r, c) {
    said.textContent = `layer ${r}, ${map.data.cols[c]}: ${signed(map.data.value(r, c), 3)}`;
    x.tell(said.textContent);
  } });
  const go = make.button("Start", "", () => (running ? stop() : start()), "gx-primary");
  const put = make.button("Put B's value into A here", "", () => {
    const [layer, place] = map.at;
    x.toggle(job.what === "heads" ? { kind: "patch_head", layer, head: place, position: null } : { kind: "patch", site: job.what, layer, position: place });
  });
  const byHand = patchByHand(x, () => (what.endsWith("_out") ? what : "resid_pre"));
  const node = make("div", "");
  const bar_ = tools(make, make.select("patch", Object.entries(WHAT), what, (value) => (what = value)), go, put, progress);
  const pair = () => x.ran?.compare?.aligned;
  const position = () => pair() && byHand.load();
  function run() {
    byHand.node.hidden = !pair();
    node.replaceChildren(secondPrompt(x), bar_, text, map.node, said, byHand.node);
    position();
    if (job && job.run !== x.ran?.run) {
      job = null;
      running = false;
      go.textContent = "Start";
    }
    progress.hidden = map.node.hidden = !job;
    put.disabled = !job || !pair() || job.what.startsWith("ablate");
    if (!job) text.textContent = "B (corrupt) is run with A's (clean) value put in at one place after the other: 1 = A's answer is back, 0 = nothing happened. Left of the first token that differs nothing can happen. A and B need equally many tokens; switching off needs no B.";
    draw();
  }
  function stop() {
    running = false;
    go.textContent = "Start";
    text.textContent += ` Stopped at ${job.done} of ${job.total}.`;
  }
  function start() {
    x.ask({ op: "sweep", what, token: null, minus: null, position: x.ran.tokens.length - 1 }, "f", (message) => {
      job = { ...message, run: x.ran.run, cells: new Float32Array(message.shape[0] * message.shape[1]).fill(NaN) };
      running = true;
      go.textContent = "Stop";
      run();
      text.textContent = message.sentence ?? "";
      pull();
    });
  }
  function pull() {
    if (!running) return;
    x.ask({ op: "sweep_next", sweep: job.sweep }, "f", (message, cells) => {
      if (message.sweep !== job?.sweep) return;
      job.cells.set(cells, message.from);
      Object.assign(job, { done: message.done, total: message.total });
      draw();
      if (message.done < message.total) return void pull();
      running = false;
      go.textContent = "Start";
      if (job.what === "ablate_heads") x.heads.fresh();
      x.tell(`The sweep is finished: the largest effect is ${signed(peak(job.cells), 3)}.`);
    });
  }
  function draw() {
    if (!job) return;
    progress.max = job.total || 1;
    progress.value = job.done;
    const most = job.what.startsWith("ablate") ? peak(job.cells) : max(1, peak(job.cells));
    const { cells, shape: [rows, columns] } = job;
    const value = (r, c) => cells[r * columns + c];
    // The causal cone: before the first token that differs A and B hold the same, so nothing is there.
    const differs = x.ran.ids.findIndex((id, i) => id !== x.ran.compare?.ids[i]);
    const first = job.columns === "position" ? differs : 0;
    map.show({ rows: times(rows, (i) => String(i)), cols: times(columns, (i) => (job.columns === "position" ? `${x.token(i, x.ran)} ${i}` : job.columns === "head" ? `head ${i}` : "MLP")),
      ...x.colours(true), flat: true, value, q: (r, c) => (c < first ? -1 : around(value(r, c), most)), text: (r, c) => signed(value(r, c), 1) });
  }
  return { name: "patch", title: "Patching", node, run, position, size: () => [map.paint, byHand.size].forEach((f) => f()) };
}

function comparePanel(x) {
  const { make, state, about } = x;
  const SIDES = ["a", "b", "b-a"];
  const text = make("p", "gx-sentence");
  const best = make("p", "gx-best");
  const chart = make("div", "gx-plots");
  const maps = SIDES.map((of, i) => heat(make, { label: `Attention of ${of}`, options: { top: 60, left: 60, most: 26 }, point: (r, c) => {
    const found = x.weights(state.layer, state.head, of);
    const q = found.bytes[triangle(r, c)];
    const { rows } = maps[i].data;
    x.tell(`${OF[of]}: '${rows[r]}' reads ${found.signed ? signed((100 * (q - 128) * found.scale) / 127) + " points" : share(weight(q))} from '${rows[c]}'`);
    for (const other of maps) if (other.data && other.at + "" !== `${r},${c}`) other.show(other.data, [r, c]);
  } }));
  const three = make("div", "gx-three", ...SIDES.map((of, i) => figure(make, of.toUpperCase().replace("-", " − "), maps[i].node)));
  const node = make("div", "");
  function run() {
    node.replaceChildren(secondPrompt(x), text, best, three, chart);
    const on = Boolean(x.ran?.compare);
    three.hidden = !on;
    if (!on) {
      text.textContent = "There is no B yet: type a prompt, or give Explorer(model, prompt, compare=other_model).";
      return best.replaceChildren(), chart.replaceChildren();
    }
    x.ask({ op: "compare" }, "f", (message, moved, a, b, kl) => {
      text.textContent = message.sentence;
      best.replaceChildren(make.caption(message.top.length ? "heads moved most: " : ""), ...message.top.map(([l, h, d]) =>
        make.button(`${l}.${h} (${d.toFixed(3)})`, "choose this head", () => x.choose(l, h), "gx-link")));
      if (message.aligned) x.heads.addScore({ name: "moved", label: "distance A to B", unit: "bits^½", values: moved, note: "Jensen-Shannon distance of the head's weights." });
      const cost = (all) => [...all].map((each) => -each);
      const series = [{ name: "A", values: cost(a), style: 0 }, { name: "B", values: cost(b), style: 1 }];
      if (message.aligned) series.push({ name: "KL", values: [...kl], style: 2 });
      chart.replaceChildren(lines(make, { series, theme: x.theme(), width: 900, at: min(state.query, a.length - 1), caption: "Surprise of each token in A and B, in nats", unit: "surprise of each token (nats), by position" }));
    });
    head();
  }
  function head() {
    if (!x.ran.compare) return;
    const sides = x.ran.compare.aligned ? SIDES : SIDES.slice(0, 2);
    three.children[2].hidden = sides.length < 3;
    x.need(sides.map((of) => [state.layer, state.head, of]), () => sides.forEach((of, i) => {
      const { bytes, size, signed: both } = x.weights(state.layer, state.head, of);
      const tokens = of === "b" ? x.ran.compare.tokens : x.ran.tokens;
      const names = times(size, (j) => tokens[floor((j * tokens.length) / size)]?.[0] ?? "");
      maps[i].show({ rows: names, cols: names, ...x.colours(both), last: (r) => r, q: (r, c) => (c > r ? -1 : bytes[triangle(r, c)]) });
    }));
  }
  return { name: "compare", title: "Compare A | B", node, run, head, size: () => maps.forEach((each) => each.paint()) };
}

function generatePanel(x) {
  const { make, state } = x;
  const field = (caption, value, step, max) => make.input(caption, { type: "number", value, min: 0, step, max });
  const [count, heat_, seed] = [field("tokens", 20, 1, 512), field("temperature", 0, 0.1, 2), field("seed", 0, 1, 1e9)];
  let running = false;
  const text = make("p", "gx-generated");
  const said = make("p", "gx-sentence");
  const scrub = make.input("step through it:", { type: "range" }, (value) => {
    x.at(Number(value), null, "scrub");
    tell();
  }, "input");
  const slider = scrub.input;
  const go = make.button("Continue the prompt", "by the plain model: nothing is changed in it", () => (running ? halt() : start()), "gx-primary");
  const node = make("div", "", tools(make, count, heat_, seed, go), text,
    make("div", "gx-scrub", scrub), said);
  function show(on) {
    running = on;
    go.textContent = on ? "Stop" : "Continue the prompt";
  }
  const halt = () => {
    show(false);
    x.ask({ op: "generate_stop" }, "f", take, "generate");
  };
  function start() {
    text.textContent = "";
    x.ask({ op: "generate", max_new_tokens: Number(count.input.value), temperature: Number(heat_.input.value), seed: Number(seed.input.value) }, "f", (message) => {
      show(true);
      take(message);
    });
  }
  function take(message) {
    text.textContent += message.ids.map(x.text).join("");
    if (message.last) {
      show(false);
      x.hello();
    } else if (running) x.ask({ op: "generate_next" }, "f", take, "generate");
  }
  function tell() {
    const next = state.query + 1;
    said.textContent = next < x.ran.tokens.length
      ? `At step ${next - x.ran.prompt_tokens + 1} the network stood at '${x.token(state.query, x.ran)}' and '${x.token(next, x.ran)}' came with ${share(exp(x.ran.logprobs[next]))}. All panes show that step.`
      : "The last step: what would come next stands above.";
  }
  function run() {
    if (!x.ran) return;
    const n = x.ran.tokens.length;
    Object.assign(slider, { min: String(min(x.ran.prompt_tokens, n) - 1), max: String(n - 1) });
    slider.value = String(state.query);
    slider.disabled = n <= x.ran.prompt_tokens;
    if (!slider.disabled) text.textContent = x.ran.tokens.slice(x.ran.prompt_tokens).map((each) => each[1] ?? each[0]).join("");
    tell();
  }
  return { name: "generate", title: "Generate", node, run };
}

function specialPanel(x) {
  const { make, state, about } = x;
  const say = ["rotary", "ledger", "circuit"].map(() => make("p", "gx-sentence"));
  const wheel = heat(make, { label: "Share of each frequency in the score", options: { square: false, left: 112, top: 44, most: 40, height: 330 }, point(r, c) {
    const found = wheel.data;
    x.tell(`${found.rows[r]}, distance ${c}: ${signed(found.values[r * found.cols.length + c], 3)}`);
  } });
  const ledger = make("div", "gx-ledger");
  const circuits = make("div", "gx-three");
  let kind = "ov";
  const node = make("div", "", make("h4", "", "Rotary: the score by frequency and distance"), say[0], wheel.node,
    make("h4", "", about.parallel ? "The parallel block: what attention and MLP write side by side" : "The block: what attention and MLP write"), say[1], ledger,
    make("h4", "", "Circuits: what the head's matrices do to tokens"), make.select("circuit", [["ov", "OV: what reading this token promotes"], ["qk", "QK: which tokens it would read"]], kind, (value) => { kind = value; circuit(); }), say[2], circuits);
  function head() {
    const { layer, head: h, query } = state;
    if (about.rotary) {
      x.ask({ op: "rotary", layer, head: h, query: min(query, x.ran.tokens.length - 1), key: state.key }, "f", (message, waves, scores, values) => {
        const rows = waves.length + 1;
        const columns = values.length / rows;
        const most = peak(values);
        say[0].textContent = message.sentence;
        wheel.show({ rows: [...[...waves].map((each) => `turn in ${each < 100 ? each.toFixed(1) : each.toFixed(0)}`), "no position"], cols: times(columns, (i) => String(i)), values,
          ...x.colours(true), flat: true, q: (r, c) => around(values[r * columns + c], most), text: (r, c) => signed(values[r * columns + c], 1) });
      });
    } else say[0].textContent = "This network has learned position vectors, no rotary ones.";
    wheel.node.hidden = !about.rotary;
    circuit();
  }
  function circuit() {
    const { layer, head: h } = state;
    x.ask({ op: "circuit", layer, head: h, kind, token: x.shown().ids[kind === "qk" ? state.query : state.key] }, "ifif", (message, most, high, least, low) => {
      const top = max(peak(high), peak(low));
      const list = (heading, ids, values, color) => make("div", "", make("p", "gx-caption", heading), make("ul", "gx-next", ...[...ids].map((id, i) =>
        bar(make, { name: x.name(id), from: 0, to: abs(values[i]) / top, value: signed(values[i]), kind: color }))));
      say[2].textContent = message.sentence;
      circuits.replaceChildren(list("most", most, high, "plus"), list("least", least, low, "minus"));
    });
  }
  function position() {
    x.ask({ op: "ledger", position: state.query, of: x.of() }, "fif", (message, norms, ids) => {
      say[1].textContent = message.sentence;
      const promoted = (l, side) => [0, 1, 2].map((j) => x.name(ids[(l * 2 + side) * 3 + j])).join("  ");
      ledger.replaceChildren(table(make, `Norms at '${x.token(message.position)}', and the tokens that are promoted most`,
        ["layer", "stream", "attention adds", "MLP adds", "cosine", "attention promotes", "MLP promotes"],
        times(about.layers, (l) => [String(l), ...[0, 1, 2].map((j) => norms[4 * l + j].toFixed(2)), signed(norms[4 * l + 3]), promoted(l, 0), promoted(l, 1)])));
    });
    head();
  }
  return { name: "special", title: `Inside ${about.title}`, node, run: () => x.ran && position(), head, position, size: () => wheel.paint() };
}

function tablePanel(x) {
  const { make, state } = x;
  const node = make("div", "gx-tables");
  function run() {
    if (!x.ran) return;
    const { layer, head, query } = state;
    x.ask({ op: "exact", layer, head, of: x.of(), query }, "f", (message, row) => {
      const keys = [...row.keys()].sort((a, b) => row[b] - row[a]).slice(0, 40);
      const scores = x.heads.all();
      node.replaceChildren(table(make, `Layer ${layer} head ${head}: what '${x.token(query)}' (${query}) reads`, ["token", "position", "weight"],
        keys.map((k) => [x.token(k), String(k), row[k].toFixed(5)])),
      table(make, `Scores of layer ${layer}`, ["head", ...scores.map((each) => each.label)], times(x.about.heads, (h) =>
        [`${layer}.${h}`, ...scores.map((each) => { const v = each.values[layer * x.about.heads + h]; return isFinite(v) ? v.toFixed(3) : "–"; })])));
    }, "table");
  }
  return { name: "table", title: "As a table", node, run, head: run, position: run };
}
