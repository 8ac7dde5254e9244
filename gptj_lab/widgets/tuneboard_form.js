// The settings of the next run, and what it will need.

const BASICS = ["steps", "batch", "context", "learning_rate", "evaluate_every", "out", "prompts"];

export function formPane(x) {
  const { make, about } = x;
  const node = make("div", "gt-two");
  const [ofMethod, basics, more] = [make("div", "gt-fields"), make("div", "gt-fields"), make("div", "gt-fields")];
  const plan = make("div", "gt-plan", { "aria-label": "What the run needs" });
  const inputs = new Map(); // field's name → {field, row, get, set}
  for (const field of about.fields) {
    const made = line(field);
    inputs.set(field.name, made);
    (field.owner === "method" ? ofMethod : BASICS.includes(field.name) ? basics : more).append(made.row);
  }
  const rest = make("details", "gt-more", make("summary", "", "More settings"), more);
  node.append(make("div", "gt-pane", make("h3", "", "Method"), ofMethod, make("h3", "", "Run"), basics, rest),
    make("div", "gt-pane", make("h3", "", "What it needs"), plan));

  function line(field) {
    const hint = field.hint ? [make("span", "gx-hint", field.hint)] : [];
    const change = () => x.change();
    if (field.kind === "targets") {
      const boxes = field.choices.map(([value, text]) => make.check(text, false, change));
      const row = make("fieldset", "gt-field", make("legend", "gx-caption", field.label), ...boxes);
      return { field, row, get: () => field.choices.filter((_, i) => boxes[i].input.checked).map(([value]) => value),
        set: (chosen) => boxes.forEach((box, i) => (box.input.checked = chosen.includes(field.choices[i][0]))) };
    }
    if (field.kind === "lines") {
      const area = make("textarea", "gt-lines", { rows: 3, spellcheck: false });
      area.addEventListener("change", change);
      return { field, row: make("label", "gt-field", make.caption(field.label), area),
        get: () => area.value.split("\n").filter((each) => each.trim()), set: (lines) => (area.value = lines.join("\n")), input: area };
    }
    let label;
    if (field.kind === "choice") label = make.select(field.label, field.choices, field.default ?? "", change);
    else if (field.kind === "bool") label = make.check(field.label, false, change);
    else label = make.input(field.label, { type: "text", ...(field.kind === "text" ? {} : { inputmode: "decimal" }), size: field.kind === "text" ? 20 : 8, autocomplete: "off" }, change);
    const { input } = label;
    const row = make("div", "gt-field", label, ...hint);
    if (field.kind === "text" && field.choices.length) {  // suggestions; another text is taken too
      const list = make("datalist", "", ...field.choices.map(([value, text]) => make("option", "", { value }, text)));
      list.id = `gt-${field.name}-${Math.random().toString(36).slice(2)}`;
      input.setAttribute("list", list.id);
      row.append(list);
    }
    if (field.kind === "bool") return { field, row, input, get: () => input.checked, set: (on) => (input.checked = Boolean(on)) };
    return { field, row, input, get: () => (input.value === "" ? null : input.value), set: (value) => (input.value = value ?? "") };
  }

  function fill(form) {
    for (const [name, made] of inputs) {
      if (!made.input || made.input !== x.doc.activeElement || made.field.kind === "choice") made.set(form[name]);
      made.row.hidden = Boolean(made.field.method && made.field.method !== form.method);
    }
  }
  function show(told) {
    if (told.error) {
      plan.replaceChildren(make("p", "gt-flag gt-warning", told.error));
      return;
    }
    const total = max(told.needed, told.device ?? 0);
    const bar = make("div", "gt-memory", { role: "img", "aria-label": told.sentence });
    const list = make("ul", "gt-kinds");
    told.bytes.filter(([, bytes]) => bytes).forEach(([kind, bytes], i) => {
      const part = make("span", `gt-kind gt-kind-${i % 5}`);
      part.style.width = `${(100 * bytes / total).toFixed(2)}%`;
      bar.append(part);
      list.append(make("li", "", make("span", `gt-key gt-kind-${i % 5}`), `${kind} ${size(bytes)}`));
    });
    const room = told.device === null ? "" : ` of ${size(told.device)} on this device`;
    plan.replaceChildren(
      make("p", `gt-verdict gt-${told.fits ? "good" : "warning"}`, `${told.fits ? "✓ it fits" : "✗ it does not fit"}: about ${size(told.needed)}${room}`), bar, list,
      make("dl", "gt-facts", ...[
        ["trained", `${count(told.trainable)} of ${count(told.total)} numbers (${digits(100 * told.trainable / told.total, 2)} %)`],
        ["learning rate", digits(told.rate, 2)],
        ["a step", `${count(told.tokens)} tokens, ${digits(told.flops * told.tokens / 1e12, 2)} TFLOP`],
      ].flatMap(([name, value]) => [make("dt", "", name), make("dd", "", value)])),
      ...(told.told ?? []).map((each) => make("p", "gx-hint", each)),
      ...(told.fits ? [] : [make("p", "gx-hint", "Take a smaller batch or window, LoRA, or recompute (below More settings).")]));
  }
  return { node, fill, show, read: () => Object.fromEntries([...inputs].map(([name, made]) => [name, made.get()])),
    get sentence() { return plan.textContent; } };
}
