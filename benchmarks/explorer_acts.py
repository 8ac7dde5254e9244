"""How soon the Explorer answers to what a person does, in a real JupyterLab in Chromium.

python benchmarks/explorer_acts.py [--rounds 20]

For pocket and for a network of the 6B's layers and heads on 256 tokens (random weights, 128 wide):
milliseconds of the page's clock from the key or pointer event until what it asks for is drawn, the
way to the kernel and back included, and the messages that went to the kernel. The first round of
each act is left out: it may compile. Prints a Markdown table.
"""

import argparse
import math
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROMPT = "Once upon a time there was a little girl named Lily. One day, Lily"
CODE = {
    "pocket": "import gptj_lab\nmodel, prompt = gptj_lab.load(), " + repr(PROMPT),
    "28 x 16 x 256": f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n"
    "import gptj_lab, views\nmodel, prompt, _, _ = views.attention(256)",
}
SHOW = "\nexplorer = gptj_lab.widgets.Explorer(model, prompt)\nexplorer"

_COUNT = """const send = WebSocket.prototype.send;
window.sent = 0;
WebSocket.prototype.send = function (data) { window.sent++; return send.call(this, data); };
const put = CanvasRenderingContext2D.prototype.drawImage;
window.painted = new Map();
CanvasRenderingContext2D.prototype.drawImage = function (...all) {
  put.apply(this, all);
  window.painted.get(this.canvas)?.();
};"""

# act(what) → [milliseconds until it is seen, messages to the kernel until then]
_ACTS = """() => {
  const root = [...document.querySelectorAll(".gptj-explorer")].at(-1);
  const next = root.querySelector(".gx-next-pane .gx-next");
  const status = root.querySelector(".gx-status");
  const grid = root.querySelector(".gx-grid"), prompt = root.querySelector(".gx-prompt");
  const box = root.querySelector(".gx-matrix-pane .gx-heat");
  const key = (node, name, more = {}) => node.dispatchEvent(
    new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true, ...more }));
  const until = (node, right) => new Promise((resolve) => {
    const look = () => right(node.textContent) && (watcher.disconnect(), resolve());
    const watcher = new MutationObserver(look);
    watcher.observe(node, { childList: true, characterData: true, subtree: true });
  });
  const drawn = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
  const painted = (canvas) => new Promise((resolve) => window.painted.set(canvas, resolve));
  let column = 0;
  const acts = {
    layer(by) {
      const seen = painted(box.querySelector("canvas"));
      key(grid, by > 0 ? "]" : "[");
      return seen;
    },
    ablate() {
      const seen = until(next, () => true);
      key(grid, "a");
      return seen;
    },
    edit(text) {
      status.textContent = "";
      const seen = until(status, (text) => /^read in /.test(text));
      prompt.value = text;
      key(prompt, "Enter", { ctrlKey: true });
      return seen;
    },
    hover() {
      const bounds = box.querySelector("canvas").getBoundingClientRect();
      column = (column + 1) % 5;
      box.dispatchEvent(new PointerEvent("pointermove", { bubbles: true,
        clientX: bounds.left + 84 + (0.01 + 0.04 * column) * (bounds.width - 90),
        clientY: bounds.bottom - 8 }));
      return box.offsetWidth; // what it changed is laid out
    },
    colours(gamma) { // every thumbnail and the matrix
      const slider = root.querySelector(".gx-matrix-pane input[type=range]");
      slider.value = gamma;
      slider.dispatchEvent(new Event("input"));
      return root.offsetWidth;
    },
  };
  window.act = async (what, value) => {
    const [sent, begun] = [window.sent, performance.now()];
    await acts[what](value);
    const handled = performance.now() - begun;
    if (["hover", "colours"].includes(what)) return [handled, window.sent - sent];
    await drawn();
    return [performance.now() - begun, window.sent - sent];
  };
}"""


def rest(page) -> None:
    page.wait_for_timeout(450)  # 300 ms after an act the view saves its selection
    page.wait_for_function(
        "[...document.querySelectorAll('.gptj-explorer')].at(-1)?.dataset.waiting === 'false'",
        timeout=300_000,
    )


def measured(page, rounds: int) -> dict[str, list[list[float]]]:
    """For each act its milliseconds and messages, round by round."""

    def act(*what) -> list[float]:
        found = page.evaluate("what => window.act(...what)", list(what))
        rest(page)
        return found

    page.evaluate(_ACTS)
    found = {"hover over a cell": [act("hover") for _ in range(5 * rounds)]}
    found["all heads and a matrix in other colours"] = [
        act("colours", 0.5 + 0.1 * (i % 10)) for i in range(rounds)
    ]
    for by in (1, -1) * 2:
        act("layer", by)
    found["a layer seen before"] = [act("layer", by) for _ in range(rounds // 2) for by in (1, -1)]
    found["a head off or on"] = [act("ablate") for _ in range(2 * (rounds // 2) + 2)][2:]
    texts = [f"{PROMPT} {word}" for word in ("saw", "was", "had", "did") * rounds][:rounds]
    act("edit", PROMPT + " ran")
    fresh = found["a layer not seen before"] = []
    edits = found["a prompt"] = []
    for text in texts:
        edits.append(act("edit", text))
        fresh.append(act("layer", 1))
        act("layer", -1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    chosen = parser.parse_args()
    from playwright.sync_api import sync_playwright

    sys.path.insert(0, str(ROOT / "tests"))
    import jupyter_server

    print("| network | act | median, ms | 95th of 100, ms | messages to the kernel |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chosen.chromium, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        with jupyter_server.running(Path(home)) as (folder, address, token):
            for number, (name, code) in enumerate(CODE.items()):
                (folder / f"n{number}.ipynb").write_text(jupyter_server.notebook(code + SHOW))
                page = browser.new_page(viewport={"width": 1280, "height": 960})
                page.add_init_script(_COUNT)
                page.goto(f"{address}/lab/workspaces/n{number}/tree/n{number}.ipynb?token={token}")
                page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=120_000)
                page.get_by_text("| Idle").wait_for(timeout=120_000)
                page.locator(".jp-Notebook .jp-CodeCell .cm-content").first.click()
                page.keyboard.press("Shift+Enter")
                page.locator(".gx-lens-cell").first.wait_for(timeout=300_000)
                rest(page)
                for act, rows in measured(page, chosen.rounds).items():
                    times = sorted(row[0] for row in rows)
                    late = times[math.ceil(0.95 * len(times)) - 1]
                    calls = statistics.median(row[1] for row in rows)
                    print(f"| {name} | {act} | {statistics.median(times):.1f} | {late:.1f} | "
                          f"{calls:.0f} |", flush=True)  # fmt: skip
                page.close()
        browser.close()


if __name__ == "__main__":
    main()
