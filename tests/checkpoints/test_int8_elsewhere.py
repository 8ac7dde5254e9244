"""A directory saved in int8: what transformers makes of it, and older directories of ours."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_models import FAMILIES, small_model

import gptj_lab
from gptj_lab import hugging_face_config
from gptj_lab.checkpoints.convert import convert

IDS = np.arange(40).reshape(2, 20)
OURS_BEFORE = {
    "quant_method": "gptj_lab_int8", "bits": 8, "symmetric": True, "per": "output channel"
}  # fmt: skip


@pytest.fixture(params=FAMILIES)
def saved(request, tmp_path):
    model = small_model(request.param, "int8")
    model.save(tmp_path / "int8")
    return model, tmp_path / "int8"


def rewritten(folder, config, *, flat):
    """The directory with another quantization_config, its scales as rows where `flat`."""
    fields = json.loads((folder / "config.json").read_text())
    fields |= {"quantization_config": config}
    (folder / "config.json").write_text(json.dumps(fields))
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if flat and name.endswith("_scale")]:
        tensors[name] = tensors[name].reshape(-1)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_directories_of_before_are_read_and_converted_to_the_new_form(saved, tmp_path):
    model, folder = saved
    rewritten(folder, OURS_BEFORE, flat=True)
    old = gptj_lab.load(folder)
    assert old.weights == "int8"
    assert (old.logits(IDS) == model.logits(IDS)).all()
    convert(folder, tmp_path / "new", "huggingface")
    old.save(tmp_path / "saved")
    for new in (tmp_path / "new", tmp_path / "saved"):
        assert (gptj_lab.load(new).logits(IDS) == model.logits(IDS)).all()
        config = json.loads((new / "config.json").read_text())["quantization_config"]
        assert config == hugging_face_config.int8_in_file(model.config.family)
        dims = {t.ndim for n, t in load_file(new / "model.safetensors").items() if "_scale" in n}
        assert dims == {1 if model.config.family == "gpt2" else 2}


def test_transformers_refuses_it_where_it_cannot_read_it(saved, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    model, folder = saved
    if model.config.family != "gpt2" and there("compressed_tensors"):
        pytest.skip("compressed-tensors is installed")
    words = "quant_method" if model.config.family == "gpt2" else "compressed-tensors"
    with pytest.raises((ValueError, ImportError), match=words):
        transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert transformers.AutoConfig.from_pretrained(folder).vocab_size == 304
    gptj_lab.load(folder, weights="float32").save(tmp_path / "float")
    expected = np.asarray(model.logits(IDS))
    same(theirs(tmp_path / "float"), expected)


def test_compressed_tensors_reads_it(saved):
    pytest.importorskip("compressed_tensors", reason="install the extra 'reference'")
    pytest.importorskip("transformers")
    model, folder = saved
    if model.config.family == "gpt2":
        pytest.skip("transformers has no int8 for Conv1D")
    same(theirs(folder), np.asarray(model.logits(IDS)))


def test_other_schemes_are_refused(saved):
    model, folder = saved
    if model.config.family == "gpt2":
        pytest.skip("it has no other scheme")
    config = hugging_face_config.int8_in_file(model.config.family)
    config["config_groups"]["group_0"]["weights"]["strategy"] = "group"
    rewritten(folder, config, flat=False)
    with pytest.raises(ValueError, match="quantization_config in "):
        gptj_lab.load(folder)


def there(module: str) -> bool:
    try:
        __import__(module)
    except ImportError:
        return False
    return True


def theirs(folder) -> np.ndarray:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.numpy()


def same(found: np.ndarray, expected: np.ndarray) -> None:
    """Within what our int8 products, whose values of x are three digits, differ from float32's."""
    np.testing.assert_allclose(found, expected, atol=1e-5 * abs(expected).max())
