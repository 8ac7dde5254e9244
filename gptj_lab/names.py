"""One spelling per axis, and the names of the sites inside the network.

Axes are used in array types (`Float[Array, "batch seq d_model"]`); sites are the paths that a
trace or an intervention names, with `{i}` for the number of the block.
"""

AXES = (
    "batch",
    "seq",
    "kv_seq",
    "d_model",
    "heads",
    "d_head",
    "d_rotary",
    "d_ff",
    "vocab",
    "layers",
)

# The axes of a device mesh: the batch is cut over the first, the weights over the second.
DATA, MODEL = "data", "model"

# Every site that a block may have, in the order of the computation. `resid_mid` is in sequential
# blocks only, `ln2` where the MLP has a LayerNorm of its own: GPT-J's blocks have neither.
BLOCK_SITES = (
    "resid_pre",
    "ln",
    "attn.q",
    "attn.k",
    "attn.v",
    "attn.scores",
    "attn.pattern",
    "attn.z",
    "attn_out",
    "resid_mid",
    "ln2",
    "mlp.pre",
    "mlp.post",
    "mlp_out",
    "resid_post",
)
# `position_embed` is where positions are learned.
OUTER_SITES = ("embed", "position_embed", "final_ln", "logits")


def all_sites(
    num_layers: int, *, parallel: bool, shared_layer_norm: bool, learned_positions: bool
) -> tuple[str, ...]:
    """Every site of a network of `num_layers` blocks, in the order of the computation."""
    absent = {
        "resid_mid": parallel,
        "ln2": shared_layer_norm,
        "position_embed": not learned_positions,
    }
    before = ["embed", "position_embed"]
    blocks = [
        f"blocks.{i}.{s}" for i in range(num_layers) for s in BLOCK_SITES if not absent.get(s)
    ]
    return (*(s for s in before if not absent.get(s)), *blocks, "final_ln", "logits")
