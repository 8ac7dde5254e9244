// What comes next, before and after; and what is switched off for it: chips, with undo.

export function describe(each) {
  const head = `head ${each.layer}.${each.head}`;
  if (each.kind === "mlp") return `MLP ${each.layer}`;
  if (each.kind === "edge") return `${head}: arrow ${each.query} → ${each.key} cut`;
  if (each.kind === "freeze") return `${head}: pattern frozen`;
  return each.how === "zero" ? head : `${head} (${each.how})`;
}

export const same = (a, b) => ["kind", "layer", "head", "query", "key"].every((name) => a[name] === b[name]);

// The list with that change in it, or without it if it is there already.
export function toggled(list, change) {
  const rest = list.filter((each) => !same(each, change));
  return rest.length === list.length ? [...list, change] : rest;
}

export function chips(make, { change, undo }) {
  const list = make("ul", "gx-chips", { "aria-label": "What is switched off" });
  const back = make.button("gx-small", "Undo", "u", undo);
  const clear = make.button("gx-small", "Restore all", "", () => change([]));
  const node = make("div", "gx-chipbar", make("span", "gx-caption", "Switched off:"), list, back, clear);
  function show(all, undoable) {
    list.replaceChildren(...(all.length ? all.map((each) => {
      const text = describe(each);
      const off = make.button("gx-chip", `${text} ✕`, `restore ${text}`,
        () => change(all.filter((other) => !same(each, other))));
      off.setAttribute("aria-label", `restore ${text}`);
      return make("li", "", off);
    }) : [make("li", "gx-hint", "nothing – choose a head and press a")]));
    back.disabled = !undoable;
    clear.disabled = !all.length;
  }
  return { node, show };
}

// {names, before, after or null (log-probabilities), delta (logits) or null, kl, vocab}
export function nextTokens(make, { pick }) {
  const title = make("h3", "gx-title", "Next token");
  const list = make("ul", "gx-next");
  const foot = make("p", "gx-hint");
  const node = make("section", "gx-pane gx-next-pane", { "aria-label": "Next token" }, title, list, foot);
  function show({ heading, ids, names, before, after, delta, kl, vocab }) {
    title.textContent = heading;
    const most = max(...before.map(exp), ...(after ?? []).map(exp), 1e-9);
    const width = (logprob) => `${max(0.4, (100 * exp(logprob)) / most).toFixed(2)}%`;
    list.replaceChildren(...ids.map((id, i) => {
      const name = make.button("gx-link", names[i], `token ${id}: follow it through the layers`, () => pick(id, names[i]));
      const old = make("span", `gx-fill ${after ? "gx-before" : "gx-now"}`);
      old.style.width = width(before[i]);
      const track = make("span", "gx-pair", old);
      const row = make("li", "gx-next-row", name, track);
      if (after) {
        const now = make("span", "gx-fill gx-now");
        now.style.width = width(after[i]);
        track.append(now);
        row.append(make("span", "gx-number", share(exp(after[i]))),
          make("span", "gx-number gx-was", `was ${share(exp(before[i]))}${delta ? `, logit ${signed(delta[i])}` : ""}`));
      } else row.append(make("span", "gx-number", share(exp(before[i]))));
      return row;
    }));
    const rest = max(0, 1 - (after ?? before).reduce((sum, each) => sum + exp(each), 0));
    foot.textContent = `The other ${(vocab - ids.length).toLocaleString("en")} tokens: ${share(rest)}.`
      + (after ? ` KL from before: ${kl.toFixed(4)} nats. Pale: before, strong: after.` : "");
  }
  return { node, show };
}
