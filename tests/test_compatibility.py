"""The core suite on what a Colab runtime has; `make compat` also runs the oldest and the newest."""

import pytest
from compatibility import environments

# In CI, since each took JAX or Flax by a name that Colab's versions don't have; all of it takes
# three minutes of CPU.
FIRST = "pocket or lora-float32 or Explorer or (traced and gptj)"


@pytest.fixture(scope="module")
def colab():
    """The Python of an environment with Colab's versions, in which the install cell has run."""
    try:
        python = environments.make("colab")
    except environments.Unavailable as error:
        pytest.skip(str(error))
    assert "JAX stays at 0.7.2" in environments.run_cell(python)
    assert environments.versions(python)["jax"] == "0.7.2"
    return python


def test_what_colab_has_loads_generates_trains_and_shows(colab):
    assert environments.run_core(colab, "-k", FIRST).startswith("4 passed")


@pytest.mark.slow
def test_the_core_suite_passes_on_what_colab_has(colab):
    assert " passed" in environments.run_core(colab)
