// The chosen head, or several, as a matrix; the same weights on the prompt's tokens.

const OF = { a: "the text, unchanged", after: "after the changes", "after-a": "after − before", b: "B", "b-a": "B − A" };

function matrixPane(x) {
  const { make, state } = x;
  const matrixTitle = make("h3", "gx-title");
  const chosen = () => (state.selected.size
    ? [...state.selected].map((each) => each.split(".").map(Number)) : [[state.layer, state.head]]);
  let field = null; // {size, bytes [S, S], signed, scale}
  function showMatrix(quiet = false) {
    if (!x.ran) return;
    const list = chosen().map(([layer, head]) => [layer, head, state.of]);
    matrixTitle.textContent = list.length > 1
      ? `${state.reduce === "max" ? "Maximum" : "Mean"} of ${list.length} heads` : `Layer ${list[0][0]}, head ${list[0][1]}`;
    ablateButton.textContent = x.ablated().has(list[0].slice(0, 2).join(".")) ? "Restore head" : "Switch head off";
    x.need(list, () => {
      const all = list.map((each) => x.weights(...each));
      const { size, signed } = all[0];
      const triangles = all.map((each) => each.bytes);
      field = { ...all[0], bytes: signed ? square(triangles[0], size) : combine(triangles, size, state) };
      sinkText.textContent = signed ? `The deepest colour is ${(100 * field.scale).toFixed(2)} points.` : `The first token takes ${share(sinkShare(triangles, size))} on average.`;
      drawMatrix();
      showRow();
      if (quiet !== true) say();
    });
  }
  const tile = (p) => floor(((p + 1) * field.size - 1) / x.shown().tokens.length);
  const spot = (i) => floor((i * x.shown().tokens.length) / field.size);
  function drawMatrix() {
    const { size, bytes, signed } = field;
    const axis = times(size, (i) => x.label(spot(i)));
    const skip = state.sink && !signed ? 1 : 0;
    matrix.show({ rows: axis, cols: axis, last: (r) => r, ...x.colours(signed),
      q: (r, c) => (c > r || r < skip || c < skip ? -1 : bytes[r * size + c]),
      text: (r, c) => (signed ? "" : (100 * weight(bytes[r * size + c])).toFixed(0)) }, cross());
  }
  const value = (query, key) => {
    const q = field.bytes[tile(query) * field.size + tile(key)];
    return field.signed ? ((q - 128) / 127) * field.scale : weight(q);
  };
  const cross = () => [tile(state.query), tile(min(state.key, state.query))];
  function showRow(from) {
    if (!field) return;
    const { query, key } = state;
    if (from && from !== "pointer" && from !== "key") matrix.show(matrix.data, cross()); // moved elsewhere
    const n = x.shown().tokens.length;
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
    const token = `'${x.token(query)}' (${query}, id ${x.shown().ids[query]})`;
    stripTitle.textContent = state.reads ? `What ${token} reads, in %` : `Who reads ${token}, in %`;
  }
  function say(exact) {
    if (!field) return;
    const { query, key } = state;
    const p = exact ?? value(query, key);
    const list = chosen();
    const who = list.length > 1 ? `${list.length} heads` : `Layer ${list[0][0]} head ${list[0][1]}`;
    x.tell(field.signed ? `${who}: the share of '${x.token(key)}' (${key}) for '${x.token(query)}' (${query}) differs by ${signed(100 * p)} points`
      : `${who}: '${x.token(query)}' (${query}) reads ${exact === undefined ? share(p) : `${(100 * p).toFixed(3)} %`} from '${x.token(key)}' (${key})${state.sink ? ", first token left out" : ""}`);
  }
  function exact() { // of the cell that is held; the bytes carry two to three digits
    const { layer, head, of, query, key } = state;
    if (state.selected.size || of.includes("-") || !x.ran) return;
    x.ask({ op: "exact", layer, head, of, query }, "f", (message, row) => {
      if (matrix.held && query === state.query) say(state.sink ? row[key] / (1 - row[0]) : row[key]);
    });
  }

  const tokens = strip(make, { label: "Tokens of the prompt; arrow keys move", point: (i, from) => {
    x.at(i, null, "strip");
    if (from === "pointer") x.position();
  } });
  const stripTitle = make("span", "gx-caption");
  const sink = make.check("hide the first token", state.sink, (on) => x.set("sink", on, showMatrix), "s: leave out the first token and let the other weights add up to 100 %");
  const sinkText = make("span", "gx-caption");
  const reads = make.select("show", [["reads", "what it reads"], ["read", "who reads it"]], state.reads ? "reads" : "read", (value) => x.set("reads", value === "reads", showRow));
  const matrix = heat(make, { label: "Attention weights", point: (r, c, from) => x.at(spot(r), spot(c), from),
    lock: (r, c, held) => {
      x.keep();
      if (held) exact();
      else say();
      x.position();
    } });
  const ofs = make.select("of", Object.entries(OF), state.of, (value) => x.set("of", value, () => { begin(); x.keep(); x.all(); x.position(); }));
  const reduce = make.select("several heads", [["mean", "mean"], ["max", "maximum"]], state.reduce, (value) => x.set("reduce", value, showMatrix));
  const ramps = make.select("colours", Object.keys(RAMPS), state.ramp, (value) => x.set("ramp", value, () => { x.all(); x.tabs.run(); }));
  const gamma = make.input("γ", { type: "range", min: 0.3, max: 2.5, step: 0.1, value: state.gamma, title: "below 1 lifts what is small" },
    (value) => x.set("gamma", Number(value), x.all), "input");
  const hows = make.select("by", [["zero", "zero"], ["mean", "mean of the text"], ["freeze", "frozen pattern"]], state.how, (value) => x.set("how", value, () => {}));
  const ablateButton = make.button("Switch head off", "a", () => chosen().forEach((each) => x.ablate(...each)));
  const node = make("section", "gx-pane gx-matrix-pane", matrixTitle, tools(make, ofs, reduce, ramps, gamma,
    make.button("−", "zoom out", () => matrix.enlarge(0.5)), make.button("+", "zoom in around the crosshair", () => matrix.enlarge(2))),
  matrix.node, tools(make, ablateButton, hows, make.button("MLP off", "l: this layer's MLP", x.mlp), make.button("Cut arrow", "x: the cell under the crosshair", x.cutArrow)));
  function begin() { // of a run: what can be shown of it, and its tokens
    const there = Object.entries(OF).filter(([of]) => (of === "b-a" ? x.ran.compare?.aligned : of !== "b" || x.ran.compare));
    if (!there.some(([of]) => of === state.of)) state.of = "a";
    ofs.fill(there, state.of);
    const shown = x.shown();
    const last = shown.tokens.length - 1;
    state.query = min(state.query ?? last, last);
    state.key = min(state.key ?? 0, state.query);
    tokens.fill(shown.tokens.map((each) => each[0]), shown.ids);
  }
  const flip = () => {
    sink.input.checked = !state.sink;
    x.set("sink", !state.sink, showMatrix);
  };
  const strips = [make("div", "gx-strip-head", stripTitle, reads, sink, sinkText), tokens.node];
  return { node, strips, begin, flip, show: showMatrix, row: showRow, say, paint: matrix.paint, focus: () => matrix.node.focus(), focusTokens: tokens.focus };
}
