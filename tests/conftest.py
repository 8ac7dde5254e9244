"""Eight host devices, shapes checked, no silent rank promotion; small models to compare."""

import functools
import gc
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# Two workers on two cores: torch's threads for tiny matrices would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

# Every annotated shape of the package is checked at each call; before its first import.
sys.path.insert(0, str(Path(__file__).parent))
jaxtyping.install_import_hook("gptj_lab", "shape_checking.arrays")

jax.config.update("jax_numpy_rank_promotion", "raise")


# Other versions may not know the flag that chooses them.
_HAS_OLDER_EMITTERS = (0, 10) <= jax.version.__version_info__ < (0, 11)


def pytest_configure(config):
    """The default suite spends most of its time on compiling: LLVM does less of it there.

    The slow suite, and the processes that a test starts, compile as users do, where the test
    doesn't use `quick_processes`. All processes of one run share one folder of programs.
    """
    quick = config.option.markexpr in ("not slow", "core")
    jax.config.update("jax_disable_most_optimizations", quick)
    if _HAS_OLDER_EMITTERS:
        _leave_fusion_emitters_out()
    if quick and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="programs-")
        config.add_cleanup(folder.cleanup)
        for name, value in _programs_in(folder.name).items():
            jax.config.update(name, value)
            os.environ[name.upper()] = str(value)  # for workers, processes and kernels


def _leave_fusion_emitters_out():
    """Where LLVM does less, XLA's older emitters too: a third of the seconds for a training step.

    JAX has no public setting for it, and XLA_FLAGS hold for a whole process.
    """
    from jax._src import compiler

    as_ever = compiler.get_compile_options

    def get_compile_options(*args, **kwargs):
        options = as_ever(*args, **kwargs)
        if jax.config.values["jax_disable_most_optimizations"]:
            options.env_option_overrides = [
                *options.env_option_overrides, ("xla_cpu_use_fusion_emitters", False)
            ]  # fmt: skip
        return options

    compiler.get_compile_options = get_compile_options


def _programs_in(folder: str) -> dict:
    """JAX's settings that keep every compiled program in that folder."""
    return {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_file():
    """Drops what a file of tests compiled: a worker would grow to 6 GB otherwise."""
    yield
    jax.clear_caches()
    gc.collect()


COMPARED = ("torch", "peft", "transformers", "transformer_lens")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    """Without a package to compare with, a test is skipped, by the package's name."""
    return (yield from _skipped_without_what_it_compares_with())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """As pytest_runtest_setup: also a test that imports the package itself."""
    return (yield from _skipped_without_what_it_compares_with())


def _skipped_without_what_it_compares_with():
    try:
        return (yield)
    except ImportError as error:
        lacks = str(error.name or error)  # transformers says it needs torch in a sentence
        torch = "PyTorch" in lacks and importlib.util.find_spec("torch") is None
        missing = "torch" if torch else lacks.partition(".")[0]
        last = error.__traceback__
        while last.tb_next is not None:
            last = last.tb_next
        ours = "gptj_lab" in Path(last.tb_frame.f_code.co_filename).parts
        if missing not in COMPARED or (ours and missing != "transformers"):
            raise  # the package itself works without torch
        pytest.skip(f"{missing} isn't installed, and this compares with it")


TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}  # relative to the largest logit


@pytest.fixture(scope="session")
def tolerance() -> dict[str, float]:
    """One relative tolerance a dtype, for the whole suite."""
    return TOLERANCE


# The same sizes in every family's words.
_GPT2_SIZES = dict(vocab_size=97, n_positions=32, n_embd=48, n_layer=3, n_head=4)
_TORCH = {
    "gptj": ("GPTJForCausalLM", dict(rotary_dim=6, **_GPT2_SIZES)),
    "codegen": ("CodeGenForCausalLM", dict(rotary_dim=6, **_GPT2_SIZES)),
    "gpt2": ("GPT2LMHeadModel", _GPT2_SIZES),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        dict(
            vocab_size=97, max_position_embeddings=32, hidden_size=48, num_layers=3, num_heads=4,
            attention_types=[[["global", "local"], 1], [["local"], 1]], window_size=5,
        ),
    ),
    "gpt_neox": (
        "GPTNeoXForCausalLM",
        dict(
            vocab_size=97, max_position_embeddings=32, hidden_size=48, num_hidden_layers=3,
            num_attention_heads=4, intermediate_size=192, rotary_pct=0.5,
        ),
    ),
}  # fmt: skip


@pytest.fixture(scope="session")
def torch_model():
    """A function that makes a random transformers model of a family (std 0.2) from its fields."""
    torch = pytest.importorskip("torch")
    import transformers

    def make(family: str, seed: int = 0, **fields):
        name, base = _TORCH[family]
        kind = getattr(transformers, name)
        torch.manual_seed(seed)
        fields = dict(initializer_range=0.2, bos_token_id=0, eos_token_id=0) | base | fields
        model = kind(kind.config_class(**fields)).eval()
        with torch.no_grad():  # biases and norms start at 0 and 1: move them, so that they count
            for _, value in model.named_parameters():
                if value.ndim == 1:
                    value.add_(0.2 * torch.randn_like(value))
        return model

    return make


@pytest.fixture(scope="session")
def torch_gptj(torch_model):
    """A function that makes a random transformers.GPTJForCausalLM (std 0.2) from its fields."""
    return functools.partial(torch_model, "gptj")


@pytest.fixture(scope="session")
def tiny_config():
    """A function that makes the config of a GPT-J of some thousand weights (std 0.2)."""
    from gptj_lab.config import ModelConfig

    def make(**fields) -> ModelConfig:
        base = dict(
            vocab_size=304,
            context=64,
            d_model=32,
            num_layers=2,
            num_heads=4,
            d_rotary=4,
            d_ff=64,
            activation="gelu_new",
            layer_norm_eps=1e-5,
            initializer_range=0.2,
            bos_token_id=0,
            eos_token_id=0,
        )
        return ModelConfig.of_family("gptj", **(base | fields))

    return make


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A byte-level BPE of at most 300 tokens, which has seen cats, dogs and an emoji."""
    from gptj_lab.tokenizer import train_bpe

    text = "the cat sat on the mat, and the dog 🙂 sat on the log; naïve cats do. " * 9
    return train_bpe([text], 300)


@pytest.fixture(scope="session")
def tiny_model(tiny_config, tiny_tokenizer):
    """A LanguageModel with random weights; its embedding has rows that no token needs."""
    from gptj_lab.language_model import LanguageModel
    from gptj_lab.model.transformer import Transformer

    config = tiny_config()
    network = Transformer(config, key=jax.random.key(1))
    return LanguageModel(config, network, tiny_tokenizer, "tiny")


@pytest.fixture(scope="session")
def tiny_directory(torch_gptj, tiny_tokenizer, tmp_path_factory):
    """A Hugging Face directory that transformers wrote, with a tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    torch_gptj(vocab_size=300).save_pretrained(folder)
    tiny_tokenizer.save(folder)
    return folder


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1.5 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1536k", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True) if shutil.which("mount") else None
    if done is None or done.returncode:
        pytest.skip(f"a small disk can't be mounted here: {done and done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def quick_compiles(tmp_path_factory):
    """Programs that LLVM optimises less, and that come from a folder the second time."""
    folder = str(tmp_path_factory.mktemp("programs"))
    settings = {"jax_disable_most_optimizations": True}  # in the slow suite too
    if not jax.config.values["jax_compilation_cache_dir"]:
        settings |= _programs_in(folder)
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def compiled_well():
    """In the default suite too, as users compile: for a thousand steps it pays, and where two
    programs agree in every bit."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()


@pytest.fixture(scope="module")
def quick_processes(pytestconfig):
    """In the default suite: processes whose programs LLVM optimises less."""
    with pytest.MonkeyPatch.context() as patch:
        if pytestconfig.option.markexpr == "not slow":
            patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
            if _HAS_OLDER_EMITTERS:
                flags = os.environ["XLA_FLAGS"] + " --xla_cpu_use_fusion_emitters=false"
                patch.setenv("XLA_FLAGS", flags)
        yield


@pytest.fixture
def lowest_after(monkeypatch):
    """Sets after how many steps the held-out loss is lowest: no rounding decides it then."""
    from gptj_lab.finetuning.measuring import Measuring

    def turn(lowest: int) -> None:
        def loss(measuring, go_on=None):
            if not len(measuring.windows):
                return None  # nothing is held out
            return abs(int(measuring._trainer.arrays()["step"]) - lowest) + 1.0

        monkeypatch.setattr(Measuring, "loss", loss)

    return turn


@pytest.fixture
def short_library(tmp_path_factory, monkeypatch):
    """A few modules of the standard library, each cut short, for pocket's recipe: whole takes
    minutes."""
    from gptj_lab.finetuning import pocket

    whole, folder = pocket._library(), tmp_path_factory.mktemp("library")
    for name in (*pocket.HELD_OUT_MODULES, "argparse", "random"):
        text = (whole / f"{name}.py").read_text("utf-8")
        (folder / f"{name}.py").write_text(text[:2000])
    monkeypatch.setattr(pocket, "_library", lambda: folder)
    monkeypatch.setattr(pocket, "_SAMPLE_BYTES", 2400)
