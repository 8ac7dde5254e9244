"""Notebook 17 in a real JupyterLab in a real Chromium, as a student uses it."""

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "meshview.png"
# What JAX says of the slice on device 5: bounds in each dimension, and bytes.
ASK = """
import json
_array = model.network.blocks[0].mlp.fc_in.weight[...]
_shard = next(each for each in _array.addressable_shards if each.device.id == 5)
_bounds = [part.indices(size)[:2] for part, size in zip(_shard.index, _array.shape)]
print("SHARD", json.dumps([_bounds, _array.shape, _shard.data.nbytes]))
"""

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(open_notebook, run_all):
    page = open_notebook("17_sharding_on_a_mesh")
    run_all(page)
    # The slices come when the kernel is idle: after the last cell.
    page.locator(".gptj-meshview .gptj-slice").first.wait_for(state="attached", timeout=240_000)
    yield page
    page.close()


def view(page):
    return page.locator(".gptj-meshview").first


def test_pointing_at_a_device_tells_what_jax_tells_of_its_slices(page, run_cell):
    mesh = view(page)
    mesh.scroll_into_view_if_needed()
    assert mesh.locator(".gptj-device").count() == 8
    assert mesh.locator(".gptj-group[open] summary").all_text_contents() == ["blocks.0"]
    mesh.locator(".gptj-weight", has_text="mlp.fc_in.weight").first.click()
    mesh.locator(".gptj-cut", has_text="blocks.0.mlp.fc_in.weight").wait_for()
    mesh.locator(".gptj-device", has_text="device 5").hover()
    said = mesh.locator(".gptj-sentence").inner_text()
    assert mesh.locator("[data-held=true]").inner_text().split() == "slice 2 devices 1, 5".split()
    if os.environ.get("GPTJ_LAB_PICTURE"):  # `make picture`: the README's
        page.evaluate("document.querySelector('.gptj-meshview').scrollIntoView()")
        page.screenshot(path=PICTURE)
    run_cell(page, ASK)
    answer = page.locator(".jp-OutputArea-output", has_text="SHARD [[")
    answer.wait_for()
    bounds, shape, size = json.loads(answer.inner_text().split("SHARD")[1])
    (start, stop), columns = bounds
    assert columns == [0, shape[1]]
    assert said == (
        f"Device 5 holds rows {start:,}–{stop - 1:,} of {shape[0]:,} and all {shape[1]:,} columns: "
        f"{size / 1000:.1f} kB. Device 1 holds the same."
    )


def test_the_drawn_slices_have_the_sizes_of_the_arrays(page):
    mesh = view(page)
    whole = mesh.locator(".gptj-matrix").evaluate("n => [n.clientWidth, n.clientHeight]")
    for box in mesh.locator(".gptj-slice").evaluate_all(
        "all => all.map((n) => [n.offsetLeft, n.offsetTop, n.offsetWidth, n.offsetHeight])"
    ):
        assert box[0] == 0 and box[2] == pytest.approx(whole[0], abs=1)
        assert box[3] == pytest.approx(whole[1] / 4, abs=1)


def test_keys_walk_over_devices_and_weights(page):
    mesh = view(page)
    mesh.locator(".gptj-device").nth(5).focus()
    page.keyboard.press("ArrowUp")
    assert mesh.locator("[aria-selected=true]").inner_text().startswith("device 1")
    assert mesh.locator(".gptj-sentence").inner_text().startswith("Device 1 holds rows")
    assert mesh.locator("[aria-selected=true]").evaluate("n => n === document.activeElement")
    weights = mesh.locator(".gptj-weight", has_text="ln.scale")
    weights.first.focus()
    page.keyboard.press("Enter")
    mesh.locator(".gptj-sentence", has_text="So does every other device").wait_for()
    assert mesh.locator(".gptj-slice").inner_text().split() == "all of it on every device".split()


def test_what_python_sets_the_view_shows_and_the_other_way_round(page, run_cell):
    mesh = view(page)
    run_cell(page, "print('IS', view.weight); view.weight = 'embed'")
    page.locator(".jp-OutputArea-output", has_text="IS blocks.0.ln.scale").wait_for()
    mesh.locator(".gptj-cut", has_text="embed").wait_for()
    mesh.locator(".gptj-slice").nth(3).hover()
    assert mesh.locator("[data-same=true]").all_inner_texts() == [
        "device 3\n6.8 MB\nslice 4",
        "device 7\n6.8 MB\nslice 4",
    ]


def test_the_view_follows_the_theme_of_the_notebook(page):
    mesh = view(page)
    page.evaluate("document.body.setAttribute('data-jp-theme-light', 'false')")
    mesh.and_(page.locator("[data-theme=dark]")).wait_for()
    page.evaluate("document.body.setAttribute('data-jp-theme-light', 'true')")
    mesh.and_(page.locator("[data-theme=light]")).wait_for()
