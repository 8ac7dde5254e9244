"""Our Explorer beside BertViz and CircuitsVis in one browser; our trace beside TransformerLens.

python -m venv others; others/bin/pip install bertviz circuitsvis transformer_lens mpld3 nbclassic
python benchmarks/views.py page --others others/bin/python [--tokens 256] [--drawn 16 32]
python benchmarks/views.py capture --others others/bin/python [--tokens 256]

`page` takes one network's attention (28 layers of 16 heads, random weights) to each viewer: bytes
that the page gets, nodes in the document, seconds until it is drawn. BertViz and CircuitsVis get
them as their documentation shows, BertViz all layers at once, CircuitsVis a layer a view. Where
their pages are too large to be drawn here, only the bytes are taken, and they are drawn with fewer
tokens (--drawn). mpld3 and nbclassic bring the d3, jQuery and require.js that BertViz loads from a
CDN. `capture` runs the pocket model in both libraries, in a process each. Out come Markdown tables.
"""

import argparse
import base64
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

LAYERS, HEADS = 28, 16

# In the other environment: attention of an .npy file as one HTML page; prints its size.
_PAGE = """
import json, sys
import numpy as np, torch
viewer, source, out, count = sys.argv[1:]
patterns = np.load(source, mmap_mode="r")[:int(count)]
tokens = json.load(open(source + ".json"))
size = 0
with open(out, "w") as page:
    page.write("<!doctype html><meta charset='utf-8'><body>")
    if viewer == "bertviz":
        from bertviz import model_view
        attention = [torch.tensor(layer[None]) for layer in patterns]
        size += page.write(model_view(attention, tokens, html_action="return").data)
    else:
        from circuitsvis.attention import attention_heads
        for layer in patterns:
            made = attention_heads(attention=torch.tensor(layer), tokens=tokens)
            size += page.write(made.local_src)
print(size)
"""

_TRACE = """
import json, resource, statistics, sys, time
import numpy as np
library, folder, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
ids = np.random.default_rng(0).integers(300, 4000, count).tolist()
if library == "gptj_lab":
    import gptj_lab
    model = gptj_lab.load(folder)
    def capture():
        return model.trace(ids)
    def one_map(kept):
        return kept["blocks.3.attn.pattern"]
    def every_map(kept):
        return [kept[f"blocks.{i}.attn.pattern"] for i in range(model.config.num_layers)]
    def kept_bytes(kept):
        return kept.residuals.nbytes
else:
    import torch, transformers
    from transformer_lens.model_bridge import TransformerBridge
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=folder + "/tokenizer.json", eos_token="<|endoftext|>"
    )
    model = TransformerBridge.boot_transformers(
        folder, hf_model=theirs, tokenizer=tokenizer, device="cpu", dtype=torch.float32
    )
    tokens = torch.tensor([ids])
    @torch.no_grad()
    def capture():
        return model.run_with_cache(tokens)[1]
    def one_map(kept):
        return kept["pattern", 3].numpy()
    def every_map(kept):
        return [kept["pattern", i].numpy() for i in range(theirs.config.n_layer)]
    def kept_bytes(kept):
        return sum(value.nbytes for value in kept.values() if torch.is_tensor(value))
def timed(function, *arguments):
    begun = time.perf_counter()
    made = function(*arguments)
    return made, time.perf_counter() - begun
kept = capture(); first = every_map(kept)  # compiled, warmed up
captures, ones, maps = [], [], []
for _ in range(7):
    kept, seconds = timed(capture); captures.append(seconds)
    ones.append(timed(one_map, kept)[1]); maps.append(timed(every_map, kept)[1])
print(json.dumps({
    "capture": statistics.median(captures), "one": statistics.median(ones),
    "maps": statistics.median(maps), "kept": kept_bytes(kept),
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "mean": [float(np.asarray(each).astype(np.float64).std()) for each in first],
}))
"""

# The Explorer's module with a model whose messages go to Python through a binding.
_HOST = """<!doctype html><meta charset='utf-8'><style>CSS</style><body><div id='view'></div>
<script type='module'>
const begun = performance.now(), frame = () => new Promise(requestAnimationFrame);
const state = STATE, handlers = {};
let away = 0; // until the first map: in the kernel, and on this bridge, which no notebook has
const bytes = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const on = (name, call) => (handlers[name] ??= []).push(call);
const model = {
  get: (name) => state[name], set: (name, value) => { state[name] = value; }, save_changes() {},
  on, off(name, call) { handlers[name] = (handlers[name] ?? []).filter((c) => c !== call); },
  async send(content) {
    const asked = performance.now();
    const answers = JSON.parse(await window.toPython(JSON.stringify(content)));
    for (const each of answers) each[1] = each[1].map(bytes);
    if (["hello", "pattern"].includes(content.op)) away += performance.now() - asked;
    for (const [answer, buffers] of answers) {
      for (const call of handlers["msg:custom"] ?? []) call(answer, buffers);
      if (answer.op === "pattern" && !window.painted) {
        await frame();
        await frame();
        window.browser = performance.now() - begun - away;
        window.painted = performance.now() - begun;
      }
    }
  },
};
const text = document.getElementById("module").textContent;
const module = await import(URL.createObjectURL(new Blob([text], {type: "text/javascript"})));
await module.default.initialize?.({model});
await module.default.render({model, el: document.getElementById("view")});
</script>"""


def attention(tokens: int):
    """A model of the 6B's layers and heads but 128 wide, a text, and its patterns."""
    import jax

    import gptj_lab
    from gptj_lab.config import ModelConfig
    from gptj_lab.language_model import LanguageModel
    from gptj_lab.model.transformer import Transformer

    pocket = gptj_lab.load()
    config = ModelConfig.of_family(
        "gptj", vocab_size=pocket.config.vocab_size, context=512, d_model=128, num_layers=LAYERS,
        num_heads=HEADS, d_rotary=4, d_ff=256, initializer_range=0.2, activation="gelu_new",
        layer_norm_eps=1e-5, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    network = Transformer(config, key=jax.random.key(0))
    model = LanguageModel(config, network, pocket.tokenizer, "28 x 16")
    text = (Path(__file__).parents[1] / "LICENSE").read_text("utf-8")
    ids = pocket.tokenizer.encode(text)[:tokens]
    prompt = pocket.tokenizer.decode(ids)
    assert len(pocket.tokenizer.encode(prompt)) == tokens, "the text's tokens don't stay the same"
    trace = model.trace(prompt)
    return model, prompt, list(trace.tokens), trace.stacked("attn.pattern").astype(np.float32)


def ours(browser, model, prompt: str) -> dict:
    """The Explorer, from an empty page to the first map, with every message counted.

    After the forward pass come the still picture, the kernel's answers up to the first map (both in
    CPU seconds) and what the browser does itself; the later answers are drawn into what is there.
    """
    import gptj_lab

    begun = time.perf_counter()
    explorer = gptj_lab.widgets.Explorer(model, prompt)
    ready, begun = time.perf_counter() - begun, time.process_time()
    explorer._repr_mimebundle_()
    picture = time.process_time() - begun
    sent, out, kernel = [], [], {}
    explorer.send = lambda content, buffers=None: out.append((content, buffers or []))

    def to_python(text: str) -> str:
        out.clear()
        asked = time.process_time()
        explorer._receive(None, json.loads(text), [])
        kernel[json.loads(text)["op"]] = time.process_time() - asked
        sent.append(sum(len(json.dumps(c)) + sum(len(bytes(b)) for b in bs) for c, bs in out))
        return json.dumps([(c, [base64.b64encode(b).decode() for b in bs]) for c, bs in out])

    names = ("about", "prompt", "prompt_b", "selection", "interventions", "view", "stale")
    plain = {name: getattr(explorer, name) for name in names}
    html = _HOST.replace("CSS", explorer._css).replace("STATE", json.dumps(plain))
    script = explorer._esm.replace("</script", "<\\/script")
    html = html.replace("<body>", f"<body><script type='text/plain' id='module'>{script}</script>")
    page = browser.new_page()
    page.expose_function("toPython", to_python)
    told = drawn(page, html, "() => window.painted", 60)
    shown = {"bytes": sum(sent), "messages": len(sent), "script": len(explorer._esm.encode())}
    first = kernel["hello"] + kernel["pattern"]
    later = sum(kernel.values()) - first
    return told | shown | {
        "forward": ready, "picture": picture, "first": first, "later": later,
        "first paint": picture + first + told["browser"],
    }  # fmt: skip


def drawn(page, html: str | Path, predicate: str, seconds: float) -> dict:
    """Nodes and seconds of a page until the predicate holds and two frames have passed."""
    from playwright.sync_api import Error

    begun = time.perf_counter()
    try:
        if isinstance(html, Path):
            page.goto(html.as_uri(), wait_until="commit", timeout=seconds * 1000)
        else:
            page.set_content(html, wait_until="commit", timeout=seconds * 1000)
        page.wait_for_function(predicate, timeout=seconds * 1000, polling=20)
        page.evaluate("() => new Promise((f) => requestAnimationFrame(() => "
                      "requestAnimationFrame(f)))")  # fmt: skip
        took = time.perf_counter() - begun
        nodes = page.evaluate("() => document.querySelectorAll('*').length")
        told = page.evaluate("() => [window.painted, window.browser]")  # ours: Python goes on
        if told[0] is None:
            return {"seconds": took, "nodes": nodes}
        return {"seconds": told[0] / 1000, "nodes": nodes, "browser": told[1] / 1000}
    except Error as error:
        return {"seconds": None, "nodes": None, "why": str(error).splitlines()[0]}
    finally:
        try:
            page.close()
        except Error:
            pass  # it crashed


def theirs(browser, python: str, viewer: str, source: Path, folder: Path, draw: bool) -> dict:
    """A viewer's page: the bytes of all layers, and if asked nodes and seconds.

    BertViz draws all layers at once; of CircuitsVis' views a page shows one (a second one was not
    drawn), so one layer is drawn.
    """
    tokens = len(json.loads(Path(f"{source}.json").read_text()))
    out = folder / f"{viewer}.html"

    def made(count: int) -> int:
        arguments = [python, "-c", _PAGE, viewer, str(source), str(out), str(count)]
        return int(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)

    two, one = made(2), made(1)
    size = one + (two - one) * (LAYERS - 1)  # what each layer more costs; the rest is the script
    if not draw:
        return {"bytes": size, "seconds": None, "nodes": None}
    if viewer == "bertviz":
        size = made(LAYERS)
    count = {
        "bertviz": f"document.querySelectorAll('line').length >= {LAYERS * HEADS * tokens}",
        "circuitsvis": f"document.querySelectorAll('canvas').length >= {HEADS}",
    }[viewer]
    page = browser.new_page()
    page.route(re.compile("^https?:"), from_packages(python))
    return {"bytes": size} | drawn(page, out, f"() => {count}", 120)


def from_packages(python: str):
    """Answers a page's requests for d3, jQuery and require.js from packages, and no others."""
    site = subprocess.run(
        [python, "-c", "import mpld3; print(mpld3.__path__[0])"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    components = Path(site).parent / "nbclassic" / "static" / "components"
    files = {
        "d3": Path(site) / "js" / "d3.v5.min.js",
        "jquery": components / "jquery" / "jquery.min.js",
        "require": components / "requirejs" / "require.js",
    }

    def answer(route) -> None:
        name = next((name for name in files if name in route.request.url), None)
        route.fulfill(path=files[name]) if name else route.abort()

    return answer


def pages(chosen: argparse.Namespace) -> None:
    from playwright.sync_api import sync_playwright

    print("| viewer | tokens | MB to the page | nodes | seconds until drawn |")
    print("|---|---|---|---|---|")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(
            executable_path=chosen.chromium, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        for tokens in sorted({*chosen.drawn, chosen.tokens}, reverse=True):
            model, prompt, names, patterns = attention(tokens)
            source = Path(folder) / "patterns.npy"
            np.save(source, patterns)
            Path(f"{source}.json").write_text(json.dumps(names))
            ours(browser, model, prompt)  # compiles; the second has a kernel that is warm
            rows = {"Explorer": ours(browser, model, prompt)}
            for viewer in ("bertviz", "circuitsvis"):
                draw = tokens in chosen.drawn
                rows[viewer] = theirs(browser, chosen.others, viewer, source, Path(folder), draw)
            rows["circuitsvis, one layer drawn"] = rows.pop("circuitsvis")
            for name, row in rows.items():
                took = "not tried" if row["seconds"] is None else f"{row['seconds']:.2f}"
                took = f"no: {row['why'][:60]}" if "why" in row else took
                print(f"| {name} | {tokens} | {row['bytes'] / 1e6:.2f} | {row['nodes'] or '-'} | "
                      f"{took} |", flush=True)  # fmt: skip
            print(f"  (Explorer: {rows['Explorer']})", file=sys.stderr)
        browser.close()


def captures(chosen: argparse.Namespace) -> None:
    from gptj_lab import presets

    folder = next(each for each in presets.POCKET if (each / "config.json").is_file())
    print("| library | capture, ms | one map more | all maps more | kept, MB | peak, GB |")
    print("|---|---|---|---|---|---|")
    found = {}
    for library, python in (("gptj_lab", sys.executable), ("transformer_lens", chosen.others)):
        runs = []
        for _ in range(chosen.rounds):
            arguments = [python, "-c", _TRACE, library, str(folder), str(chosen.tokens)]
            out = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True).stdout
            runs.append(json.loads(out.splitlines()[-1]))
        found[library] = runs[0].pop("mean")
        figures = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        print(f"| {library} | {figures['capture'] * 1e3:.1f} | {figures['one'] * 1e3:.1f} | "
              f"{figures['maps'] * 1e3:.1f} | {figures['kept'] / 1e6:.1f} | "
              f"{figures['peak'] / 1e9:.2f} |", flush=True)  # fmt: skip
    off = np.abs(np.subtract(*found.values())).max()
    print(f"\nBoth made the same maps: their standard deviations are {off:.0e} apart at most.")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("page", "capture"):
        command = commands.add_parser(name)
        command.add_argument("--others", required=True, help="Python that has the other libraries")
        command.add_argument("--tokens", type=int, default=256)
    commands.choices["page"].add_argument("--drawn", type=int, nargs="*", default=[16, 32])
    commands.choices["page"].add_argument("--chromium", default="/usr/bin/chromium")
    commands.choices["capture"].add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    pages(chosen) if chosen.command == "page" else captures(chosen)


if __name__ == "__main__":
    main()
