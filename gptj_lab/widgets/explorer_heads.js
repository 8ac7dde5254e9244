// All heads at a glance: one canvas of thumbnails, over it a grid of cells that keys can walk.

// The heads in the order in which they stand: by layer, or by a score, the highest first.
export function order(layers, heads, scores, sorted) {
  const all = times(layers * heads, (i) => i);
  if (!sorted || !scores) return all;
  const value = (i) => (isFinite(scores[i]) ? scores[i] : -Infinity);
  return all.sort((a, b) => value(b) - value(a) || a - b);
}

const NAME = (i, heads) => `${floor(i / heads)}.${i % heads}`;

export function overview(make, { layers, heads, choose, toggle, ablate }) {
  const canvas = make("canvas", "gx-thumbs");
  const grid = make("div", "gx-grid", { role: "grid",
    "aria-label": "Heads by layer; arrow keys move, Enter chooses, Space adds to a selection, a ablates" });
  const best = make("p", "gx-best");
  const node = make("div", "gx-overview", make("div", "gx-stage", canvas, grid), best);
  let cells = [];
  let standing = []; // index of the cell → head
  let shown = null;

  function build() {
    const name = (text) => (shown.sorted ? "" : text);
    cells = gridOf(make, grid, name("L\\H"), times(layers, name), times(heads, name), () => make("div", "gx-cell", { role: "gridcell" }));
    keys.set(cells, heads);
  }
  const place = (i) => [floor(standing[i] / heads), standing[i] % heads];
  const keys = rove(grid, (i, event) => { // moving by keys keeps several that are selected
    const click = event.type === "click";
    if (click || !shown.selected.size) (click && (event.shiftKey || chord(event)) ? toggle : choose)(...place(i));
  },
    (key, i) => {
      const act = { Enter: choose, " ": toggle, a: ablate }[key];
      act?.(...place(i));
      return act;
    });

  // {thumbs, score or undefined, colours, gamma, sorted, chosen, selected, ablated}
  function show(next) {
    const again = !cells.length || shown.sorted !== next.sorted;
    shown = next;
    const values = shown.score?.values;
    standing = order(layers, heads, values, shown.sorted);
    if (again) build();
    if (values) {
      const finite = [...values].filter(isFinite);
      const both = min(...finite) < 0;
      const high = peak(finite);
      const table = shown.tables[both ? 1 : 0];
      shown.fill = (i) => parts(isFinite(values[i]) ? table[round(255 * (both ? 0.5 + values[i] / high / 2 : values[i] / high))] : shown.mask);
    }
    paint();
    mark(shown);
  }
  function mark({ chosen, selected, ablated }) {
    const values = shown.score?.values;
    keys.choose(standing.indexOf(chosen[0] * heads + chosen[1]));
    standing.forEach((head, i) => {
      const cell = cells[i];
      const on = chosen[0] * heads + chosen[1] === head;
      const name = NAME(head, heads);
      const off = ablated.has(name);
      cell.setAttribute("aria-selected", String(on || selected.has(name)));
      cell.dataset.on = String(on);
      cell.dataset.off = String(off);
      const value = values ? `, ${shown.score.label} ${values[head].toFixed(3)}` : "";
      const text = `layer ${floor(head / heads)} head ${head % heads}${value}${off ? ", ablated" : ""}`;
      cell.setAttribute("aria-label", text);
      cell.title = text;
      cell.dataset.head = name;
      const number = values && isFinite(values[head]) ? values[head].toFixed(2).replace("0.", ".") : "";
      cell.textContent = off ? "✕" : shown.cell < 30 ? "" : shown.sorted ? name : number;
      cell.style.color = values && !off ? inkOn(shown.fill(head)) : "";
    });
    best.replaceChildren(...(values ? [make.caption(`highest ${shown.score.label}: `), ...order(layers, heads, values, true).slice(0, 6).map((i) =>
      make.button(`${NAME(i, heads)} (${values[i].toFixed(2)})`, "choose this head", () => choose(floor(i / heads), i % heads), "gx-link"))] : []));
  }
  function paint() {
    if (!shown) return;
    const width = node.clientWidth || 360;
    const cell = max(12, min(44, floor((width - 26) / heads) - 2));
    shown.cell = cell;
    grid.style.gridTemplateColumns = `24px repeat(${heads}, ${cell}px)`;
    grid.style.gridTemplateRows = `18px repeat(${layers}, ${cell}px)`;
    grid.dataset.small = String(cell < 26);
    const pen = penOf(canvas, 26 + heads * (cell + 2), 20 + layers * (cell + 2));
    const { thumbs: { bytes, size, long }, lut, mask } = shown;
    const small = pixelsOf(make, size, size);
    small.pixels.fill(mask);
    standing.forEach((head, i) => {
      const [x, y] = [26 + (i % heads) * (cell + 2), 20 + floor(i / heads) * (cell + 2)];
      if (shown.fill) {
        pen.fillStyle = css(shown.fill(head));
        pen.fillRect(x, y, cell, cell);
        return;
      }
      let at = head * long;
      for (let r = 0; r < size; r++) for (let c = 0; c <= r; c++) small.pixels[r * size + c] = lut[bytes[at++]];
      small.put();
      pen.drawImage(small.canvas, x, y, cell, cell);
    });
  }
  return { node, show, mark, paint, focus: keys.focus };
}

// The overview with its score, which panes may add to.
function headsPane(x) {
  const { make, state, about: { layers, heads } } = x;
  let thumbs = null; // {of, size, signed, bytes: [L·H] triangles, each that long}
  let scores = []; // [{name, label, unit, note, values}]
  let own = []; // scores that panes add
  const all = () => [...scores.filter((each) => !own.some((other) => other.name === each.name)), ...own];
  function takeThumbs({ of = "a", thumb: size, signed }, bytes) {
    thumbs = { of, size, signed, bytes, long: (size * (size + 1)) / 2 };
  }
  function takeScores(meta, values) {
    const each = layers * heads;
    scores = meta.map((one, i) => ({ ...one, values: values.subarray(i * each, (i + 1) * each) }));
    fillScores();
  }
  function fillScores() {
    const options = [["", "attention patterns"], ...all().map((each) => [each.name, each.label])];
    scoreBox.fill(options, options.some(([value]) => value === state.score) ? state.score : "");
  }
  function begin(message, small) { // of a run; its scores come when it is drawn
    [scores, own] = [[], []];
    takeThumbs(message, small);
  }
  const addScore = (score) => {
    own = [...own.filter((each) => each.name !== score.name), score];
    fillScores();
    if (state.score === score.name) showHeads();
  };
  const fresh = () => x.ask({ op: "scores", of: "a" }, "f", (message, values) => {
    takeScores(message.scores, values);
    if (state.score) showHeads();
    if (state.tab === "table") x.tabs.run();
  });
  const changed = () => thumbs.of.startsWith("after") && (thumbs.of = "");
  function showHeads(only = false) {
    if (!x.ran) return;
    const marks = { chosen: [state.layer, state.head], selected: state.selected, ablated: x.ablated() };
    if (only) return heatmap.mark(marks);
    const score = all().find((each) => each.name === state.score);
    scoreNote.textContent = score ? `${score.note ?? ""} ${score.unit && `(${score.unit})`}` : "";
    const draw = () => heatmap.show({ thumbs, score, ...x.colours(thumbs.signed), tables: [x.colours().lut, x.colours(true).lut], sorted: state.sorted && Boolean(score), ...marks });
    draw();
    if (thumbs.of !== state.of) {
      const { of } = state;
      x.ask({ op: "thumbs", of }, "u", (message, bytes) => {
        takeThumbs(message, bytes);
        draw();
      });
    }
  }
  const scoreBox = make.select("show", [["", "attention patterns"]], state.score, (value) => x.set("score", value, showHeads));
  const sorted = make.check("sort", state.sorted, (on) => x.set("sorted", on, showHeads), "the highest score first; cells then carry layer.head");
  const scoreNote = hint(make);
  const add = (layer, head) => {
    const name = `${layer}.${head}`;
    const chosen = `${state.layer}.${state.head}`;
    if (!state.selected.size && name !== chosen) state.selected.add(chosen);
    if (!state.selected.delete(name)) state.selected.add(name);
    showHeads(true);
    x.matrix.show();
    x.tell(`Heads: ${[...state.selected].join(", ") || chosen}`);
  };
  const heatmap = overview(make, { layers, heads, choose: x.choose, toggle: add, ablate: x.ablate });
  const node = make("section", "gx-pane gx-heads-pane", make("h3", "gx-title", "All heads"), tools(make, scoreBox, sorted), scoreNote, heatmap.node,
    hint(make, "Rows: layers. Columns: heads. Click or use arrows; Ctrl+click or Space adds one."));
  return { node, begin, changed, show: showHeads, all, addScore, fresh, paint: heatmap.paint, focus: heatmap.focus };
}
