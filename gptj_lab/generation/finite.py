"""Numbers that are none: what to say where a model's logits are NaN or infinite."""


class NotFiniteError(ValueError):
    """A model's logits are not numbers; the message says in which dtype, and what to load."""

    def __init__(self, dtype: str, where: str):
        super().__init__(f"the logits are not finite in {dtype}, {where}: {remedy(dtype)}")


def remedy(dtype: str) -> str:
    """What to do about logits that aren't finite in this dtype of the activations."""
    if dtype == "float16":
        return (
            "its largest number is 65,504, which this model goes beyond. Load it with "
            'weights="bfloat16" or weights="float32"'
        )
    within = "" if dtype == "float32" else 'load the model with weights="float32"; if not there, '
    return (
        f"{within}the weights hold NaN or infinities, or grow beyond all numbers. "
        "gptj_lab.lens.not_finite.first_not_finite(model, prompt) says where it begins, "
        "not_finite_weights(model) which weights hold them"
    )
