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
    "mlp.pre",
    "mlp.post",
    "mlp_out",
    "resid_post",
)
OUTER_SITES = ("embed", "final_ln", "logits")


def all_sites(num_layers: int) -> list[str]:
    """Every site of a network of `num_layers` blocks, in the order of the computation."""
    blocks = [f"blocks.{i}.{site}" for i in range(num_layers) for site in BLOCK_SITES]
    return ["embed", *blocks, "final_ln", "logits"]
