"""The core suite on what a Colab runtime has; `make compat` also runs the oldest and the newest."""

import pytest
from compatibility import environments


@pytest.mark.slow  # some minutes of pip and compiling
def test_the_core_suite_passes_on_what_colab_has():
    try:
        python = environments.make("colab")
    except environments.Unavailable as error:
        pytest.skip(str(error))
    assert "JAX stays at 0.7.2" in environments.run_cell(python)
    assert environments.versions(python)["jax"] == "0.7.2"
    assert " passed" in environments.run_core(python)
