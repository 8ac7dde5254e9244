// All heads at a glance: one canvas of thumbnails, over it a grid of cells that keys can walk.

// The heads in the order in which they stand: by layer, or by a score, the highest first.
export function order(layers, heads, scores, sorted) {
  const all = Array.from({ length: layers * heads }, (_, i) => i);
  if (!sorted || !scores) return all;
  const value = (i) => (Number.isFinite(scores[i]) ? scores[i] : -Infinity);
  return all.sort((a, b) => value(b) - value(a) || a - b);
}

const NAME = (i, heads) => `${Math.floor(i / heads)}.${i % heads}`;

export function overview(make, { layers, heads, choose, toggle, ablate }) {
  const canvas = make("canvas", "gx-thumbs");
  const grid = make("div", "gx-grid");
  grid.setAttribute("role", "grid");
  grid.setAttribute("aria-label", "Heads: rows are layers, columns are heads; arrow keys move, Enter chooses, Space adds to a selection, a ablates");
  const best = make("p", "gx-best");
  const node = make("div", "gx-overview", make("div", "gx-stage", canvas, grid), best);
  const view = canvas.ownerDocument.defaultView;
  let cells = [];
  let standing = []; // index of the cell → head
  let shown = null;

  function build() {
    grid.replaceChildren();
    cells = [];
    const corner = make("div", "gx-axis", shown?.sorted ? "" : "L\\H");
    corner.setAttribute("role", "columnheader");
    const head = make("div", "gx-row", corner, ...Array.from({ length: heads }, (_, h) => {
      const name = make("div", "gx-axis", shown?.sorted ? "" : String(h));
      name.setAttribute("role", "columnheader");
      return name;
    }));
    head.setAttribute("role", "row");
    grid.append(head);
    for (let l = 0; l < layers; l++) {
      const name = make("div", "gx-axis", shown?.sorted ? "" : String(l));
      name.setAttribute("role", "rowheader");
      const row = make("div", "gx-row", name);
      row.setAttribute("role", "row");
      for (let h = 0; h < heads; h++) {
        const cell = make("div", "gx-cell");
        cell.setAttribute("role", "gridcell");
        cells.push(cell);
        row.append(cell);
      }
      grid.append(row);
    }
    keys.set(cells, heads);
  }
  const place = (i) => [Math.floor(standing[i] / heads), standing[i] % heads];
  const keys = rove(grid, (i, event) => (event.type === "click" && (event.shiftKey || event.ctrlKey || event.metaKey) ? toggle : choose)(...place(i)),
    (key, i) => {
      const act = { Enter: choose, " ": toggle, a: ablate }[key];
      act?.(...place(i));
      return act;
    });

  // {thumbs [L·H, S, S], size, lut, mask, scores or null, sign, name, sorted, chosen, selected, ablated, failed}
  function show(next) {
    const again = !cells.length || shown?.sorted !== next.sorted;
    shown = next;
    if (again) build();
    standing = order(layers, heads, shown.scores, shown.sorted);
    paint();
    mark(shown);
  }
  function mark({ chosen, selected, ablated }) {
    Object.assign(shown, { chosen, selected, ablated });
    keys.choose(standing.indexOf(chosen[0] * heads + chosen[1]));
    standing.forEach((head, i) => {
      const cell = cells[i];
      const on = chosen[0] * heads + chosen[1] === head;
      const name = NAME(head, heads);
      const off = ablated.has(name);
      cell.setAttribute("aria-selected", String(on || selected.has(name)));
      cell.dataset.on = String(on);
      cell.dataset.off = String(off);
      const value = shown.scores ? `, ${shown.name} ${shown.scores[head].toFixed(3)}` : "";
      const text = `layer ${Math.floor(head / heads)} head ${head % heads}${value}${off ? ", ablated" : ""}`;
      cell.setAttribute("aria-label", text);
      cell.title = text;
      cell.dataset.head = name;
      const number = shown.scores && shown.cell >= 30 ? shown.scores[head].toFixed(2).replace("0.", ".") : "";
      cell.textContent = off ? "✕" : number || (shown.sorted && shown.cell >= 26 ? name : "");
      cell.style.color = shown.scores && shown.cell >= 30 && !off ? inkOn(shown.fill(head)) : "";
    });
    if (shown.scores) {
      const top = order(layers, heads, shown.scores, true).slice(0, 6);
      best.replaceChildren(make("span", "gx-caption", `highest ${shown.name}: `), ...top.map((i) =>
        make.button("gx-link", `${NAME(i, heads)} (${shown.scores[i].toFixed(2)})`, "choose this head",
          () => choose(Math.floor(i / heads), i % heads))));
    } else best.replaceChildren();
  }
  function paint() {
    if (!shown) return;
    const width = node.clientWidth || 360;
    const cell = Math.max(12, Math.min(44, Math.floor((width - 26) / heads) - 2));
    shown.cell = cell;
    grid.style.gridTemplateColumns = `24px repeat(${heads}, ${cell}px)`;
    grid.style.gridTemplateRows = `18px repeat(${layers}, ${cell}px)`;
    grid.dataset.small = String(cell < 26);
    const dense = view.devicePixelRatio || 1;
    const [w, h] = [26 + heads * (cell + 2), 20 + layers * (cell + 2)];
    canvas.width = w * dense;
    canvas.height = h * dense;
    canvas.style.width = `${w}px`;
    canvas.style.height = `${h}px`;
    const pen = canvas.getContext("2d");
    pen.scale(dense, dense);
    const { thumbs, size, lut, mask, scores } = shown;
    const small = make("canvas");
    small.width = small.height = size;
    const brush = small.getContext("2d");
    const image = brush.createImageData(size, size);
    const pixels = new Uint32Array(image.data.buffer);
    standing.forEach((head, i) => {
      const [x, y] = [26 + (i % heads) * (cell + 2), 20 + Math.floor(i / heads) * (cell + 2)];
      if (scores) {
        pen.fillStyle = css(shown.fill(head));
        pen.fillRect(x, y, cell, cell);
        return;
      }
      for (let r = 0, at = head * size * size; r < size; r++) {
        for (let c = 0; c < size; c++, at++) pixels[r * size + c] = c > r ? mask : lut[thumbs[at]];
      }
      brush.putImageData(image, 0, 0);
      pen.drawImage(small, x, y, cell, cell);
    });
  }
  return { node, show, mark, paint, focus: keys.focus };
}
