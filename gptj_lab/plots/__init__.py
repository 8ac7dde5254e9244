"""Numbers and words in, a picture out; never takes a model.

Every picture is a matplotlib Figure that shows itself in a notebook with its alt text. Colours are
told apart with any colour vision, and never say anything alone.
"""

from gptj_lab.plots.attention import attention_head, heads_grid
from gptj_lab.plots.attribution import attribution_waterfall, token_values
from gptj_lab.plots.curves import lines
from gptj_lab.plots.grids import head_scores, patching_grid, score_bars
from gptj_lab.plots.layers import lines_over_layers, logit_lens_table, rank_lines
from gptj_lab.plots.mesh import mesh_placement
from gptj_lab.plots.style import alt_text, png
from gptj_lab.plots.training import loss_curve, training_curves, training_plan

__all__ = [
    "alt_text",
    "attention_head",
    "attribution_waterfall",
    "head_scores",
    "heads_grid",
    "lines",
    "lines_over_layers",
    "logit_lens_table",
    "loss_curve",
    "mesh_placement",
    "patching_grid",
    "png",
    "rank_lines",
    "score_bars",
    "token_values",
    "training_curves",
    "training_plan",
]
