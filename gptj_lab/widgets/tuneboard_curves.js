// Curves over the steps of a run. Colour, dash and mark of a line always differ together; what a
// pointer or the arrow keys reach is said in words below.

const [LEFT, RIGHT, TOP, BOTTOM] = [50, 14, 8, 24];

// series: {name, x, y, style, faint?, marks?, best?}; levels: {y, name}. All of x are steps.
export function chart(x, { caption, unit, width, height, say, words = digits }) {
  const { make } = x;
  const svg = make.svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "gt-chart", role: "img", tabindex: 0 });
  let shown = { series: [], levels: [] };
  let at = null; // the step that is pointed at
  let [low, high, first, last] = [0, 1, 0, 1];
  const across = (step) => LEFT + ((step - first) / (last - first)) * (width - LEFT - RIGHT);
  const up = (value) => TOP + (1 - (min(max(value, low), high) - low) / (high - low)) * (height - TOP - BOTTOM);

  function update(next) {
    shown = next;
    const steps = next.series.flatMap((each) => [...each.x]).filter(isFinite);
    const seen = next.series.filter((each) => !each.faint);
    const values = [...(seen.length ? seen : next.series).flatMap((each) => [...each.y]), ...next.levels.map((each) => each.y)].filter(isFinite);
    [first, last] = steps.length ? [min(...steps), max(...steps, next.until ?? 0)] : [0, 1];
    if (last <= first) last = first + 1;
    [low, high] = values.length ? [min(...values), max(...values)] : [0, 1];
    const rim = 0.06 * (high - low) || 0.1 * abs(high) || 1;
    [low, high] = [next.zero ? min(0, low) : low - rim, high + rim];
    draw();
  }
  function draw() {
    const theme = x.theme();
    const parts = [];
    for (const tick of ticks(low, high, height > 150 ? 6 : 3)) {
      parts.push(make.svg("line", { x1: LEFT, x2: width - RIGHT, y1: up(tick), y2: up(tick), class: "gt-rule" }),
        make.svg("text", { x: LEFT - 6, y: up(tick) + 4, "text-anchor": "end" }, words(tick, 2)));
    }
    for (const tick of ticks(first, last, width > 400 ? 8 : 3)) {
      parts.push(make.svg("text", { x: across(tick), y: height - BOTTOM + 15, "text-anchor": "middle" }, count(tick)));
    }
    for (const level of shown.levels) {
      parts.push(make.svg("line", { x1: LEFT, x2: width - RIGHT, y1: up(level.y), y2: up(level.y), class: "gt-level" }),
        make.svg("text", { x: width - RIGHT - 4, y: up(level.y) - 4, "text-anchor": "end" }, level.name));
    }
    for (const each of shown.series) {
      const line = LINES[each.style % LINES.length];
      const points = [...each.x].map((step, i) => [across(step), up(each.y[i]), isFinite(each.y[i])]).filter((point) => point[2]);
      if (!points.length) continue;
      parts.push(make.svg("polyline", { points: points.map(([a, b]) => `${a.toFixed(1)},${b.toFixed(1)}`).join(" "), fill: "none",
        stroke: line[theme], "stroke-width": each.faint ? 1 : 2, "stroke-dasharray": each.faint ? "" : line.dash, opacity: each.faint ? 0.45 : 1 }));
      if (each.marks && points.length <= 40) {
        for (const [a, b] of points) parts.push(make.svg("text", { x: a, y: b + 4, "text-anchor": "middle", fill: line[theme], class: "gt-mark" }, line.mark));
      }
      if (each.best !== undefined && isFinite(each.y[each.best])) {
        parts.push(make.svg("text", { x: across(each.x[each.best]), y: up(each.y[each.best]) + 7, "text-anchor": "middle", class: "gt-best" }, "★"));
      }
    }
    if (at !== null) parts.push(make.svg("line", { x1: across(at), x2: across(at), y1: TOP, y2: height - BOTTOM, class: "gt-at" }));
    svg.replaceChildren(...parts);
    svg.setAttribute("aria-label", `${caption}. ${at === null ? told(last) : told(at)} Arrow keys move over the steps.`);
  }
  const nearest = (each, step) => [...each.x].reduce((best, value, i) => (isFinite(each.y[i]) && (best < 0 || abs(value - step) < abs(each.x[best] - step)) ? i : best), -1);
  function told(step) {
    const said = shown.series.filter((each) => each.name).map((each) => [each, nearest(each, step)]).filter(([, i]) => i >= 0)
      .map(([each, i]) => `${each.name} ${words(each.y[i], 4)} at step ${count(each.x[i])}`);
    return said.length ? `${said.join(", ")}${unit ? ` (${unit})` : ""}.` : "Nothing is known yet.";
  }
  function point(step) {
    at = step;
    draw();
    say(step === null ? "" : told(step));
  }
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    if (!box.width) return;
    const part = ((event.clientX - box.left) / box.width * width - LEFT) / (width - LEFT - RIGHT);
    point(round(first + min(max(part, 0), 1) * (last - first)));
  });
  svg.addEventListener("pointerleave", () => point(null));
  svg.addEventListener("blur", () => point(null));
  svg.addEventListener("keydown", (event) => {
    const stride = max(1, round((last - first) / 50));
    const now = at ?? last;
    const to = { ArrowRight: now + stride, ArrowLeft: now - stride, Home: first, End: last }[event.key];
    if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    taken(event);
    point(min(max(to, first), last));
  });
  return { node: svg, update, draw, get range() { return [low, high, first, last]; } };
}

// What a line of a chart is: a stroke with its dash and mark, and its name.
export function legend(x, entries) {
  return x.make("p", "gt-legend", ...entries.map(([style, name]) => {
    const line = LINES[style % LINES.length];
    const stroke = x.make.svg("svg", { viewBox: "0 0 34 10", class: "gt-stroke", "aria-hidden": "true" },
      x.make.svg("line", { x1: 0, x2: 34, y1: 5, y2: 5, stroke: line[x.theme()], "stroke-width": 2, "stroke-dasharray": line.dash }));
    return x.make("span", "gt-entry", stroke, name);
  }));
}
