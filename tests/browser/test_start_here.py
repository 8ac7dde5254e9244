"""Notebook 00 in a real JupyterLab in a real Chromium, as a student uses it."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAUGHTY = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>'
# A model whose files give a token the text of this markup, and which writes nothing else.
WRITER = f"""
naughty = {NAUGHTY!r}
model.tokenizer._raw[5] = naughty.encode()
writer = gptj_lab.widgets.Playground(model, naughty, token_bias={{5: 1e4}})
writer
"""

pytestmark = pytest.mark.browser
PICTURE = ROOT / "docs" / "playground.png"


@pytest.fixture(scope="module")
def page(open_notebook):
    page = open_notebook("00_start_here")
    yield page
    page.close()


@pytest.fixture(scope="module")
def ran(page, run_all):
    """The notebook after Run > Run All Cells: every code cell has its number."""
    run_all(page)
    view = page.locator(".gptj-playground").first
    view.wait_for(state="attached")  # far down the page JupyterLab keeps it invisible
    view.scroll_into_view_if_needed()
    return page


def play(page):
    return page.locator(".gptj-playground").first


def test_all_cells_run_and_the_playground_shows_its_first_text(ran):
    assert (
        ran.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count()
        == 0
    )
    view = play(ran)
    view.scroll_into_view_if_needed()
    view.locator(".gptj-of-output").first.wait_for()
    assert view.locator(".gptj-of-output").count() > 20, "autorun's text"


def test_tokens_stream_and_hovering_shows_alternatives(ran):
    view = play(ran)
    view.locator(".gptj-prompt").fill("Once upon a time, there lived a little girl who")
    ran.evaluate(
        """() => {
            window.counts = [];
            const tokens = document.querySelector('.gptj-tokens');
            new MutationObserver(() => {
                const now = tokens.querySelectorAll('.gptj-of-output').length;
                if (now && now !== window.counts.at(-1)) window.counts.push(now);
            }).observe(tokens, {childList: true});
        }"""
    )
    view.locator(".gptj-prompt").press("Control+Enter")
    done = "document.querySelector('.gptj-status').textContent.match(/reached|ended/)"
    ran.wait_for_function(done)
    assert len(ran.evaluate("window.counts")) >= 3, "several paints"
    assert "tokens/s" in view.locator(".gptj-status").inner_text()
    view.locator(".gptj-of-output").nth(5).hover()
    items = view.locator(".gptj-alternatives li")
    assert items.count() == 10
    numbers = [float(t.split()[0]) for t in view.locator(".gptj-number").all_inner_texts()]
    assert numbers == sorted(numbers, reverse=True) and sum(numbers) <= 100.5
    view.locator(".gptj-of-output").nth(5).press("ArrowRight")
    assert view.locator("[aria-selected=true]").count() == 1
    chosen = view.locator("[aria-selected=true]")
    assert chosen.evaluate("n => n === document.activeElement")
    view.scroll_into_view_if_needed()
    if os.environ.get("GPTJ_LAB_PICTURE"):  # `make picture`: the README's
        ran.screenshot(path=PICTURE)


def test_stop_stops_long_before_the_end(ran):
    view = play(ran)
    view.locator("[name=max_new_tokens]").fill("220")
    view.locator(".gptj-generate").click()
    view.locator(".gptj-of-output").first.wait_for()
    view.locator(".gptj-stop").click()
    ran.wait_for_function(
        "document.querySelector('.gptj-status').textContent.startsWith('stopped')"
    )
    count = view.locator(".gptj-of-output").count()
    ran.wait_for_timeout(1200)
    assert view.locator(".gptj-of-output").count() == count < 220, "nothing came after Stop"
    assert view.locator(".gptj-generate").is_enabled()


def test_a_bad_setting_is_a_sentence_in_the_view(ran):
    view = play(ran)
    view.locator("[name=top_k]").fill("-3")
    view.locator(".gptj-generate").click()
    view.locator(".gptj-alert").wait_for()
    assert "top_k is -3" in view.locator(".gptj-alert").inner_text()
    view.locator("[name=top_k]").fill("0")


def test_markup_in_prompt_and_output_does_nothing(ran, run_cell):
    run_cell(ran, WRITER)
    view = ran.locator(".gptj-playground").last
    ran.wait_for_function("document.querySelectorAll('.gptj-playground').length === 2")
    view.locator(".gptj-generate").click()
    view.locator(".gptj-status", has_text="reached").wait_for()
    assert view.locator(".gptj-of-output").first.inner_text() == NAUGHTY, "it was generated"
    view.locator(".gptj-of-output").first.hover()
    assert NAUGHTY.replace(" ", "␣") in view.locator(".gptj-detail").inner_text()
    assert "<img src=x" in view.locator(".gptj-tokens").inner_text()
    assert view.locator("img, script").count() == 0
    assert ran.evaluate("window.pwned") is None


def test_the_view_follows_the_theme_of_the_notebook(ran):
    view = play(ran)
    assert view.get_attribute("data-theme") == "light"
    ran.evaluate("document.body.setAttribute('data-jp-theme-light', 'false')")
    view.and_(ran.locator("[data-theme=dark]")).wait_for()
    ran.evaluate("document.body.setAttribute('data-jp-theme-light', 'true')")
    view.and_(ran.locator("[data-theme=light]")).wait_for()
