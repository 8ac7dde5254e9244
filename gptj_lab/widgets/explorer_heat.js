// A heat map on two canvases: cells below, crosshair above, so that pointing paints no cell again.

const FONT = "ui-monospace, 'DejaVu Sans Mono', monospace";

// Where the cells lie: gutters for the names, then cells of equal size.
export function layout(width, rows, cols, { square = true, left = 84, top = 88, height = 420, most = 46 } = {}) {
  const w = min(most, (width - left - 6) / cols);
  const h = square ? w : min(most * 0.55, max(6, (height - top) / rows));
  return { left, top, w, h, width: left + w * cols + 4, height: top + h * rows + 4 };
}

// What of n cells is seen at a zoom of 1, 2, 4 ... around one of them.
export function part(n, zoom, at) {
  const size = max(min(n, 4), ceil(n / zoom));
  const from = min(max(0, at - floor(size / 2)), n - size);
  return [from, from + size];
}

// Cells as pixels: several to a pixel where there is no room, the strongest of them is seen.
export function pool(data, [r0, r1], [c0, c1], by) {
  const [n, m] = [ceil((r1 - r0) / by), ceil((c1 - c0) / by)];
  const found = new Int16Array(n * m).fill(-1);
  const far = (q) => (data.zero ? abs(q - data.zero) : q);
  for (let r = r0; r < r1; r++) {
    for (let c = c0; c < c1; c++) {
      const q = data.q(r, c);
      const i = floor((r - r0) / by) * m + floor((c - c0) / by);
      if (q >= 0 && (found[i] < 0 || far(q) > far(found[i]))) found[i] = q;
    }
  }
  return { n, m, found };
}

// data: {rows, cols (names), q(r, c) → 0..255 or −1 where nothing is, lut, mask, text(r, c)?, zero?}
export function heat(make, { label, options = {}, point, lock }) {
  const base = make("canvas", "gx-canvas");
  const over = make("canvas", "gx-canvas gx-over");
  const box = make("div", "gx-heat", { role: "application", "aria-roledescription": "heat map",
    "aria-label": `${label}; arrow keys move, Enter holds a cell, plus and minus zoom`, tabindex: 0 }, base, over);
  const view = base.ownerDocument.defaultView;
  let data = null;
  let at = [0, 0];
  let held = false;
  let zoom = 1;
  let place = null;
  let seen = null;

  const size = () => [data.rows.length, data.cols.length];
  function context(canvas) {
    const pen = penOf(canvas, place.width, place.height);
    pen.font = `12px ${FONT}`;
    return pen;
  }
  function write(pen, text, x, y, room) {
    let shown = text;
    let width = pen.measureText(shown).width;
    while (shown.length > 1 && width > room) {
      shown = `${shown.slice(0, min(-2, ceil(shown.length * (room / width - 1))))}…`;
      width = pen.measureText(shown).width;
    }
    pen.fillText(shown, x, y);
  }
  // The name of row or column i, in its gutter; a column's stands upright.
  function name(pen, down, i) {
    const { left, top, w, h } = place;
    pen.textBaseline = "middle";
    pen.textAlign = down ? "right" : "left";
    if (down) return write(pen, data.rows[i], left - 5, top + (i - seen[0][0] + 0.5) * h, left - 8);
    pen.save();
    pen.translate(left + (i - seen[1][0] + 0.5) * w, top - 5);
    pen.rotate(-Math.PI / 2);
    write(pen, data.cols[i], 0, 0, top - 8);
    pen.restore();
  }
  function paint() {
    if (!data) return;
    const [rows, cols] = size();
    const rowPart = part(rows, data.flat ? 1 : zoom, at[0]);
    const colPart = part(cols, zoom, at[1]);
    seen = [rowPart, colPart];
    place = layout(box.clientWidth || 420, rowPart[1] - rowPart[0], colPart[1] - colPart[0], options);
    const by = max(1, floor(1 / max(min(place.w, place.h), 0.05)));
    const { n, m, found } = pool(data, rowPart, colPart, by);
    const small = pixelsOf(make, m, n);
    found.forEach((q, i) => (small.pixels[i] = q < 0 ? data.mask : data.lut[q]));
    small.put();
    const pen = context(base);
    pen.imageSmoothingEnabled = false;
    const { left, top, w, h } = place;
    pen.drawImage(small.canvas, left, top, m * by * w, n * by * h);
    pen.fillStyle = colour("--soft");
    for (const [down, [from, to], size] of [[true, rowPart, h], [false, colPart, w]]) {
      for (let i = from; i < to; i += max(1, ceil(13 / size))) name(pen, down, i);
    }
    if (numbered()) numbers(pen);
    cross();
  }
  const numbered = () => data.text && place.w >= 27 && place.h >= 15;
  function numbers(pen) {
    const [[r0, r1], [c0, c1]] = seen;
    const { left, top, w, h } = place;
    pen.textAlign = "center";
    pen.font = `${min(12, floor(w / 2.9))}px ${FONT}`;
    for (let r = r0; r < r1; r++) {
      for (let c = c0; c < c1; c++) {
        const q = data.q(r, c);
        const text = q < 0 ? "" : data.text(r, c);
        if (!text) continue;
        pen.fillStyle = inkOn(parts(data.lut[q]));
        write(pen, text, left + (c - c0 + 0.5) * w, top + (r - r0 + 0.5) * h, w - 2);
      }
    }
  }
  const colour = (name) => view.getComputedStyle(box).getPropertyValue(name).trim() || "#777777";
  function cross() {
    if (!place) return;
    const pen = context(over);
    const [[r0], [c0]] = seen;
    const { left, top, w, h } = place;
    const [x, y] = [left + (at[1] - c0) * w, top + (at[0] - r0) * h];
    const [bw, bh] = [max(w, 5), max(h, 5)];
    pen.fillStyle = colour("--mark");
    pen.fillRect(left, numbered() ? y : y + h / 2 - 0.5, x - left, 1); // beside numbers, not through them
    pen.fillRect(numbered() ? x : x + w / 2 - 0.5, top, 1, y - top);
    for (const [style, wide] of [["--rim", held ? 6 : 4], ["--mark", held ? 4 : 2]]) {
      pen.strokeStyle = colour(style);
      pen.lineWidth = wide;
      pen.strokeRect(x + (w - bw) / 2, y + (h - bh) / 2, bw, bh);
    }
    for (const [down, bounds] of [[true, [0, y + h / 2 - 8, left - 2, 16]], [false, [x + w / 2 - 8, 0, 16, top - 2]]]) {
      pen.fillStyle = colour("--accent");
      pen.fillRect(...bounds);
      pen.fillStyle = colour("--on-accent");
      name(pen, down, at[down ? 0 : 1]);
    }
  }
  function move(row, col, from) {
    const [rows, cols] = size();
    const to = [min(max(row, 0), rows - 1), min(max(col, 0), cols - 1)];
    if (data.q(...to) < 0) to[1] = min(to[1], data.last ? data.last(to[0]) : to[1]);
    const same = to[0] === at[0] && to[1] === at[1];
    at = to;
    if (seen && (at[0] < seen[0][0] || at[0] >= seen[0][1] || at[1] < seen[1][0] || at[1] >= seen[1][1])) paint();
    else cross();
    if (!same || from === "key") point?.(at[0], at[1], from);
  }
  function hold(on) {
    held = on;
    cross();
    lock?.(at[0], at[1], held);
  }
  function under(event) {
    if (!data || !place) return null;
    const bounds = base.getBoundingClientRect();
    const [row, col] = [floor((event.clientY - bounds.top - place.top) / place.h),
      floor((event.clientX - bounds.left - place.left) / place.w)];
    const [[r0, r1], [c0, c1]] = seen;
    if (row < 0 || col < 0 || row >= r1 - r0 || col >= c1 - c0) return null;
    return data.q(row + r0, col + c0) < 0 ? null : [row + r0, col + c0];
  }
  box.addEventListener("pointermove", (event) => {
    const cell = !held && under(event);
    if (cell) move(...cell, "pointer");
  });
  box.addEventListener("click", (event) => {
    const cell = under(event);
    if (!cell) return;
    const again = held && cell[0] === at[0] && cell[1] === at[1];
    move(...cell, "pointer");
    hold(!again);
  });
  box.addEventListener("keydown", (event) => {
    if (!data || chord(event)) return;
    const [r, c] = at;
    const last = data.last ? data.last(r) : data.cols.length - 1;
    const moves = { ArrowRight: [r, min(c + 1, last)], ArrowLeft: [r, c - 1], ArrowDown: [r + 1, c], ArrowUp: [r - 1, c],
      Home: [r, 0], End: [r, last], PageDown: [r + 8, c], PageUp: [r - 8, c] };
    if (moves[event.key]) move(...moves[event.key], "key");
    else if (event.key === "Enter" || event.key === " ") hold(!held);
    else if (event.key === "Escape" && held) hold(false);
    else if (event.key === "+" || event.key === "=") enlarge(2);
    else if (event.key === "-") enlarge(0.5);
    else return;
    taken(event);
  });
  function enlarge(by) {
    const most = data ? max(1, 2 ** floor(Math.log2(max(...size()) / 4))) : 1;
    zoom = min(max(1, zoom * by), most);
    paint();
  }
  function show(next, cell) {
    data = next;
    const [rows, cols] = size();
    at = cell ? [...cell] : at;
    at = [min(at[0], rows - 1), min(at[1], cols - 1)];
    paint();
  }
  return { node: box, show, paint, enlarge, move, hold, under, get at() { return at; }, get held() { return held; }, get data() { return data; } };
}
