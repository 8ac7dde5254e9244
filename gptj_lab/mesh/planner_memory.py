"""What a job needs on one device, in bytes by kind, on paper.

Weights, optimiser, gradients and cache are counted exactly from the network's own shapes and
placements. Activations and workspace count the arrays that are alive at the fullest moment, in
the network as it stands: attention that writes all its scores, whole blocks recomputed.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh

from gptj_lab.config import ModelConfig
from gptj_lab.mesh import planner_programs as programs
from gptj_lab.model.cross_entropy import PIECE
from gptj_lab.names import DATA, MODEL

JOBS = ("generate", "lora", "finetune", "pretrain")
WEIGHTS = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}  # bytes a weight
KINDS = ("weights", "optimiser", "gradients", "activations", "cache", "workspace")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One job on one mesh.

    Attributes:
        config: shape of the network.
        job: one of JOBS.
        weights: one of WEIGHTS; int8 covers the matrices of the blocks, the rest is bfloat16.
        batch: sequences in a step, on all devices together.
        context: tokens of a sequence.
        data, model: devices along the two axes of the mesh.
        rank: of the LoRA adapters on q and v.
        remat: whether training recomputes whole blocks instead of keeping their inside, or a name
            of finetuning/loss.py's policies.
        activations: dtype of what training computes; by default bfloat16.
    """

    config: ModelConfig
    job: str
    weights: str
    batch: int
    context: int
    data: int
    model: int
    rank: int
    remat: bool | str | None
    activations: str | None = None

    @property
    def activation_dtype(self) -> str:
        """Of the residual stream: training computes in bfloat16, generation in the weights' own."""
        if self.activations is not None:
            return self.activations
        if self.job != "generate" or self.weights == "int8":
            return "bfloat16"
        return self.weights


def needed(setting: Setting) -> dict[str, int]:
    """Bytes on one device for each of KINDS."""
    frozen, trained = held(
        setting.config, setting.weights, setting.rank if setting.job == "lora" else None,
        setting.model,
    )  # fmt: skip
    kinds: dict[str, int] = {kind: 0 for kind in KINDS}
    if setting.job == "generate":
        kinds["weights"] = frozen + trained
        kinds["cache"] = cache_bytes(setting)
        kinds["workspace"] = _prefill_workspace(setting)
        return kinds
    kinds["weights"] = frozen + trained
    kinds["optimiser"] = 2 * trained  # AdamW's two moments, in the dtype of what is trained
    kinds["gradients"] = trained
    kinds["activations"] = kept(setting)
    kinds["workspace"] = training_workspace(setting)
    return kinds


@functools.lru_cache(maxsize=256)
def held(config: ModelConfig, weights: str, rank: int | None, model: int) -> tuple[int, int]:
    """Bytes of weights on one of `model` devices: frozen, and trained.

    With a rank the adapters (float32) are trained; without one everything counts as trained.
    """
    one_block = dataclasses.replace(config, num_layers=1)
    state = nnx.state(programs.abstract_network(one_block, weights, rank), nnx.Param)
    plain = WEIGHTS["bfloat16" if weights == "int8" else weights]
    mesh = AbstractMesh((1, model), (DATA, MODEL))
    totals = {False: 0, True: 0}
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        name = programs.path_name(path)
        adapter = "adapters" in name
        keeps = adapter or programs.is_int8_scale(name) or leaf.dtype == jnp.int8
        size = leaf.dtype.itemsize if keeps else plain
        share = model if any(programs.placement(name, config, mesh)) else 1
        copies = config.num_layers if "blocks" in name else 1
        totals[adapter or rank is None] += leaf.size * size * copies // share
    return totals[False], totals[True]


def cache_bytes(setting: Setting) -> int:
    """Bytes of keys and values on one device."""
    config, size = setting.config, WEIGHTS[setting.activation_dtype]
    rows = setting.batch // setting.data
    return 2 * config.num_layers * rows * setting.context * config.d_model * size // setting.model


def _prefill_workspace(setting: Setting) -> int:
    """While a block reads the prompt; a decode step needs less."""
    scores, wide, narrow = _block_arrays(setting)
    size = WEIGHTS[setting.activation_dtype]
    # Scores, masked, exponential and its normal form in float32, then the pattern; what fc_in
    # gives; residual, norm, attention's output and the MLP's.
    block = scores * (4 * 4 + size) + wide * size + 4 * narrow * size
    # Measured, not derived: cut over `model`, int8 weights keep about half an array of the
    # residual's size for every block until the end (libtpu 0.0.42; v2 and v5e, 8 devices).
    if setting.model > 1 and setting.weights == "int8":
        block += setting.config.num_layers * narrow * size // 2
    return block


def kept(setting: Setting, layers: int | None = None) -> int:
    """Bytes that the forward pass leaves for the backward pass.

    Args:
        layers: blocks that the backward pass goes through, from the last one; by default all.
    """
    scores, wide, narrow = _block_arrays(setting)
    size = WEIGHTS[setting.activation_dtype]
    layers = setting.config.num_layers if layers is None else layers
    residual = size * narrow
    if setting.remat == "products kept":  # q, k, v, out and both sides of the MLP
        inside = size * (3 * narrow // setting.model + wide + 2 * narrow)
    elif setting.remat:
        inside = 0
    else:
        # Norm, q, k, v, z in shares; scores in float32 and the pattern; both sides of GELU.
        shares = size * (narrow + 4 * narrow // setting.model)
        inside = shares + scores * (4 + size) + 2 * size * wide
    return layers * (residual + inside)


def training_workspace(setting: Setting) -> int:
    """The backward pass of one block or of a piece of the loss, whichever is more."""
    config = setting.config
    scores, wide, narrow = _block_arrays(setting)
    size = WEIGHTS[setting.activation_dtype]
    rows = setting.batch // setting.data
    # The softmax's output and its gradient in float32, one of them in the activations' dtype too;
    # both sides of GELU; residual, norm and what attention read.
    block = scores * (2 * 4 + size) + 2 * size * wide + 3 * size * narrow
    piece = rows * min(setting.context, PIECE) * config.vocab_size // setting.model
    return max(block, 3 * 4 * piece)


def _block_arrays(setting: Setting) -> tuple[int, int, int]:
    """Elements on one device of a block's scores, of its d_ff and of its d_model activations."""
    config, rows = setting.config, setting.batch // setting.data
    scores = rows * config.num_heads * setting.context**2 // setting.model
    wide = rows * setting.context * config.d_ff // setting.model
    return scores, wide, rows * setting.context * config.d_model
