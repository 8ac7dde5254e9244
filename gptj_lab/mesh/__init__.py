"""Where the arrays live. The package is also the function: `gptj_lab.mesh(data=1, model=8)`."""

import sys
import types

import jax


class _Mesh(types.ModuleType):
    """A package that can be called, as its name is the word that people use for both."""

    def __call__(self, data: int | None = None, model: int | None = None) -> jax.sharding.Mesh:
        from gptj_lab.mesh.sharding import make_mesh

        return make_mesh(data, model)


_Mesh.__call__.__doc__ = "A device mesh: see `gptj_lab.mesh.sharding.make_mesh`."
sys.modules[__name__].__class__ = _Mesh
