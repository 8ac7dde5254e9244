// After a run: base against tuned in the other views, its files; and all runs in a table.

export function afterPane(x) {
  const { make, model } = x;
  const stage = make("div", "gt-stage");
  const prompt = make("input", "", { type: "text", size: 44, "aria-label": "Prompt for both models" });
  prompt.placeholder = "a prompt for both models";
  const scale = make("input", "", { type: "range", min: 0, max: 2, step: 0.05, "aria-label": "How much of what was learnt is added" });
  const amount = make("output", "gt-number", "1.00: as trained");
  const told = make("p", "gx-hint", { role: "status" });
  scale.value = 1;
  scale.addEventListener("input", () => {
    amount.textContent = words(Number(scale.value));
    x.later("scale", 150, () => x.ask({ op: "scale", run: x.state.run, scale: Number(scale.value) }, "f", (answer) => (told.textContent = answer.text)));
  });
  let opened = null;
  const bestOf = make("span", "gt-number gx-hint");
  const best = make.input("the best model, not the last", { type: "checkbox" }, (on) => x.ask({ op: "weights", run: x.state.run, best: on }, "f", (answer) => {
    told.textContent = answer.text;
    if (opened) open(opened); // its names tell the step
  }, "weights"));
  const words = (value) => `${value.toFixed(2)}: ${value === 0 ? "off, the base" : value === 1 ? "as trained" : value < 1 ? "weaker" : "stronger"}`;
  const folder = make("input", "", { type: "text", size: 28, "aria-label": "Folder to save into" });
  folder.placeholder = "folder";
  const save = (merged) => x.ask({ op: "save", run: x.state.run, directory: folder.value, merged }, "f", (answer) => (told.textContent = answer.text), "save");
  const open = (what) => x.ask({ op: "open", what, run: x.state.run, prompt: prompt.value }, "f", ({ model: id, step }) => show((opened = what), id, step), "open");
  const node = make("div", "gt-pane",
    make("div", "gt-row", prompt, make.button("Playground: tuned and base", "", () => open("playground"), "gx-primary"), make.button("Explorer: base and tuned", "", () => open("explorer"), "gx-primary")),
    make("div", "gt-row", make.caption("what was learnt"), scale, amount, make.button("Off", "the base", () => set(0)), make.button("On", "as trained", () => set(1))),
    make("div", "gt-row", best, bestOf),
    make("div", "gt-row", make.caption("take it home"), folder, make.button("Save", "what was trained: an adapter in PEFT's format, or a Hugging Face directory", () => save(false)),
      make.button("Save merged", "a whole Hugging Face directory, with as much of what was learnt as above", () => save(true)), make.button("Download", "what was trained, as a zip file", () => x.download("result"))), told, stage);
  function set(value) {
    scale.value = value;
    scale.fire ? scale.fire("input") : scale.dispatchEvent(new Event("input"));
  }
  // Every notebook's widget manager makes a view of a model by its id.
  async function show(what, id, step) {
    const call = `board.${what}()`;
    try {
      const manager = model.widget_manager;
      const view = await manager.create_view(await manager.get_model(id));
      stage.replaceChildren(view.el);
      told.textContent = `Base and tuned model of step ${count(step)}. ${call} in a cell shows the same.`;
    } catch {
      told.textContent = `This notebook can't show a view inside another: run ${call} in a cell.`;
    }
  }
  // What there is to choose: after the run, if some text was held out.
  function offer({ run, table: rows, active, best: chosen }) {
    const row = rows[run ?? -1];
    const there = row && row.held_out !== null;
    best.input.disabled = Boolean(active) || !there;
    best.input.checked = Boolean(chosen);
    bestOf.textContent = !there ? "needs a held-out loss" : active ? "when the run has ended" : `held-out loss ${digits(row.held_out, 4)} at step ${count(row.best_step)}${row.best_step === row.step ? ", the last" : ` of ${count(row.step)}`}`;
  }
  return { node, offer };
}

export function runsPane(x) {
  const { make } = x;
  const body = make("div", "gt-table");
  const node = make("div", "gt-pane", make("div", "gt-row", make.button("CSV", "the shown run, a line a step", () => x.download("csv")), make.button("JSON", "all runs with everything", () => x.download("json"))), body);
  function show({ table: rows, run }) {
    const names = Object.keys(rows[0]?.differs ?? {});
    const head = ["run", ...names, "steps", "training loss", "best held-out", "time", "status"];
    const made = table(make, names.length ? "Runs, and the settings in which they differ" : "Runs", head, rows.map((each) => [
      make.button(`${each.run === run ? "▸ " : ""}${each.run + 1}`, "show this run", () => x.choose(each.run), "gx-link"), ...names.map((name) => each.differs[name]),
      `${count(each.step)} of ${count(each.steps)}`, digits(each.loss, 4), each.held_out === null ? "–" : `${digits(each.held_out, 4)} at ${count(each.best_step)}`, span(each.seconds), each.status]));
    body.replaceChildren(rows.length ? made : make("p", "gx-hint", "There is no run yet."));
  }
  return { node, show };
}
