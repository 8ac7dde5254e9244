// The MeshView's view: the mesh comes with it, the slices of a weight when it is chosen. All
// sentences are the kernel's, so that view and report say the same. textContent only.

// The colours of a weight's slices, [background, text]; hatches and numbers say the same again.
const lines = (angle) => `repeating-linear-gradient(${angle}deg, var(--hatch) 0 1.5px, transparent 1.5px 9px)`;
export const SLICES = [
  { light: ["#f3c969", "#1b1b1b"], dark: ["#7a5400", "#ffffff"], hatch: "none" },
  { light: ["#9fd3f2", "#1b1b1b"], dark: ["#1f5f86", "#ffffff"], hatch: lines(135) },
  { light: ["#7fcbb2", "#1b1b1b"], dark: ["#00543d", "#ffffff"], hatch: lines(45) },
  { light: ["#f5ee9e", "#1b1b1b"], dark: ["#5f5a10", "#ffffff"], hatch: lines(0) },
  { light: ["#7fb3d6", "#1b1b1b"], dark: ["#003f66", "#ffffff"], hatch: lines(90) },
  { light: ["#eaa680", "#1b1b1b"], dark: ["#7a3500", "#ffffff"], hatch: "radial-gradient(var(--hatch) 1.5px, transparent 2px) 0 0 / 9px 9px" },
  { light: ["#e3b6d0", "#1b1b1b"], dark: ["#6f3157", "#ffffff"], hatch: `${lines(45)}, ${lines(135)}` },
  { light: ["#c9ccd1", "#1b1b1b"], dark: ["#4a4f57", "#ffffff"], hatch: `${lines(0)}, ${lines(90)}` },
];
const HEIGHT = 300; // of a drawn matrix, pixels
let views = 0;

// [left, top, width, height] of a slice as fractions; a vector is one row of entries.
export function box(bounds, shape) {
  const [columns, rows] = [shape.length - 1, shape.length - 2];
  const along = (i) => (i < 0 ? [0, 1] : [bounds[i][0] / shape[i], (bounds[i][1] - bounds[i][0]) / shape[i]]);
  const [[left, width], [top, height]] = [along(columns), along(rows)];
  return [left, top, width, height];
}

// Width over height of the drawn matrix: its own, unless a slice could not be read then.
export function aspect(shape) {
  if (shape.length < 2) return 7;
  return Math.min(Math.max(shape[shape.length - 1] / shape[shape.length - 2], 0.7), 2);
}

function render({ model, el }) {
  const doc = el.ownerDocument;
  const me = `mesh-${Date.now()}-${views++}`;
  let request = 0; // answers to older requests are dropped
  const mesh = model.get("mesh");
  let shown = null; // the weight that is drawn: {name, tells, numbers}
  let current = 0; // the device, counted through the mesh's rows
  let cells = [];
  let slices = [];
  const buttons = new Map(); // weight's name → its button

  const make = (tag, className, text) => {
    const node = doc.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const root = make("section", "gptj-view gptj-meshview");
  root.setAttribute("aria-label", "MeshView");
  const style = make("style");
  style.textContent = SLICES.map((each, i) =>
    `.gptj-slice-${i} { background: ${each.hatch === "none" ? "" : `${each.hatch}, `}var(--slice-${i}); color: var(--on-slice-${i}); }\n`
    + ["light", "dark"].map((kind) =>
      `.gptj-meshview[data-theme="${kind}"] { --slice-${i}: ${each[kind][0]}; --on-slice-${i}: ${each[kind][1]}; }`).join("\n"),
  ).join("\n");
  const title = make("p", "gptj-mesh-title", mesh.title);
  const alert = make("p", "gptj-alert");
  alert.setAttribute("role", "alert");
  alert.hidden = true;
  const body = make("div", "gptj-mesh-body");
  const exchange = make("div", "gptj-exchange");
  exchange.append(make("p", "gptj-step", "4. What the devices exchange"),
    make("p", "gptj-found", mesh.exchange), make("p", "", mesh.why));
  root.append(style, title, alert, body, exchange);
  el.append(root);
  const unwatch = followTheme(root);

  const grid = make("div", "gptj-grid");
  grid.setAttribute("role", "grid");
  grid.setAttribute("aria-label", "Devices of the mesh; arrow keys move");
  const list = make("div", "gptj-weights");
  list.setAttribute("role", "group");
  list.setAttribute("aria-label", "Weights by block");
  const caption = make("p", "gptj-cut", "waiting for the kernel to be idle…");
  const matrix = make("div", "gptj-matrix");
  matrix.setAttribute("role", "img");
  const axes = make("p", "gptj-hint");
  const sentence = make("p", "gptj-sentence");
  sentence.setAttribute("role", "status");

  function build() {
    const count = mesh.devices[0].length;
    grid.style.gridTemplateColumns = `auto repeat(${count}, minmax(76px, 1fr))`;
    const head = make("div", "gptj-row");
    head.setAttribute("role", "row");
    const name = (text) => {
      const node = make("span", "gptj-axis", text);
      node.setAttribute("role", text ? "columnheader" : "presentation");
      return node;
    };
    head.append(name(""), ...mesh.devices[0].map((_, i) => name(`${mesh.axes[1]} ${i}`)));
    grid.replaceChildren(head, ...mesh.devices.map((devices, i) => {
      const row = make("div", "gptj-row");
      row.setAttribute("role", "row");
      const label = make("span", "gptj-axis", `${mesh.axes[0]} ${i}`);
      label.setAttribute("role", "rowheader");
      row.append(label, ...devices.map((device, j) => cell(device, mesh.held[i][j])));
      return row;
    }));
    list.replaceChildren(...mesh.groups.map(([group, weights], i) => {
      const details = make("details", "gptj-group");
      details.open = weights.some(([path]) => path === model.get("weight"));
      details.append(make("summary", "", group), ...weights.map(([path, label, size]) => {
        const button = make("button", "gptj-weight");
        button.type = "button";
        button.setAttribute("aria-pressed", "false");
        button.append(make("code", "", label), make("span", "gptj-hint", size));
        button.addEventListener("click", () => choose(path));
        buttons.set(path, button);
        return button;
      }));
      return details;
    }));
    const devices = make("div", "gptj-devices");
    devices.append(make("p", "gptj-step", "1. The devices, and the bytes of weights on each"), grid,
      make("p", "gptj-hint", "Point at a device, or walk with the arrow keys: same colour, same slice of the chosen weight."));
    const left = make("div", "gptj-left");
    left.append(make("p", "gptj-step", "2. Choose a weight"), list);
    const right = make("div", "gptj-right");
    right.append(make("p", "gptj-step", "3. Its slices"),
      caption, axes, matrix, sentence);
    if (count <= 4) left.prepend(devices);
    body.replaceChildren(...(count > 4 ? [devices] : []), left, right); // many stand above
  }

  function cell(device, held) {
    const index = cells.length;
    const node = make("div", "gptj-device");
    node.setAttribute("role", "gridcell");
    node.tabIndex = index ? -1 : 0;
    node.append(make("strong", "", `device ${device}`), make("span", "gptj-held", held), make("span", "gptj-chip"));
    // Not pointerover: that comes too when the page scrolls below a pointer that rests.
    node.addEventListener("pointermove", () => point(index));
    node.addEventListener("focusin", () => point(index));
    cells.push(node);
    return node;
  }

  function choose(path) {
    request += 1;
    model.send({ op: "show", req: `${me}-${request}`, weight: path });
  }

  function draw(message, parts, numbers) {
    const { shape, name, tells, cut } = message;
    const devices = mesh.devices.flat();
    shown = { name, tells, numbers };
    caption.replaceChildren(make("code", "", name), make("span", "", ` ${cut}`));
    axes.textContent = shape.length === 1
      ? `${shape[0].toLocaleString("en")} entries, from left to right`
      : `${shape.at(-2).toLocaleString("en")} rows downwards, ${shape.at(-1).toLocaleString("en")} columns from left to right`;
    matrix.style.aspectRatio = String(aspect(shape));
    matrix.style.maxWidth = shape.length === 1 ? "" : `${HEIGHT * aspect(shape)}px`;
    matrix.setAttribute("aria-label", `${name}: ${cut}`);
    const each = 2 * shape.length;
    slices = [];
    for (let i = 0; i < parts.length / each; i++) {
      const bounds = shape.map((_, d) => [parts[i * each + 2 * d], parts[i * each + 2 * d + 1]]);
      const holders = devices.filter((_, d) => numbers[d] === i);
      const node = make("div", `gptj-slice gptj-slice-${i % SLICES.length}`);
      const [left, top, width, height] = box(bounds, shape).map((part) => `${100 * part}%`);
      Object.assign(node.style, { left, top, width, height });
      const chip = make("span", "gptj-chip");
      const every = parts.length === each;
      const who = every ? " on every device" : ` device${holders.length > 1 ? "s" : ""} ${holders.join(", ")}`;
      chip.append(make("strong", "", every ? "all of it" : `slice ${i + 1}`), make("span", "", who));
      node.append(chip);
      node.addEventListener("pointermove", () => point(numbers.indexOf(i)));
      slices.push(node);
    }
    matrix.replaceChildren(...slices);
    cells.forEach((node, d) => {
      node.className = `gptj-device gptj-slice-${numbers[d] % SLICES.length}`;
      node.children[2].textContent = parts.length === each ? "all of it" : `slice ${numbers[d] + 1}`;
    });
    for (const [path, button] of buttons) button.setAttribute("aria-pressed", String(path === name));
    point(current);
  }

  function point(index) {
    if (index === current && sentence.textContent === shown?.tells[index]) return;
    cells[current].tabIndex = -1;
    current = index;
    cells[current].tabIndex = 0;
    if (!shown) return;
    const number = shown.numbers[index];
    cells.forEach((node, d) => {
      node.setAttribute("aria-selected", String(d === index));
      node.dataset.same = String(shown.numbers[d] === number);
    });
    slices.forEach((node, i) => (node.dataset.held = String(i === number)));
    sentence.textContent = shown.tells[index];
  }

  grid.addEventListener("keydown", (event) => {
    const wide = mesh.devices[0].length;
    const column = current % wide;
    const moves = {
      ArrowRight: Math.min(current + 1, cells.length - 1), ArrowLeft: Math.max(current - 1, 0),
      ArrowDown: current + wide < cells.length ? current + wide : current,
      ArrowUp: current >= wide ? current - wide : current,
      Home: current - column, End: current - column + wide - 1,
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    event.stopPropagation();
    cells[moves[event.key]].focus();
  });
  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const open = [...buttons.values()].filter((button) => button.parentNode.open);
    const at = open.indexOf(event.target);
    if (step === undefined || at < 0) return;
    event.preventDefault();
    event.stopPropagation();
    open[at + step]?.focus();
  });

  const whole = (buffer) => new Int32Array(
    buffer.buffer ? buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.byteLength) : buffer);

  function receive(message, buffers) {
    if (message.req !== `${me}-${request}`) return;
    alert.hidden = message.op !== "error";
    if (message.op === "error") {
      alert.textContent = message.text;
    } else if (message.op === "weight") {
      draw(message, ...buffers.map(whole));
    }
  }
  const follow = () => {
    if (shown && model.get("weight") !== shown.name) choose(model.get("weight"));
  };
  model.on("msg:custom", receive);
  model.on("change:weight", follow);
  build();
  choose(model.get("weight"));

  return () => {
    unwatch();
    model.off("msg:custom", receive);
    model.off("change:weight", follow);
  };
}

export default { render };
