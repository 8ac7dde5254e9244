// One head, or several: its weights as a matrix and on the tokens of the prompt.

// Where [query, key] lies in a lower triangle that is stored row by row.
export const triangle = (query, key) => (query * (query + 1)) / 2 + key;
// Weights come as one byte each, q = 255·√p: small weights keep their digits.
export const weight = (q) => (q / 255) ** 2;

// The bytes [T, T] that are shown: of one head or of several, with or without the first token.
export function combine(triangles, length, { reduce = "mean", sink = false } = {}) {
  const field = new Uint8Array(length * length);
  const start = sink ? 1 : 0;
  for (let r = start; r < length; r++) {
    for (let c = start; c <= r; c++) {
      const at = triangle(r, c);
      let value = 0;
      for (const each of triangles) {
        let p = weight(each[at]);
        if (sink) p /= max(1 - weight(each[triangle(r, 0)]), 1e-6);
        value = reduce === "max" ? max(value, p) : value + p / triangles.length;
      }
      field[r * length + c] = round(255 * sqrt(min(value, 1)));
    }
  }
  return field;
}

// Of one head: the share of the first token, over the rows that have a choice.
export function sinkShare(triangles, length) {
  let sum = 0;
  for (const each of triangles) for (let r = 1; r < length; r++) sum += weight(each[triangle(r, 0)]);
  return length > 1 ? sum / triangles.length / (length - 1) : 1;
}

export function strip(make, { label, point }) {
  const node = make("div", "gx-strip", { role: "listbox", "aria-orientation": "horizontal", "aria-label": label });
  const keys = rove(node, (i, event) => point(i, event.type));
  function fill(tokens, ids) {
    const cells = tokens.map((token, i) => make("span", "gx-token", { role: "option", "aria-label": `${token}, position ${i}, id ${ids[i]}`,
      title: `position ${i}, token id ${ids[i]}` }, make("span", "gx-text", token), make("span", "gx-under")));
    node.replaceChildren(...cells);
    keys.set(cells, cells.length);
  }
  // numbers: one of 0..255 for each token or −1; texts below them; key: the one that is pointed at.
  function paint(numbers, texts, lut, key) {
    keys.cells.forEach((cell, i) => {
      const [text, under] = cell.children;
      const q = numbers ? numbers[i] : -1;
      tint(text, q > 0 ? parts(lut[q]) : null);
      under.textContent = texts?.[i] ?? "";
      cell.dataset.key = String(i === key);
    });
  }
  function choose(i) { // and brings it into the strip's own view
    keys.choose(i);
    const cell = keys.cells[i];
    const from = cell.offsetTop - node.offsetTop;
    if (from < node.scrollTop || from + cell.offsetHeight > node.scrollTop + node.clientHeight) node.scrollTop = from - node.clientHeight / 2;
  }
  return { node, fill, choose, paint, focus: keys.focus };
}
