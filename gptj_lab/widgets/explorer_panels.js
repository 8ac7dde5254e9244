// The tabs below: logit lens and attribution here, the others in explorer_more.js. A panel is
// {name, title, node, run(), head?(), position?(), size?()}: called when that has changed.

function panels(x, makers) {
  const { make, state } = x;
  const all = makers.map((each) => each(x));
  const buttons = all.map((panel) => make("button", "gx-tab", { role: "tab", type: "button" }, panel.title));
  const bar = make("div", "gx-tabs", { role: "tablist", "aria-label": "More views" }, ...buttons);
  const body = make("div", "gx-panel", { role: "tabpanel" });
  const here = () => all.find((each) => each.name === state.tab) ?? all[0];
  const keys = rove(bar, (i) => open(all[i].name));
  function open(name) {
    state.tab = name;
    const panel = here();
    buttons.forEach((button) => button.setAttribute("aria-selected", "false"));
    keys.set(buttons, buttons.length, all.indexOf(panel));
    body.setAttribute("aria-label", panel.title);
    body.replaceChildren(panel.node);
    panel.run();
  }
  const node = make("div", "gx-tabbed", bar, body);
  const call = (what) => () => x.ran && here()[what]?.();
  open(state.tab);
  return { node, open, run: call("run"), head: call("head"), position: call("position"), size: call("size") };
}

// A box for a token's text; "" means what its placeholder says.
function tokenBox(x, caption, placeholder, change) {
  return x.make.input(caption, { placeholder }, (text) => {
    if (!text) return change(null);
    x.ask({ op: "token", text }, "u", (message) => {
      if (message.note) x.tell(message.note);
      change(message.ids[0]);
    }, caption);
  });
}

// A grid of tokens [rows, columns] that keys walk: cells are {text, rgb, title}.
function tokenGrid(x, { label, point }) {
  const { make } = x;
  const node = make("div", "gx-lens", { role: "grid", "aria-label": label });
  let wide = 1;
  let column = 0; // an arrow against the border is told on: it moves the window
  const keys = rove(node, (i, event) => {
    const edge = i % wide === column && event.key;
    column = i % wide;
    point(floor(i / wide), column, edge);
  });
  function show(rows, columns, cell, [row, at]) {
    column = at;
    wide = columns.length;
    node.style.gridTemplateColumns = `auto repeat(${wide}, minmax(0, 1fr))`;
    const held = node.contains?.(node.ownerDocument.activeElement);
    const cells = gridOf(make, node, "", rows, columns, (r, c) => {
      const { text, rgb, title } = cell(r, c);
      return tint(make("div", "gx-lens-cell", { role: "gridcell", title }, text), rgb);
    });
    keys.set(cells, wide, row * wide + at);
    if (held) keys.focus();
  }
  return { node, show };
}

// The positions that a window shows, the chosen one among them.
function windowOf(count, at, wide = 11) {
  const stop = min(count, max(wide, at + 3));
  return [max(0, stop - wide), stop];
}

const LENSES = { logit: "each layer's residual stream", tuned: "what a trained map makes of each layer's residual stream",
  jacobian: "what the layers above make of each layer's residual stream, to first order" };

function lensPanel(x) {
  const { make, state } = x;
  let by = "probability";
  let data = null;
  let row = 0; // counted from the output, which stands on top
  const grid = tokenGrid(x, { label: "Logit lens: rows are layers, the output on top; columns are positions", point(r, c, from) {
    row = r;
    const n = x.shown().tokens.length;
    let position = data.start + c;
    if (from === "ArrowRight") position += 1;
    if (from === "ArrowLeft") position -= 1;
    position = min(max(position, 0), n - 1);
    if (position !== state.query) x.at(position, null, "lens");
    x.next();
    load();
    const text = detail();
    if (text) x.tell(text);
  } });
  const aside = make("aside", "gx-aside");
  const plots = make("div", "gx-plots");
  const what = hint(make);
  if (!x.about.lenses.includes(state.lens)) state.lens = "logit";
  const pinBox = tokenBox(x, "follow token", "␣ counts", (id) => id !== null && x.pick(id));
  const node = make("div", "", tools(make,
    make.select("colour", ["probability", "entropy", "KL to the output"], by, (value) => { by = value; paint(); }),
    make.select("lens", x.about.lenses.map((each) => [each, `${each} lens`]), state.lens, (value) => x.set("lens", value, load)), pinBox), what,
  make("div", "gx-side", grid.node, aside), plots);
  function load() {
    const kind = state.lens;
    const [start, stop] = windowOf(x.shown().tokens.length, state.query, kind === "jacobian" ? 8 : 11); // as many derivatives are taken together
    what.textContent = `${OF[x.of()]}: what the network would say if it stopped there: final norm, unembedding and its bias, applied to ${LENSES[kind]}. The top row is the model's output.`;
    x.ask({ op: "lens", of: x.of(), kind, start, stop }, "if", (message, ids, logprobs, entropy, kl) => {
      data = { ...message, n: message.stop - message.start, ids, logprobs, entropy, kl };
      row = min(row, message.rows.length - 1);
      paint();
    });
    follow();
  }
  const index = (r, c) => (data.rows.length - 1 - r) * data.n + c;
  function paint() {
    if (!data) return;
    const anchors = ramp(state.ramp, x.theme());
    const top = { entropy: Math.log(x.about.vocab), "KL to the output": max(...data.kl, 1e-6) }[by];
    const part = (i) => (by === "probability" ? sqrt(exp(data.logprobs[5 * i])) : (by === "entropy" ? data.entropy : data.kl)[i] / top);
    const labels = times(data.n, (c) => x.label(data.start + c));
    grid.show([...data.rows].reverse().map((each) => (each === "output" ? "out" : each)), labels, (r, c) => {
      const i = index(r, c);
      return { text: x.name(data.ids[5 * i]), rgb: mix(anchors, part(i) ** state.gamma), title: `${share(exp(data.logprobs[5 * i]))}, entropy ${data.entropy[i].toFixed(2)} nats, KL ${data.kl[i].toFixed(2)} nats` };
    }, [row, min(max(state.query - data.start, 0), data.n - 1)]);
    detail();
  }
  function detail() {
    const c = state.query - (data?.start ?? 0);
    if (!data || c < 0 || c >= data.n) return null;
    const i = index(row, c);
    const where = data.rows[data.rows.length - 1 - row];
    const heading = where === "output" ? "output" : `before layer ${where}`;
    aside.replaceChildren(make("h4", "", `${heading}, after '${x.token(state.query)}'`), make("ul", "gx-next", ...[0, 1, 2, 3, 4].map((j) => {
      const p = exp(data.logprobs[5 * i + j]);
      return bar(make, { name: x.name(data.ids[5 * i + j]), from: 0, to: p, value: share(p), kind: "now", title: "follow it through the layers", click: () => x.pick(data.ids[5 * i + j]) });
    })), hint(make, `entropy ${data.entropy[i].toFixed(3)} nats, KL to the output ${data.kl[i].toFixed(3)} nats`));
    return `${heading}: '${x.name(data.ids[5 * i])}' ${share(exp(data.logprobs[5 * i]))} after '${x.token(state.query)}'`;
  }
  function follow() {
    if (!state.pins.length) return void plots.replaceChildren(hint(make, "Choose a token in a list, or type one, to follow it over the layers."));
    x.ask({ op: "lens_of", of: x.of(), kind: state.lens, position: state.query, ids: state.pins }, "fi", (message, logprobs, ranks) => {
      const names = message.rows;
      const count = names.length;
      const series = (all, f) => message.ids.map((id, i) => ({ name: x.name(id), style: i, values: Array.from(all.subarray(i * count, (i + 1) * count), f) }));
      const caption = `after '${x.token(message.position)}'`;
      const unpin = message.ids.map((id, i) => make.button(`${LINES[i].mark} ${x.name(id)} ✕`, "no longer follow", () => {
        state.pins = state.pins.filter((each) => each !== id);
        follow();
      }, "gx-chip"));
      plots.replaceChildren(tools(make, make.caption("followed:"), ...unpin),
        lines(make, { series: series(logprobs, exp), theme: x.theme(), names, caption: `Probability over the layers ${caption}`, unit: "probability over the layers" }),
        lines(make, { series: series(ranks, (each) => each + 1), theme: x.theme(), names, caption: `Rank over the layers ${caption}`, unit: "rank (1 = likeliest)", upside: true, log: true }));
    });
  }
  return { name: "lens", title: "Lens", node, run: () => x.ran && load(), position: load };
}

// The largest parts by name, the rest as one, so that all add up.
export function waterfall(parts, most) {
  const sorted = [...parts].sort((a, b) => abs(b.value) - abs(a.value));
  const rest = sorted.slice(most).reduce((sum, each) => sum + each.value, 0);
  const shown = sorted.slice(0, most);
  if (sorted.length > most) shown.push({ name: `${sorted.length - most} others`, value: rest });
  let at = 0;
  const steps = shown.map((each) => ({ ...each, from: at, to: (at += each.value) }));
  const low = min(0, ...steps.map((each) => each.to));
  const high = max(0, ...steps.map((each) => each.to));
  const scale = (v) => (v - low) / (high - low || 1);
  return steps.map((each) => ({ ...each, left: scale(each.from), right: scale(each.to) }));
}

function attributionPanel(x) {
  const { make, state, about } = x;
  let [token, minus] = [null, null];
  let most = 16;
  let got = null;
  const list = make("ul", "gx-fall");
  const sum = make("p", "gx-sum");
  const inputs = make("div", "gx-strip gx-inputs");
  const node = make("div", "", tools(make, tokenBox(x, "logit of", "likeliest", (id) => { token = id; run(); }),
    tokenBox(x, "minus logit of", "nothing", (id) => { minus = id; run(); }),
    make.select("parts", [["16", "16 largest"], ["40", "40 largest"], ["9999", "all"]], "16", (value) => { most = Number(value); paint(); }),
    make.button("Input gradient", "gradient × input of every token", () => gradient("gradient_x_input")),
    make.button("Integrated gradients", "", () => gradient("integrated"))), sum, list, inputs);
  function run() {
    if (!x.ran) return;
    inputs.replaceChildren();
    x.ask({ op: "attribute", of: x.of(), position: state.query, token, minus }, "f", (message, heads, mlps, others) => {
      got = { ...message, parts: [
        ...[...heads].map((value, i) => ({ name: `head ${floor(i / about.heads)}.${i % about.heads}`, value, at: [floor(i / about.heads), i % about.heads] })),
        ...[...mlps].map((value, i) => ({ name: `MLP ${i}`, value })),
        ...message.others.map((name, i) => ({ name, value: others[i] }))] };
      x.heads.addScore({ name: "attribution", label: "attribution", unit: "logits", values: heads, note: `Direct share in the logit of '${x.name(message.token)}'.` });
      paint();
    });
  }
  function paint() {
    if (!got) return;
    const what = `'${x.name(got.token)}'${got.minus === null ? "" : ` − '${x.name(got.minus)}'`}`;
    sum.textContent = `Σ of ${got.parts.length} parts = ${got.total.toFixed(4)}, logit of ${what} = ${got.logit.toFixed(4)}, difference ${got.gap.toExponential(1)} ${got.gap < 1e-3 ? "✓" : "✗"}.`;
    list.replaceChildren(...waterfall(got.parts, most).map((each) => bar(make, { name: each.name, from: each.left, to: each.right,
      value: signed(each.value, 3), kind: each.value < 0 ? "minus" : "plus", title: "choose this head", click: each.at && (() => x.choose(...each.at)) })));
  }
  function gradient(method) {
    x.ask({ op: "gradient", of: x.of(), position: state.query, token, minus, method }, "f", (message, values) => {
      const most = peak(values);
      inputs.replaceChildren(...[...values].map((value, i) => {
        const rgb = mix(DIVERGING[x.theme()], 0.5 + value / most / 2);
        return make("span", "gx-token", tint(make("span", "gx-text", x.token(i)), rgb), make("span", "gx-under", signed(value)));
      }), hint(make, message.sentence));
    });
  }
  return { name: "attribution", title: "Attribution", node, run, position: run };
}
