"""A process of its own: what the Explorer runs on one text of the 6B, for the TPU compiler.

Takes a model, its weights, a topology and a number of tokens; prints what the compiler said, as
JSON.
"""

import dataclasses
import functools
import json
import os
import sys
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from steps_of_the_6b import Step

from gptj_lab import presets
from gptj_lab.lens import edits, passes
from gptj_lab.lens.interventions import Interventions
from gptj_lab.mesh import planner_compile
from gptj_lab.mesh import planner_programs as programs
from gptj_lab.widgets import explorer_encoding, explorer_reading


def steps(name: str, weights: str, topology: str, tokens: str) -> dict[str, programs.Program]:
    """The trace (residuals kept), the Explorer's reading (any interventions), a layer's maps."""
    config, seq = presets.named(name), int(tokens)
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = Mesh(np.array(devices[:1]).reshape(1, 1), ("data", "model"))
    on_it = functools.partial(jax.ShapeDtypeStruct, sharding=NamedSharding(mesh, PartitionSpec()))
    dtype = "bfloat16" if weights == "int8" else weights
    network = programs.abstract_network(config, weights, None)

    graph, state = nnx.split(network)
    state = programs.placed(state, config, mesh, dtype)
    network = nnx.merge(graph, state)
    block = network.blocks[0]
    none = Interventions.none(cast(Any, _Shape(config)), seq)
    changed = jax.tree.map(lambda leaf: on_it(np.shape(leaf), np.asarray(leaf).dtype), none)
    ids = on_it((1, seq), jnp.int32)
    sites = (*(f"blocks.{i}.resid_pre" for i in range(config.num_layers)),
             f"blocks.{config.num_layers - 1}.resid_post")  # fmt: skip
    row, tiles = on_it((seq,), jnp.int32), on_it((explorer_encoding.THUMBNAIL,), jnp.int32)
    x = on_it((1, seq, config.d_model), jnp.dtype(dtype))
    return {
        "trace": programs.Program(Step(passes.streams, dict(dtype=dtype)), (network, ids)),
        "read": programs.Program(
            Step(edits.forward, dict(dtype=dtype, wanted=sites)), (network, ids, changed)
        ),
        "pattern": programs.Program(
            Step(explorer_reading._inside, dict(wanted="attn.pattern")), (block, x, changed)
        ),
        "thumbnails": programs.Program(
            Step(explorer_reading._pooled, {}), (block, x, changed, tiles, tiles)
        ),
        "scores": programs.Program(
            Step(explorer_reading._scores, {}),
            (block, x, changed, row, on_it((seq,), jnp.bool_)),
        ),
    }


@dataclasses.dataclass(frozen=True)
class _Shape:
    """All of a model that interventions ask for."""

    config: Any


if __name__ == "__main__":
    said = [planner_compile._compiled(*each) for each in steps(*sys.argv[1:]).items()]
    print(json.dumps([dataclasses.asdict(answer) for answer in said]), flush=True)
    os._exit(0)  # as planner_compile does
