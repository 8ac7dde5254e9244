// A kernel that is not there: a model object which answers the Explorer's protocol with made-up
// numbers, at once or when the test says so.

export const NAUGHTY = "<img src=x onerror=alert(1)>";
const triangles = (count, size, p) => {
  const bytes = new Uint8Array(count * (size * (size + 1)) / 2);
  let at = 0;
  for (let h = 0; h < count; h++) {
    for (let r = 0; r < size; r++) {
      const row = Array.from({ length: r + 1 }, (_, c) => p(h, r, c));
      const sum = row.reduce((a, b) => a + b, 0);
      for (const each of row) bytes[at++] = Math.round(255 * Math.sqrt(each / sum));
    }
  }
  return bytes;
};
export const pattern = (layer) => (h, r, c) => {
  const kind = (layer * 7 + h * 3) % 5;
  const near = [r === c + 1, c === 0, r === c, c % 4 === r % 4, true][kind] ? 8 : 0.3;
  return near + ((r * 31 + c * 17 + h * 5 + layer) % 10) / 10 + (c === 0 ? 1.5 : 0);
};

export function kernel({ layers = 3, heads = 4, tokens = "The cat sat on the mat and the cat slept".split(" "), late = false, about = {}, state = {}, past = [] } = {}) {
  const traits = { prompt: tokens.join(" "), prompt_b: "", selection: {}, interventions: [], view: {}, stale: "",
    about: { version: 1, session: "s", name: "fake", family: "gptj", title: `fake (${layers} layers of ${heads} heads)`, layers, heads, d_model: 64,
      d_head: 16, d_rotary: 8, context: 64, vocab: 100, parallel: true, rotary: true, compare: null, name_b: "", lenses: ["logit", "tuned", "jacobian"], ...about }, ...state };
  const display = (i) => [`${i ? "␣" : ""}${tokens[i]}`, ` ${tokens[i]}`];
  const sent = [];
  const handlers = {};
  const waiting = [];
  let run = 0;
  let swept = false;
  const T = () => tokens.length;
  const L = layers, H = heads;
  const floats = (n, f) => Float32Array.from({ length: n }, (_, i) => f(i));
  const names = Object.fromEntries(Array.from({ length: 30 }, (_, i) => [i, [["␣the", "␣cat", "␣sat", "↵", "‹E2›", NAUGHTY, "␣مرحبا", "␣🐈"][i % 8] + (i > 7 ? i : ""), null]]));
  const logp = (i, by = 1) => -0.7 - by * i * 0.6;
  const next = (m, more) => [{ op: "next", position: m.position, names, kl: { after: traits.interventions.length ? 0.1234 : null, b: null }, sums: {}, undoable: past.length > 0,
    interventions: traits.interventions, chips: traits.interventions.map((e) => `${e.kind} ${e.layer}.${e.head ?? ""}`), ...more },
  [Int32Array.from({ length: 10 }, (_, i) => i), floats(10, (i) => logp(i)), floats(10, (i) => (traits.interventions.length ? logp(9 - i, 0.4) : NaN)), floats(10, () => NaN),
    floats(10, (i) => 5 - i), floats(10, (i) => 4 - i / 2)]];
  const sum = (a) => a.reduce((x, y) => x + y, 0);
  const answers = {
    hello: () => answers.run({ prompt: traits.prompt }),
    run: (m) => {
      run += 1;
      traits.prompt = m.prompt;
      const S = Math.min(T(), 32);
      const all = Array.from({ length: L }, (_, l) => triangles(H, S, pattern(l)));
      const thumbs = new Uint8Array(all.flatMap((each) => [...each]));
      return [{ op: "ran", run, prompt: m.prompt, prompt_b: m.prompt_b ?? "", tokens: tokens.map((_, i) => display(i)), ids: tokens.map((_, i) => i), prompt_tokens: T(), notes: [],
        mode: "layer", pool: 512, thumb: S, names, compare: m.prompt_b ? { kind: "prompt", tokens: tokens.map((_, i) => (i < 3 ? display(i) : [`␣b${i}`, null])), ids: tokens.map((_, i) => (i < 3 ? i : 50 + i)), aligned: true, notes: [] } : null,
        interventions: traits.interventions, chips: traits.interventions.map((e) => e.kind), undoable: past.length > 0, position: T() - 1, seconds: 0.012, compiled: 0 },
      [thumbs, floats(T(), (i) => (i ? logp(i % 4) : NaN)), Int32Array.from({ length: 10 }, (_, i) => i), floats(10, (i) => logp(i))]];
    },
    pattern: (m) => [{ op: "pattern", layer: m.layer, of: m.of, first: 0, heads: H, mode: "layer", size: T(), signed: m.of.includes("-"), scale: 1, part: 0, parts: 1 },
      [m.of.includes("-") ? new Uint8Array(H * T() * (T() + 1) / 2).map((_, i) => 128 + (i * 13) % 90 - 45) : triangles(H, T(), pattern(m.layer + (m.of === "b")))]],
    thumbs: (m) => [{ op: "thumbs", of: m.of, thumb: Math.min(T(), 32), signed: m.of.includes("-"), scale: 1 }, [new Uint8Array(L * H * T() * (T() + 1) / 2).map((_, i) => i % 255)]],
    scores: () => {
      const known = ["entropy", "sink", "previous", ...(swept ? ["ablation"] : [])];
      const meta = known.map((name) => ({ name, label: name, unit: name === "entropy" ? "nats" : "", low: 0, high: 1, note: "" }));
      return [{ op: "scores", scores: meta }, [floats(known.length * L * H, (i) => (i < 3 * L * H ? ((i * 37) % 100) / 100 : (i % 7) - 3))]];
    },
    exact: (m) => [{ op: "exact", ...m, sentence: "" }, [floats(m.query + 1, () => 1 / (m.query + 1))]],
    next: (m) => next(m),
    intervene: (m) => {
      past.push(traits.interventions);
      traits.interventions = m.interventions;
      return next(m, { compiled: 0, seconds: 0.01 });
    },
    undo: (m) => {
      traits.interventions = past.pop() ?? traits.interventions;
      return next(m, { compiled: 0, seconds: 0.01 });
    },
    token: (m) => [{ op: "token", ids: [7], names, whole: true, note: "" }, []],
    lens: (m) => {
      const n = m.stop - m.start;
      return [{ op: "lens", ...m, top: 5, rows: [...Array(L).keys()].map(String).concat("output"), names }, [Int32Array.from({ length: (L + 1) * n * 5 }, (_, i) => i % 10),
        floats((L + 1) * n * 5, (i) => -0.1 - ((i * 7) % 30) / 8 - (i % 5)), floats((L + 1) * n, (i) => i % 4), floats((L + 1) * n, (i) => 3 - 3 * i / ((L + 1) * n))]];
    },
    lens_of: (m) => [{ op: "lens_of", position: m.position, ids: m.ids, names, rows: [...Array(L).keys()].map(String).concat("output") },
      [floats(m.ids.length * (L + 1), (i) => -3 + (i % (L + 1)) * 0.9 / (1 + Math.floor(i / (L + 1)))), Int32Array.from({ length: m.ids.length * (L + 1) }, (_, i) => Math.max(0, 300 - 100 * (i % (L + 1))))]],
    attribute: (m) => {
      const parts = [floats(L * H, (i) => Math.sin(i * 3)), floats(L, (i) => Math.cos(i)), floats(3, (i) => 0.5 - i / 3)];
      const total = sum(parts.map((p) => sum([...p])));
      return [{ op: "attribution", position: m.position, token: m.token ?? 1, minus: m.minus, names, others: ["embedding", "final norm's bias", "unembedding bias"], total, logit: total + 1e-6, gap: 1e-6, sentence: "" }, parts];
    },
    gradient: (m) => [{ op: "gradient", sum: 1, expected: 1, sentence: "The shares add up." }, [floats(m.position + 1, (i) => Math.sin(i))]],
    sweep: (m) => [{ op: "sweep", sweep: 1, what: m.what, columns: "position", shape: [L, T()], names, done: 0, total: L * T(), from: 0, sentence: "" }, []],
    sweep_next: (m) => (swept = true) && [{ op: "sweep", sweep: 1, from: 0, done: L * T(), total: L * T() }, [floats(L * T(), (i) => Math.sin(i / 5))]],
    compare: () => [{ op: "compared", kind: "prompt", aligned: true, names, sentence: "Head 1.2 moved most.", top: [[1, 2, 0.5]] }, [floats(L * H, (i) => (i % 10) / 10), floats(T(), (i) => (i ? -1 - i % 3 : NaN)), floats(T(), (i) => (i ? -1.5 - i % 2 : NaN)), floats(T(), (i) => (i % 3) / 3)]],
    generate: () => [{ op: "generated", names, ids: [], last: false }, []],
    generate_next: () => [{ op: "generated", names, ids: [1, 5], last: false }, [floats(2, () => -1)]],
    generate_stop: () => [{ op: "generated", names, ids: [], last: true }, []],
    rotary: (m) => [{ op: "rotary", ...m, sentence: "The sum of the rows is the score." }, [floats(4, (i) => 6.28 * 10 ** i), floats(5 * (m.query + 1), Math.sin), floats(5 * T(), (i) => Math.sin(i / 3))]],
    ledger: (m) => [{ op: "ledger", ...m, parallel: true, names, columns: [], sentence: "Both read the same input." }, [floats(4 * L, (i) => i % 4), Int32Array.from({ length: 6 * L }, (_, i) => i), floats(6 * L, (i) => i)]],
    circuit: (m) => [{ op: "circuit", ...m, names, sentence: "" }, [Int32Array.from({ length: 10 }, (_, i) => i), floats(10, (i) => 3 - i / 5), Int32Array.from({ length: 10 }, (_, i) => 10 + i), floats(10, (i) => -2 + i / 8)]],
    code: () => [{ op: "code", text: `print(${JSON.stringify(NAUGHTY)})` }, []],
    pin: () => [{ op: "pinned", alt: "A picture", name: "explorer.png" }, [new Uint8Array([137, 80, 78, 71])]],
  };
  const reply = (message, buffers = []) => [...(handlers["msg:custom"] ?? [])].forEach((f) => f(message, buffers.map((each) => new DataView(each.buffer, each.byteOffset, each.byteLength))));
  const answer = (message) => {
    const [content, buffers] = answers[message.op](message);
    reply({ ...content, req: message.req }, buffers);
  };
  const model = {
    get: (name) => traits[name],
    set: (name, value) => (traits[name] = value),
    save_changes: () => {},
    send: (message) => {
      sent.push(message);
      if (late) waiting.push(message);
      else answer(message);
    },
    on: (name, f) => (handlers[name] ??= []).push(f),
    off: (name, f) => (handlers[name] = handlers[name].filter((each) => each !== f)),
  };
  const flush = () => waiting.splice(0).forEach(answer);
  const fire = (name) => (handlers[name] ?? []).forEach((f) => f());
  return { model, sent, traits, handlers, waiting, answer, reply, flush, fire, answers, names };
}
