"""Programs that compile quickly, and are compiled once, for the tests of runs."""

import jax
import pytest


@pytest.fixture(scope="module")
def quick_compiles(tmp_path_factory):
    """LLVM optimises less, and the same program comes from a folder the second time."""
    settings = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
