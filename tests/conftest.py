"""Eight host devices, no silent rank promotion, and small GPT-Js of both kinds to compare."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}  # relative to the largest logit


@pytest.fixture(scope="session")
def tolerance() -> dict[str, float]:
    """One relative tolerance a dtype, for the whole suite."""
    return TOLERANCE


@pytest.fixture(scope="session")
def torch_gptj():
    """A function that makes a random transformers.GPTJForCausalLM (std 0.2) from its fields."""
    torch = pytest.importorskip("torch")
    import transformers

    def make(seed: int = 0, **fields):
        base = dict(
            vocab_size=97,
            n_positions=32,
            n_embd=48,
            n_layer=3,
            n_head=4,
            rotary_dim=6,
            initializer_range=0.2,
            bos_token_id=0,
            eos_token_id=0,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
        )
        torch.manual_seed(seed)
        model = transformers.GPTJForCausalLM(transformers.GPTJConfig(**(base | fields))).eval()
        with torch.no_grad():  # biases and norms start at 0 and 1: move them, so that they count
            for _, value in model.named_parameters():
                if value.ndim == 1:
                    value.add_(0.2 * torch.randn_like(value))
        return model

    return make
