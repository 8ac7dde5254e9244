"""The checks of the notebooks' exercises: an answer or a function in, a verdict out.

Answers are held against identities, properties and the model itself, never against a copy of the
solution. A verdict prints as a sentence; the usual wrong answers are told what they are.
"""

from gptj_lab.lessons import (
    attention_maps,
    causality,
    fine_tuning,
    gallery,
    induction,
    logit_lens,
    what_changed,
)
from gptj_lab.lessons.verdict import Verdict

__all__ = [
    "Verdict", "attention_maps", "causality", "fine_tuning", "gallery", "induction",
    "logit_lens", "what_changed",
]  # fmt: skip
