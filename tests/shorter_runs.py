"""Notebooks that train: their parameters for a run that only has to show that they work."""

import re
from pathlib import Path

from nbformat import NotebookNode

PARAMETERS = {
    "12_induction_heads_are_born": {"STEPS": 560},
    "15_fine_tuning_full_and_lora": {"STEPS": 6},
    "16_what_did_fine_tuning_change": {"STEPS": 12},
}


def shortened(notebook: NotebookNode, path: Path) -> NotebookNode:
    """The notebook with the parameters of a shorter run, where it has such."""
    for name, value in PARAMETERS.get(path.stem, {}).items():
        pattern = rf"^{name} = \d+"
        cells = [cell for cell in notebook.cells if re.search(pattern, cell.source, re.M)]
        assert len(cells) == 1, f"{path.stem}: {name} is set in {len(cells)} cells"
        cells[0].source = re.sub(pattern, f"{name} = {value}", cells[0].source, flags=re.M)
    return notebook
