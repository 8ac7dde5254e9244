// What comes next, before and after; and what is changed for it: chips, with undo.

export const same = (a, b) => ["kind", "layer", "head", "query", "key", "site", "position"].every((name) => (a[name] ?? null) === (b[name] ?? null));

// The list with that change in it, or without it if it is there already.
export function toggled(list, change) {
  const rest = list.filter((each) => !same(each, change));
  return rest.length === list.length ? [...list, change] : rest;
}

export function chips(make, { change, undo }) {
  const list = make("ul", "gx-chips", { "aria-label": "What is changed in the run" });
  const back = make.button("Undo", "u", undo);
  const clear = make.button("Restore all", "", () => change([]));
  const node = make("div", "gx-chipbar", make.caption("Changed:"), list, back, clear);
  function show({ interventions: all, chips: texts, undoable }) {
    const held = list.contains?.(list.ownerDocument.activeElement);
    list.replaceChildren(...(all.length ? all.map((each, i) => make("li", "", make.button(`${texts[i]} ✕`, `restore ${texts[i]}`,
      () => change(all.filter((other) => other !== each)), "gx-chip"))) : [make("li", "gx-hint", "nothing – choose a head and press the key a")]));
    back.setAttribute("aria-disabled", String(!undoable)); // disabled would lose the focus
    clear.setAttribute("aria-disabled", String(!all.length));
    if (held) back.focus();
  }
  return { node, show };
}

// kl: nats from before, or from A to B where other is "b"; null if there is nothing beside it; rows: {id, name, before, after (shares), delta (logits)}
export function nextTokens(make, { pick }) {
  const title = make("h3", "gx-title", "Next token");
  const list = make("ul", "gx-next");
  const foot = hint(make);
  const node = make("section", "gx-pane gx-next-pane", { "aria-label": "Next token" }, title, list, foot);
  function show({ heading, rows, kl, vocab, other }) {
    const two = kl !== null;
    const [was, now] = other === "b" ? ["A", "B"] : ["before", "after"];
    title.textContent = heading;
    const larger = ({ before, after }) => max(before, after || 0); // there is no after: NaN
    rows = rows.sort((a, b) => larger(b) - larger(a)).slice(0, 10);
    const most = larger(rows[0]);
    const fill = (kind, p) => {
      const node = make("span", `gx-fill gx-${kind}`);
      node.style.width = `${max(0.4, (100 * p) / most).toFixed(2)}%`;
      return node;
    };
    list.replaceChildren(...rows.map(({ id, name, before, after, delta }) => make("li", "gx-next-row",
      make.button(name, `token ${id}: follow it through the layers`, () => pick(id), "gx-link"),
      make("span", "gx-pair", fill(two ? "before" : "now", before), ...(two ? [fill("now", after)] : [])),
      make("span", "gx-number", share(two ? after : before)),
      ...(two ? [make("span", "gx-was", other === "b" ? `A ${share(before)}` : `was ${share(before)}, logit ${signed(delta)}`)] : []))));
    const rest = 1 - rows.reduce((sum, each) => sum + (two ? each.after : each.before), 0);
    foot.textContent = `The other ${(vocab - rows.length).toLocaleString("en")} tokens: ${share(max(0, rest))}.`
      + (two ? ` KL from ${was}: ${kl.toFixed(4)} nats. Hollow: ${was}, full: ${now}.` : "");
  }
  return { node, show };
}
