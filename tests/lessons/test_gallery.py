"""The prompts that ship: found by name, in a clone and in a wheel."""

import tomllib
from pathlib import Path

from gptj_lab.lessons import gallery

ROOT = Path(__file__).parents[2]


def test_every_prompt_is_found_under_its_folder_and_name():
    files = sorted((ROOT / "data" / "prompts").glob("*/*.txt"))
    found = gallery.prompts()
    assert list(found) == [f"{path.parent.name}/{path.stem}" for path in files]
    assert list(found.values()) == [path.read_text("utf-8") for path in files]
    assert {name.split("/")[0] for name in gallery.prompts("code")} == {"code"}


def test_a_wheel_brings_them_where_they_are_sought():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    brought = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert ROOT / "gptj_lab" / "prompts" in gallery.FOLDERS
    assert brought["data/prompts"] == "gptj_lab/prompts"
