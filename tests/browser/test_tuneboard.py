"""A run in a real JupyterLab in a real Chromium: started, paused, left, found again, resumed."""

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "tuneboard.png"
NAUGHTY = '<img src=x onerror="window.pwned=1">'
CELL = f"""import dataclasses, random
import gptj_lab, jax
import numpy as np
from gptj_lab.model.transformer import Transformer
pocket = gptj_lab.load()
config = dataclasses.replace(pocket.config, num_layers=1)
network = Transformer(config, key=jax.random.key(0))
model = gptj_lab.LanguageModel(config, network, pocket.tokenizer, "tiny")
draw = random.Random(0)
words = "Pip the fox ran home and saw a red hen who said that it was cold in the old barn".split()
tales = [{NAUGHTY!r} + " ".join(draw.choices(words, k=draw.randint(10, 200))) for _ in range(60)]
board = gptj_lab.widgets.TuneBoard(
    model, tales, method=gptj_lab.Full(), steps=3000, batch=2, context=64, evaluate_every=100,
    out="run", prompts=("Pip said",), sample_tokens=8,
)
board
"""
SAMPLE = ROOT / "data" / "samples" / "king_james.txt"
SHOWN = f"""import gptj_lab
model = gptj_lab.load()
board = gptj_lab.widgets.TuneBoard(
    model, {str(SAMPLE)!r}, method=gptj_lab.Full(), steps=150, batch=8, context=128,
    prompts=("Once upon a time", "And the king said", "The little girl saw"), sample_tokens=30,
    evaluate_every=15,
)
board
"""

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(open_code, run_all):
    page = open_code("tuneboard", CELL)
    run_all(page)
    view(page).locator(".gt-facts dd").first.wait_for(timeout=60_000)
    yield page
    page.close()


def view(page):
    return page.locator(".gptj-tuneboard").last


def step(page):
    """The step that the view tells, once it tells one."""
    said = view(page).locator(".gt-status", has_text=re.compile(r"step [\d,]+ of"))
    said.wait_for(timeout=60_000)
    return int(re.search(r"step ([\d,]+) of", said.inner_text())[1].replace(",", ""))


def wait_for(page, status, after=-1, timeout=60_000):
    """Until the run has that status, and the view a step above `after`."""
    page.wait_for_function(
        """([status, after]) => {
            const view = [...document.querySelectorAll('.gptj-tuneboard')].at(-1);
            const told = view?.querySelector('.gt-status').textContent ?? '';
            const step = /step ([\\d,]+) of/.exec(told)?.[1].replaceAll(',', '') ?? -1;
            return view?.dataset.status === status && Number(step) > after;
        }""",
        arg=[status, after],
        timeout=timeout,
    )


def test_the_text_and_the_cost_are_told_before_the_start(page):
    assert "LoRA" in view(page).locator("select").first.inner_text()
    assert "✓ it fits" in view(page).locator(".gt-verdict").text_content()
    sentences = view(page).locator(".gt-sentences").inner_text()
    assert "60 documents" in sentences and "to train on" in sentences
    view(page).locator(".gt-window").first.click()
    view(page).locator(".gt-stretch pre").first.wait_for()
    assert NAUGHTY in view(page).locator(".gt-stretch pre").first.inner_text()


def test_a_run_is_started_paused_left_found_again_stopped_and_resumed(page, python):
    view(page).get_by_role("button", name="Start").click()
    wait_for(page, "running", 2)
    view(page).get_by_role("button", name="Pause").click()
    wait_for(page, "paused", 2)
    held = step(page)
    page.wait_for_timeout(600)
    assert step(page) == held == python(page, "board.run.step")
    view(page).get_by_role("button", name="Resume").click()
    wait_for(page, "running", held)
    page.keyboard.press("Control+s")
    page.wait_for_timeout(500)
    page.reload()  # the tab is closed; the run isn't
    wait_for(page, "running", held + 1)
    view(page).get_by_role("button", name="Checkpoint").click()
    view(page).get_by_role("button", name="Stop").click()
    wait_for(page, "stopped", held + 1)
    ended = step(page)
    assert python(page, "board.run.step") == ended
    view(page).get_by_role("button", name="Resume").click()
    wait_for(page, "running", ended)


def test_samples_curves_and_the_theme_follow(page):
    board = view(page)
    board.scroll_into_view_if_needed()
    board.locator(".gt-sample b", has_text="Pip said").wait_for()
    assert board.locator("img, script").count() == 0
    assert page.evaluate("window.pwned") is None
    chart = board.locator(".gt-chart").first
    chart.focus()
    page.keyboard.press("Home")
    assert re.search(r"training loss [\d.]+ at step 1\b", board.locator(".gt-line").inner_text())
    for kind in ("dark", "light"):
        dark = str(kind == "light").lower()
        page.evaluate(f"document.body.setAttribute('data-jp-theme-light', '{dark}')")
        board.and_(page.locator(f"[data-theme={kind}]")).wait_for()


def test_base_and_tuned_open_side_by_side_with_one_click(page):
    board = view(page)
    wait_for(page, "running", 200, timeout=120_000)  # until it has learnt what can be told apart
    board.get_by_role("button", name="Stop").click()
    wait_for(page, "stopped")
    board.get_by_role("tab", name="4 Before and after").click()
    board.get_by_role("button", name="Playground: tuned and base").click()
    play = board.locator(".gptj-playground")
    play.wait_for()
    assert play.locator(".gptj-tokens").count() == 2
    names = play.locator(".gptj-column > p").all_inner_texts()
    assert names[0].startswith("tuned, ") and names[1] == "base"
    row = board.locator(".gt-row", has_text="the best model, not the last")
    assert re.search(r"held-out loss [\d.]+ at step [\d,]+", row.inner_text())
    row.get_by_role("checkbox").check()
    board.locator(".gptj-column > p", has_text="the best").wait_for()
    if folder := os.environ.get("GPTJ_LAB_SHOTS"):
        board.screenshot(path=f"{folder}/tuneboard_best.png")


KL = """(lambda ids, one, two: float((np.exp(one) * (one - two)).sum(-1).mean()))(
    *(lambda ids: (ids, *(
        np.asarray(jax.nn.log_softmax(each.logits(ids)[0])) for each in (model, board.result.model)
    )))([board._opened['explorer']._session.a.ids.tolist()])
)"""


def test_base_and_tuned_open_in_the_explorer_with_one_click(page, python):
    """What it tells of the two is what their logits say, also when what was learnt is weighed."""
    board = view(page)
    board.get_by_label("the best model, not the last").uncheck()
    board.locator(".gptj-column > p", has_text=re.compile("tuned, [\\d,]+ steps$")).wait_for()
    board.get_by_label("Prompt for both models").fill(f"Pip said {NAUGHTY}")
    board.get_by_role("button", name="Explorer: base and tuned").click()
    explorer = board.locator(".gt-stage .gptj-explorer")
    explorer.locator(".gx-lens-cell").first.wait_for()
    assert board.locator(".gptj-playground").count() == 0, "one view at a time"
    explorer.locator(".gx-tab", has_text="Compare").click()
    explorer.get_by_text("B is the model tiny, tuned, on the same prompt.").wait_for()
    told = explorer.locator(".gx-panel .gx-sentence", has_text=re.compile("predictions differ"))
    explorer.locator(".gx-three figure").nth(2).wait_for()

    def differ():
        return float(re.search(r"predictions differ by ([\d.]+) nats", told.inner_text())[1])

    trained = differ()
    assert trained > 0.05 and trained == pytest.approx(python(page, KL), abs=0.01)
    if folder := os.environ.get("GPTJ_LAB_SHOTS"):
        board.screenshot(path=f"{folder}/tuneboard_explorer.png")
        explorer.locator(".gx-panel").screenshot(path=f"{folder}/tuneboard_compare.png")
    board.get_by_role("button", name="Off", exact=True).click()
    told.and_(explorer.get_by_text("predictions differ by 0.000 nats")).wait_for()
    assert explorer.locator("img, script").count() == 0
    assert page.evaluate("window.pwned") is None


@pytest.mark.skipif(not os.environ.get("GPTJ_LAB_PICTURE"), reason="`make picture` asks for them")
def test_pictures_of_a_whole_run(open_code, run_all):
    page = open_code("king_james", SHOWN)
    run_all(page)
    view(page).locator(".gt-facts dd").first.wait_for(timeout=60_000)
    for i, name in enumerate(("data", "settings")):
        view(page).get_by_role("tab").nth(i).click()
        page.wait_for_timeout(300)
        view(page).screenshot(path=f"/tmp/tuneboard_{name}.png")
    view(page).get_by_role("button", name="Start").click()
    wait_for(page, "finished", timeout=400_000)
    page.set_viewport_size({"width": 1500, "height": 1500})
    for kind, path in (("dark", "/tmp/tuneboard_dark.png"), ("light", PICTURE)):
        page.evaluate(f"document.body.dataset.jpThemeLight = '{str(kind == 'light').lower()}'")
        view(page).and_(page.locator(f"[data-theme={kind}]")).wait_for()
        page.wait_for_timeout(700)
        view(page).screenshot(path=path)
    page.close()
