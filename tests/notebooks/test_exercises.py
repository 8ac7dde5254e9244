"""Exercises that check themselves: what stands there fails with a sentence, the solution passes."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from shorter_runs import PARAMETERS, shortened

from gptj_lab.lessons import Verdict

ROOT = Path(__file__).parents[2]
SOLUTION = re.compile(
    r"<details><summary>Solution</summary>\s*```python\n(.*?)```\s*</details>", re.S
)
WITH_SOLUTIONS = [
    path
    for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
    if "<summary>Solution" in path.read_text("utf-8")
]


def run(source: str, names: dict):
    """Runs a cell; the value of its last expression, if it ends with one."""
    body = ast.parse(source).body
    last = ast.Expression(body.pop().value) if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    return None if last is None else eval(compile(last, "cell", "eval"), names)


def checked(cell: str, solution: str) -> str:
    """The solution, followed by the cell's own check where it doesn't bring it."""
    check = cell.rstrip().splitlines()[-1]
    return solution if check in solution else f"{solution}\n{check}"


def test_the_lessons_have_their_solutions():
    assert [path.stem[:2] for path in WITH_SOLUTIONS] == ["11", "12", "13", "14", "15", "16"]


@pytest.mark.parametrize("path", WITH_SOLUTIONS, ids=lambda p: p.stem)
def test_a_lesson_has_goals_times_hints_a_pinned_picture_and_a_last_word(path):
    cells = nbformat.read(path, as_version=4).cells
    first, last = cells[0].source, cells[-1].source
    parts = "**You will learn**", "**It runs on**", "**It takes**", "Difficulty ", "importance "
    assert all(part in first for part in parts)
    assert all(f"## {part}" in last for part in ("What we saw", "What you can now explain", "Next"))
    tried = [i for i, cell in enumerate(cells) if "<summary>Solution" in cell.source]
    for i in tried:  # the task and its hint, what the learner fills in, the solution
        assert "<summary>Hint" in cells[i - 2].source and cells[i - 1].cell_type == "code"
    assert len(tried) == 3 and any(cell.source.endswith(".pin()") for cell in cells)


@pytest.mark.parametrize(
    "path",
    [  # the others take long, and test_notebooks.py runs their cells
        pytest.param(
            path, id=path.stem, marks=[pytest.mark.slow] * (path.stem[:2] not in ("12", "13"))
        )
        for path in WITH_SOLUTIONS
    ],
)
def test_stubs_fail_with_a_sentence_and_solutions_pass(path, capsys, request):
    if path.stem in PARAMETERS:  # it trains
        request.getfixturevalue("compiled_well")
    cells = shortened(nbformat.read(path, as_version=4), path).cells
    names: dict = {"__name__": "__main__"}
    verdicts = []
    for cell, following in zip(cells, [*cells[1:], None], strict=True):
        if cell.cell_type != "code":
            continue
        shown = run(cell.source, names)
        solution = SOLUTION.search(following.source) if following else None
        if solution is None:
            assert not isinstance(shown, Verdict), f"no solution follows:\n{cell.source}"
            continue
        assert isinstance(shown, Verdict) and not shown.passed, shown
        assert re.search(r"^(Not yet: |Replace ).{20,}", repr(shown)), shown
        solved = run(checked(cell.source, solution[1]), names)
        assert isinstance(solved, Verdict) and solved.passed, solved
        verdicts.append(solved)
    print(*verdicts, sep="\n")
    assert len(verdicts) == 3
