"""How a view's files become one module: what is dropped, what stays, and that it still works."""

import gzip
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gptj_lab.widgets import theme

VIEWS = ("explorer", "playground", "meshview", "tuneboard")
HERE = Path(__file__).parent


def test_packing_drops_comments_and_spaces_and_keeps_texts():
    source = """
// a comment
const a = "two  // words" + ' and ' ; // more
const b = `x ${ a ? `in ner ${a}` : "b  c" }  y`;
function f(x, y) {
  return x - -y + (a ?
    1 : 2);
}
"""
    assert theme.packed(source).strip() == (
        "const a=\"two  // words\"+' and ';"
        'const b=`x ${ a ? `in ner ${a}` : "b  c" }  y`;function f(x,y){return x - -y +(a?1:2)}'
    )


@pytest.mark.parametrize("view", VIEWS)
def test_no_comment_and_every_text_reaches_the_browser(view):
    source = theme._joined(view, "js")
    module = theme.script(view)
    texts = re.findall(r'"(?:[^"\\\n]|\\.)*"', re.sub(r"(?m)(^|\s)//.*$", "", source))
    assert all(text in module for text in texts if "//" not in text)
    assert "\n//" not in module and len(module) < 0.9 * len(source)


def test_the_explorers_module_is_small_and_its_parts_are_in_it():
    module = theme.script("explorer")
    # 83 kB is the smallest of the viewers that are held against it (nnsightful's bundle); 60 kB
    # were aimed at (docs/decisions.md).
    assert len(module.encode()) <= 71_000
    for name in ("followTheme", "overview", "heat", "mailbox", "lensPanel", "comparePanel"):
        assert f"function {name}(" in module
    assert module.rstrip().endswith("export default{render};")
    assert "innerHTML" not in module and "http" not in re.sub(r"http://www\.w3\.org", "", module)


def test_the_tuneboards_module_is_small_on_the_wire():
    module = theme.script("tuneboard")
    assert len(gzip.compress(module.encode())) <= 15_000
    assert "innerHTML" not in module and "http" not in re.sub(r"http://www\.w3\.org", "", module)


@pytest.mark.parametrize("packed", [False, True])
def test_the_explorers_view_with_a_fake_kernel(packed, tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not here; install it (Debian: apt-get install nodejs)")
    for view in VIEWS:
        (tmp_path / f"{view}.js").write_text(theme.script(view), "utf-8")
    scripts = sorted(HERE.glob("*.test.mjs") if packed else HERE.glob("explorer*.test.mjs"))
    environment = os.environ | ({"GPTJ_LAB_PACKED": str(tmp_path)} if packed else {})
    run = subprocess.run(
        [node, "--test", *map(str, scripts)], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
