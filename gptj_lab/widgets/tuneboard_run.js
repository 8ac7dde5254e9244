// The run as it goes: numbers, curves, samples.

const SMALL = [
  { column: 2, name: "learning rate", style: 2 },
  { column: 3, name: "gradient norm", style: 3 },
  { column: 4, name: "tokens/s", style: 4 },
  { column: 6, name: "memory", style: 0, words: size },
];
const TILES = ["training loss", "held-out loss", "best", "tokens/s", "time", "memory"];

export function runPane(x) {
  const { make } = x;
  const tiles = new Map(TILES.map((name) => [name, make("dd", "gt-value", "–")]));
  const flags = make("ul", "gt-flags", { "aria-label": "What to know about this run" });
  const line = make("p", "gt-line");
  const say = (sentence) => (line.textContent = sentence || hint);
  const hint = "Point at a curve, or move over it with the arrow keys.";
  say("");
  const losses = chart(x, { caption: "Training and held-out loss over the steps", unit: "nats a token", width: 640, height: 250, say });
  const small = SMALL.map((each) => ({ ...each, chart: chart(x, { caption: `${each.name} over the steps`, width: 210, height: 104, say, words: each.words }) }));
  const key = make("div");
  const sampleHead = make("span", "gt-caption-of-samples");
  const slider = make("input", "", { type: "range", min: 0, max: 0, step: 1, "aria-label": "Evaluation" });
  const samples = make("div", "gt-samples");
  const node = make("div", "", make("dl", "gt-tiles", ...[...tiles].map(([name, value]) => make("div", "gt-tile", make("dt", "", name), value))), flags,
    make("div", "gt-two gt-wide-left",
      make("div", "gt-pane", key, losses.node, line, make("div", "gt-small", ...small.map((each) => make("figure", "", make("figcaption", "", each.name), each.chart.node)))),
      make("div", "gt-pane", make("div", "gt-row", make("h3", "", "Samples"), slider, sampleHead), samples)));
  let follow = true; // the newest samples
  let asked = null;
  let lines = []; // of the large chart: [style, name]

  slider.addEventListener("input", () => {
    follow = Number(slider.value) === Number(slider.max);
    fetch(Number(slider.value));
  });
  function fetch(index) {
    asked = `${x.state.run}:${index}`;
    x.ask({ op: "samples", run: x.state.run, index }, "f", showSamples);
  }
  function showSamples({ index, count: all, step, items }) {
    slider.max = all - 1;
    slider.value = index;
    sampleHead.textContent = `at step ${count(step)}`;
    slider.setAttribute("aria-valuetext", `step ${count(step)}`);
    samples.replaceChildren(...(items.length ? items : [{ prompt: "", pieces: [["There are no sample prompts in the settings.", false]] }]).map(({ prompt, pieces }) =>
      make("p", "gt-sample", make("b", "", prompt), ...pieces.map(([text, fresh]) => (fresh ? make("ins", "gt-new", text) : text)))),
    ...(items.some((each) => each.pieces.some((piece) => piece[1])) ? [make("p", "gx-hint", make("ins", "gt-new", "Underlined"), ": not in the sample of the evaluation before.")] : []));
  }

  function show(state, curves, evaluations) {
    const n = curves.length / 7;
    const column = (i) => curves.subarray(i * n, (i + 1) * n);
    const m = evaluations.length / 3;
    const [at, held] = [evaluations.subarray(0, m), evaluations.subarray(m, 2 * m)];
    const [steps, loss] = [column(0), smoothed(column(1))];
    const best = [...held].reduce((low, v, i) => (isFinite(v) && (low < 0 || v < held[low]) ? i : low), -1);
    const last = (values) => [...values].findLast(isFinite);
    const values = {
      "training loss": digits(last(loss), 4), "held-out loss": digits(last(held), 4),
      best: best < 0 ? "–" : `${digits(held[best], 4)} at ${count(at[best])}`, "tokens/s": count(state.tokens_per_second ?? last(column(4))),
      time: state.active && state.seconds_left !== null ? `${span(state.seconds_left)} left` : span(last(column(5))), memory: size(last(column(6))),
    };
    for (const [name, value] of Object.entries(values)) tiles.get(name).textContent = value;
    const others = state.others.map((each, i) => ({ name: `held out, run ${each.run + 1}`, x: each.points.map((p) => p[0]), y: each.points.map((p) => p[1]), style: 2 + (i % 3) }));
    losses.update({ until: state.steps, levels: state.base_loss === null ? [] : [{ y: state.base_loss, name: `base ${digits(state.base_loss, 3)}: where it should start` }], series: [
      { name: "", x: steps, y: column(1), style: 0, faint: true }, { name: "training loss", x: steps, y: loss, style: 0 },
      { name: "held-out loss", x: at, y: held, style: 1, marks: true, ...(best < 0 ? {} : { best }) }, ...others] });
    lines = [[0, "training loss"], [1, "■ held-out loss, ★ best"], ...others.map((each) => [each.style, each.name])];
    key.replaceChildren(legend(x, lines));
    for (const each of small) each.chart.update({ zero: true, levels: [], series: [{ name: each.name, x: steps, y: column(each.column), style: each.style }] });
    flags.replaceChildren(...state.flags.map((each) => make("li", `gt-flag gt-${each.kind}`, each.text)), ...(state.error ? [make("li", "gt-flag gt-warning", state.error)] : []));
    if (!state.evaluations) samples.replaceChildren(make("p", "gx-hint", "They come with the first evaluation."));
    else if ((follow && asked !== `${state.run}:${state.evaluations - 1}`) || !asked?.startsWith(`${state.run}:`)) fetch(state.evaluations - 1);
    slider.max = max(0, state.evaluations - 1);
    slider.disabled = state.evaluations < 2;
  }
  function repaint() {
    for (const each of [losses, ...small.map((one) => one.chart)]) each.draw();
    key.replaceChildren(legend(x, lines));
  }
  return { node, show, repaint };
}
