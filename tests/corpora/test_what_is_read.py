"""docs/what_is_read.md holds, row by row: what forty shapes become, and what is told of them."""

import re
from pathlib import Path

import pytest
import reading_shapes

PAGE = Path(__file__).parents[2] / "docs" / "what_is_read.md"
ROWS = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")][1:]


def test_the_page_has_a_row_for_each_shape():
    assert [row.split(" | ")[0].removeprefix("| ") for row in ROWS] == [
        name for name, _, _ in reading_shapes.SHAPES
    ]


@pytest.mark.parametrize(
    ("shape", "row"),
    zip(reading_shapes.SHAPES, ROWS, strict=False),
    ids=[name for name, _, _ in reading_shapes.SHAPES],
)
def test_each_shape_becomes_what_the_page_says(shape, row):
    for module in ("bs4", "pypdf", "docx", "odfdo", "pandas", "pyarrow", "datasets", "nbformat"):
        pytest.importorskip(module)

    def settled(line):  # how sure charset-normalizer is changes with its version
        return re.sub(r"sure by \d+%", "sure by n%", line)

    assert settled(reading_shapes.row(*shape)) == settled(row)
