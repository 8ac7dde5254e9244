// The Playground's view. It pulls: it asks for a chunk of tokens, paints it, asks for the next;
// to stop is to ask no more. Texts from the kernel are untrusted: textContent only.

// Likely tokens are pale, surprising ones strong: [least probability, light, dark], each
// [background, text]. Marks under the token say the same without colour.
export const BINS = [
  { from: 0.5, label: "50 % and more", mark: "none", light: ["#f3f6fa", "#1b1b1b"], dark: ["#1d242c", "#f2f2f2"] },
  { from: 0.2, label: "20 to 50 %", mark: "none", light: ["#d5e4f3", "#1b1b1b"], dark: ["#22384f", "#f2f2f2"] },
  { from: 0.05, label: "5 to 20 %", mark: "none", light: ["#a3c6e8", "#1b1b1b"], dark: ["#27568a", "#ffffff"] },
  { from: 0.01, label: "1 to 5 %", mark: "dotted", light: ["#6aa3d8", "#000000"], dark: ["#78b2ea", "#000000"] },
  { from: 0, label: "below 1 %", mark: "double", light: ["#17508f", "#ffffff"], dark: ["#d2e8ff", "#000000"] },
];

export function bin(probability) {
  return BINS.findIndex((each) => probability >= each.from);
}

export function percent(logprob) {
  const p = 100 * Math.exp(logprob);
  return `${p >= 10 ? p.toFixed(0) : p >= 0.1 ? p.toFixed(1) : p.toPrecision(1)} %`;
}

const CONTROLS = [
  { name: "temperature", label: "temperature", min: 0, max: 2, step: 0.05, range: true },
  { name: "top_p", label: "top-p", min: 0.05, max: 1, step: 0.05, range: true },
  { name: "top_k", label: "top-k (0 = all)", min: 0, max: 1000, step: 1 },
  { name: "max_new_tokens", label: "length", min: 1, max: 2048, step: 1 },
  { name: "seed", label: "seed", min: 0, max: 2147483647, step: 1 },
];
// Shown where the model or the caller has set them.
const MORE_CONTROLS = [
  { name: "repetition_penalty", label: "repetition penalty", min: 0.5, max: 2, step: 0.01 },
  { name: "min_p", label: "min-p", min: 0, max: 1, step: 0.01 },
  { name: "typical_p", label: "typical-p", min: 0.05, max: 1, step: 0.05 },
];
const FINISHED = {
  length: "the length is reached",
  stop: "a stop text came",
  end_of_text: "the text ended",
  cancelled: "stopped",
};
let views = 0;

function render({ model, el }) {
  const doc = el.ownerDocument;
  const me = `${Date.now()}-${views++}`;
  let request = 0; // answers to older requests are dropped
  let running = false;
  let asked = 0; // when the run began, ms
  let firstAt = null;
  // The texts: A's, and B's beside it where two models are compared; its tokens are
  // {id, logprob, alternatives: [[id, logprob]], where}.
  const lists = ["a", ...(model.get("model_b_name") ? ["b"] : [])].map((of) => ({ of, tokens: [], made: 0, current: -1 }));
  let list = lists[0]; // the one that is being made
  const names = new Map(); // id → [display, text or null]

  const make = (tag, className, text) => {
    const node = doc.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const root = make("section", "gptj-view gptj-playground");
  root.setAttribute("aria-label", "Playground");

  const both = model.get("model_b_name") ? ` and ${model.get("model_b_name")}` : "";
  const promptLabel = make("label", "gptj-prompt-label", `Prompt for ${model.get("model_name")}${both}`);
  const prompt = make("textarea", "gptj-prompt");
  prompt.rows = 3;
  prompt.spellcheck = false;
  prompt.value = model.get("prompt");
  promptLabel.append(prompt);

  const controls = make("div", "gptj-controls");
  const inputs = {};
  const shownControls = [...CONTROLS, ...MORE_CONTROLS.filter((each) => each.name in model.get("settings"))];
  for (const each of shownControls) {
    const label = make("label", "gptj-control");
    const caption = make("span", "gptj-caption", each.label);
    const input = make("input");
    input.type = each.range ? "range" : "number";
    for (const key of ["min", "max", "step"]) input.setAttribute(key, String(each[key]));
    input.name = each.name;
    input.value = String(model.get("settings")[each.name]);
    label.append(caption, input);
    if (each.range) {
      const shown = make("output", "gptj-value", Number(input.value).toFixed(2));
      input.addEventListener("input", () => (shown.textContent = Number(input.value).toFixed(2)));
      label.append(shown);
    }
    inputs[each.name] = input;
    controls.append(label);
  }
  const keepLabel = make("label", "gptj-control");
  const keep = make("input");
  keep.type = "checkbox";
  keep.name = "keep_end";
  keep.checked = Boolean(model.get("settings").keep_end);
  keepLabel.append(keep, make("span", "gptj-caption", "keep the end of a long prompt"));
  controls.append(keepLabel);

  const actions = make("div", "gptj-actions");
  const generate = make("button", "gptj-generate", "Generate");
  const stop = make("button", "gptj-stop", "Stop");
  generate.type = stop.type = "button";
  generate.title = "Ctrl+Enter in the prompt";
  stop.title = "Escape";
  stop.disabled = true;
  const status = make("span", "gptj-status");
  const told = make("span", "gptj-told"); // what a screen reader says: only beginnings and ends
  told.setAttribute("role", "status");
  actions.append(generate, stop, status, told);

  const alert = make("p", "gptj-alert");
  alert.setAttribute("role", "alert");
  alert.hidden = true;
  const note = make("p", "gptj-note");
  note.hidden = true;

  const body = make("div", "gptj-body");
  const texts = make("div", "gptj-texts");
  for (const each of lists) {
    const name = model.get(each.of === "a" ? "model_name" : "model_b_name");
    each.node = make("div", "gptj-tokens");
    each.node.setAttribute("role", "listbox");
    each.node.setAttribute("aria-label", `Tokens${lists.length > 1 ? ` of ${name}` : ""}, coloured by probability; arrow keys move`);
    each.node.setAttribute("aria-orientation", "horizontal");
    const column = make("div", "gptj-column");
    if (lists.length > 1) column.append(make("p", "gptj-caption", name));
    column.append(each.node);
    texts.append(column);
  }
  const detail = make("aside", "gptj-detail");
  detail.setAttribute("aria-label", "The chosen token");
  detail.append(make("p", "gptj-hint", "Point at a token, or move with the arrow keys."));
  body.append(texts, detail);

  const legend = make("div", "gptj-legend");
  legend.append(make("span", "gptj-caption", "probability:"));
  BINS.forEach((each, i) => legend.append(make("span", `gptj-token gptj-bin-${i}`, each.label)));

  root.append(promptLabel, controls, actions, alert, note, body, legend);
  el.append(root);
  const style = make("style");
  style.textContent = BINS.map((each, i) =>
    ["light", "dark"].map((kind) =>
      `.gptj-playground[data-theme="${kind}"] .gptj-bin-${i} { background: ${each[kind][0]}; color: ${each[kind][1]}; }`,
    ).join("\n") + `\n.gptj-bin-${i} { text-decoration: ${each.mark === "none" ? "none" : `underline ${each.mark}`}; }`,
  ).join("\n");
  root.prepend(style);

  const unwatch = followTheme(root);

  const display = (id) => names.get(id)?.[0] ?? `#${id}`;

  function show(of, index) {
    const token = of.tokens[index];
    if (!token) return;
    const before = of.node.children[of.current];
    if (before) {
      before.tabIndex = -1;
      before.setAttribute("aria-selected", "false");
    }
    of.current = index;
    of.node.children[index].tabIndex = 0;
    of.node.children[index].setAttribute("aria-selected", "true");
    detail.replaceChildren();
    const title = make("p", "gptj-title");
    title.append(make("code", "", display(token.id)), make("span", "gptj-id", ` token ${token.id}`));
    detail.append(title);
    if (Number.isNaN(token.logprob)) {
      detail.append(make("p", "gptj-hint", "The first token: nothing came before it."));
      return;
    }
    const rank = token.alternatives.findIndex(([id]) => id === token.id);
    detail.append(make("p", "gptj-probability",
      `${percent(token.logprob)}, ${rank < 0 ? "not among the ten likeliest" : `number ${rank + 1}`}`
      + ` (log-probability ${token.logprob.toFixed(2)} nats)`));
    const list = make("ol", "gptj-alternatives");
    for (const [id, logprob] of token.alternatives) {
      const item = make("li", id === token.id ? "gptj-chosen" : "");
      const bar = make("span", "gptj-bar");
      const full = make("span", "gptj-fill");
      full.style.width = `${Math.max(0.5, 100 * Math.exp(logprob))}%`;
      bar.append(full);
      item.append(make("code", "", display(id)), bar, make("span", "gptj-number", percent(logprob)));
      list.append(item);
    }
    detail.append(list);
  }

  function add(token) {
    const index = list.tokens.length;
    list.tokens.push(token);
    const known = names.get(token.id);
    const first = Number.isNaN(token.logprob);
    const kind = first ? "gptj-first" : `gptj-bin-${bin(Math.exp(token.logprob))}`;
    const whole = known && known[1] !== null && known[1] !== "";
    const node = make("span", `gptj-token ${kind} gptj-of-${token.where}`, whole ? known[1] : display(token.id));
    if (!whole) node.classList.add("gptj-raw");
    node.setAttribute("role", "option");
    node.setAttribute("aria-selected", "false");
    node.setAttribute("aria-label", first ? display(token.id) : `${display(token.id)} ${percent(token.logprob)}`);
    node.tabIndex = index === 0 ? 0 : -1;
    list.node.append(node);
  }
  // Where B's text leaves A's: both tokens are framed, and the place is told.
  function part() {
    const [a, b] = lists;
    const at = b.tokens.findIndex((token, i) => token.id !== a.tokens[i]?.id);
    for (const each of at < 0 ? [] : lists) each.node.children[at]?.classList.add("gptj-parting");
    const shared = (at < 0 ? b.tokens : b.tokens.slice(0, at)).filter((token) => token.where === "output").length;
    return at < 0 && a.made === b.made ? ", both texts are the same" : `, the texts share ${shared} token${shared === 1 ? "" : "s"} and then part`;
  }

  for (const of of lists) {
    const at = (event) => Array.prototype.indexOf.call(of.node.children, event.target);
    of.node.addEventListener("pointerover", (event) => show(of, at(event)));
    of.node.addEventListener("focusin", (event) => show(of, at(event)));
    of.node.addEventListener("keydown", (event) => {
      const moves = { ArrowRight: of.current + 1, ArrowLeft: of.current - 1, Home: 0, End: of.tokens.length - 1 };
      if (!(event.key in moves)) return;
      event.preventDefault();
      event.stopPropagation();
      const next = Math.min(Math.max(moves[event.key], 0), of.tokens.length - 1);
      of.node.children[next]?.focus();
    });
  }

  function clear() {
    for (const each of lists) {
      Object.assign(each, { tokens: [], made: 0, current: -1 });
      each.node.replaceChildren();
    }
    list = lists[0];
    alert.hidden = note.hidden = true;
  }

  function settle(sentence) {
    running = false;
    generate.disabled = false;
    stop.disabled = true;
    root.removeAttribute("aria-busy");
    told.textContent = sentence;
  }

  function speed() {
    const seconds = (Date.now() - firstAt) / 1000;
    const { made } = list;
    const rate = made > 1 && seconds > 0 ? `, ${((made - 1) / seconds).toFixed(0)} tokens/s` : "";
    return `${made} tokens${rate}, first after ${((firstAt - asked) / 1000).toFixed(2)} s`;
  }

  function start() {
    clear();
    begin();
  }
  function begin() {
    request += 1;
    running = true;
    asked = Date.now();
    firstAt = null;
    generate.disabled = true;
    stop.disabled = false;
    root.setAttribute("aria-busy", "true");
    status.textContent = "compiling, or reading the prompt…";
    told.textContent = "generating";
    const settings = { keep_end: keep.checked };
    for (const each of shownControls) settings[each.name] = inputs[each.name].value;
    model.send({ op: "start", req: `${me}-${request}`, of: list.of, prompt: prompt.value, settings });
  }

  function halt() {
    if (!running) return;
    model.send({ op: "cancel", req: `${me}-${request}` });
    request += 1; // whatever is still on its way is dropped
    status.textContent = firstAt === null ? "stopped" : `stopped: ${speed()}`;
    settle("stopped");
  }

  generate.addEventListener("click", start);
  stop.addEventListener("click", halt);
  root.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target === prompt) {
      event.preventDefault();
      event.stopPropagation();
      if (!running) start();
    } else if (event.key === "Escape" && running) {
      event.stopPropagation();
      halt();
    } else if (event.target === prompt || event.target.tagName === "INPUT") {
      event.stopPropagation(); // the notebook's own shortcuts stay out
    }
  });

  function receive(message, buffers) {
    if (message.req !== `${me}-${request}`) return;
    if (message.op === "error") {
      alert.textContent = message.text;
      alert.hidden = false;
      status.textContent = "";
      settle(message.text);
    } else if (message.op === "started") {
      note.textContent = message.notes.join(" ");
      note.hidden = !message.notes.length;
      if (running) model.send({ op: "next", req: message.req });
    } else if (message.op === "tokens") {
      list = lists.find((each) => each.of === message.of) ?? lists[0];
      for (const [id, name] of Object.entries(message.names)) names.set(Number(id), name);
      const [ids, logprobs, otherIds, otherLogprobs] = buffers.map(
        (buffer, i) => new (i % 2 ? Float32Array : Int32Array)(
          buffer.buffer ? buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.byteLength) : buffer),
      );
      const each = ids.length ? otherIds.length / ids.length : 0;
      for (let i = 0; i < ids.length; i++) {
        const alternatives = [];
        for (let j = i * each; j < (i + 1) * each; j++) {
          if (otherLogprobs[j] > -Infinity) alternatives.push([otherIds[j], otherLogprobs[j]]);
        }
        add({ id: ids[i], logprob: logprobs[i], alternatives, where: message.where });
        if (message.where === "output") list.made += 1;
      }
      if (message.where === "output" && firstAt === null && ids.length) firstAt = Date.now();
      if (message.where === "prompt" || !message.last) return;
      if (message.old) {
        status.textContent = `${FINISHED[message.finish_reason]}: ${list.made} tokens${list.of === "b" ? part() : ""}`;
        return;
      }
      status.textContent = message.finish_reason
        ? `${FINISHED[message.finish_reason]}: ${speed()}`
        : speed();
      if (message.finish_reason && list.of === "a" && lists[1]) {
        [list] = lists.slice(1);
        begin();
      } else if (message.finish_reason) {
        if (list.of === "b") status.textContent += part();
        settle(status.textContent);
      } else model.send({ op: "next", req: message.req });
    }
  }
  model.on("msg:custom", receive);

  // What was generated before the view was shown, if anything.
  request += 1;
  model.send({ op: "hello", req: `${me}-${request}` });

  return () => {
    unwatch();
    if (running) halt();
    model.off("msg:custom", receive);
  };
}

export default { render };
