"""A process of its own: the steps that generation itself jits, at 6B size, for the TPU compiler.

Takes a model, its weights and a topology; prints what the compiler said, as JSON.
"""

import dataclasses
import functools
import json
import os
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gptj_lab import presets
from gptj_lab.generation import decoding, sampling
from gptj_lab.mesh import planner_compile
from gptj_lab.mesh import planner_programs as programs
from gptj_lab.model.cache import empty_cache


@dataclasses.dataclass(frozen=True)
class Step:
    """A jitted function with its static arguments given."""

    function: Any
    static: dict[str, Any]

    def lower(self, *arguments: Any) -> Any:
        return self.function.lower(*arguments, **self.static)


def steps(name: str, weights: str, topology: str) -> dict[str, programs.Program]:
    """The prefill of a prompt that fills the context, as the Playground asks for it (with the
    probabilities of the prompt), and the chunk of tokens after it; on one device."""
    config = presets.named(name)
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = Mesh(np.array(devices[:1]).reshape(1, 1), ("data", "model"))
    on_it = functools.partial(jax.ShapeDtypeStruct, sharding=NamedSharding(mesh, PartitionSpec()))
    dtype = "bfloat16" if weights == "int8" else weights
    vocab, room, int32 = config.vocab_size, config.context, jnp.int32
    graph, state = nnx.split(programs.abstract_network(config, weights, None))
    placed, structure = jax.tree.flatten(programs.placed(state, config, mesh, dtype))
    form = decoding._form(graph, structure)

    def shapes_of(function: Any) -> Any:
        return jax.tree.map(lambda leaf: on_it(leaf.shape, leaf.dtype), jax.eval_shape(function))

    prefill = Step(
        decoding._prefill,
        dict(config=config, room=room, dtype=dtype, every_position=True, mesh=None),
    )
    counts = on_it((1, vocab), int32)
    arrays = (
        shapes_of(lambda: empty_cache(config, 1, room, dtype)),
        on_it((1, vocab), jnp.float32),
        counts,
        counts,
    )
    settings = shapes_of(lambda: sampling.make_settings(vocab, temperature=0.8, top_p=0.95))
    keys = shapes_of(lambda: sampling.row_key(0, 0)[None])
    row, one = on_it((1,), int32), on_it((), int32)
    chunk = (form, placed, arrays, settings, keys, on_it((1,), jnp.bool_), row, row, one, one)
    return {
        "prefill": programs.Program(prefill, (form, placed, on_it((1, room), int32), row)),
        "chunk": programs.Program(Step(decoding._chunk, dict(dtype=dtype, mesh=None)), chunk),
    }


if __name__ == "__main__":
    said = [planner_compile._compiled(*each) for each in steps(*sys.argv[1:]).items()]
    print(json.dumps([dataclasses.asdict(answer) for answer in said]), flush=True)
    os._exit(0)  # as planner_compile does
