"""A checkpoint that is loaded and saved is given back whole: config, tokenizer, template, card."""

import json

import numpy as np
import pytest
from small_models import FAMILIES

import gptj_lab
from gptj_lab.checkpoints.companions import Companions
from gptj_lab.checkpoints.convert import convert
from gptj_lab.finetuning import lora

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)
_STAMPS = ("dtype", "transformers_version", "_name_or_path")
CARD = "---\nlicense: apache-2.0\n---\n# A card of somebody's own\n"


@pytest.fixture(scope="module", params=FAMILIES)
def made(request, torch_model, tiny_tokenizer, tmp_path_factory):
    """As transformers writes it, every setting unlike its default."""
    from transformers import AddedToken, GenerationConfig, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp(request.param)
    model = torch_model(request.param, vocab_size=320, eos_token_id=301, bos_token_id=0)
    model.generation_config = GenerationConfig(
        temperature=0.3, top_p=0.8, do_sample=True, eos_token_id=[301, 0], pad_token_id=302,
        repetition_penalty=1.3, max_new_tokens=7,
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer._inner,
        eos_token="<|im_end|>", pad_token="<|padding|>", bos_token="<|endoftext|>",
        model_max_length=77, padding_side="left", truncation_side="left",
        extra_special_tokens=["<|im_start|>"],
    )  # fmt: skip
    tokenizer.add_tokens([AddedToken("<tool>", lstrip=True, rstrip=True, normalized=False)])
    tokenizer.chat_template = {"default": TEMPLATE, "tool_use": "{{ messages }}"}
    tokenizer.save_pretrained(folder)
    fields = json.loads((folder / "config.json").read_text())
    fields |= {
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "pad_token_id": 302, "use_cache": False, "summary_first_dropout": 0.3,
        "architectures": [*fields["architectures"], "Another"], "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "README.md").write_text(CARD)
    (folder / "LICENSE").write_text("Do as you like.")
    return folder


def seen(folder) -> dict:
    """What transformers makes of the files beside the weights."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(folder)
    kwargs = tokenizer.init_kwargs | {"name_or_path": None}
    chat = [{"role": "user", "content": "the cat <tool> sat"}]
    config, generation = (
        AutoConfig.from_pretrained(folder),
        GenerationConfig.from_pretrained(folder),
    )
    return {
        "config": config.to_dict() | dict.fromkeys(_STAMPS),
        "raw": json.loads((folder / "config.json").read_text())
        | dict.fromkeys(("dtype", "torch_dtype")),
        "generation": generation.to_dict() | {"transformers_version": None},
        "tokenizer": {
            "class": type(tokenizer).__name__,
            "kwargs": repr(sorted(kwargs.items(), key=str)),
            "special": tokenizer.special_tokens_map,
            "added": repr(tokenizer.added_tokens_decoder),
            "length": tokenizer.model_max_length,
            "sides": (tokenizer.padding_side, tokenizer.truncation_side),
            "templates": tokenizer.chat_template,
            "chat": tokenizer.apply_chat_template(chat, tokenize=False),
            "ids": tokenizer("the <|im_end|> dog  <tool>  sat<|padding|>")["input_ids"],
        },
    }


def weights(folder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    return {name: value.numpy() for name, value in model.state_dict().items()}


def texts(folder) -> dict[str, bytes]:
    return {
        name: data for name, data in Companions.read(folder).files.items() if "json" not in name
    }


def test_the_checkpoint_says_what_it_should(made):
    found = seen(made)
    assert found["tokenizer"]["special"]["eos_token"] == "<|im_end|>"
    assert found["tokenizer"]["length"] == 77 and "tool_use" in found["tokenizer"]["templates"]
    assert found["generation"]["eos_token_id"] == [301, 0]
    assert found["config"]["eos_token_id"] == 301


def test_loaded_and_saved(made, tmp_path):
    model = gptj_lab.load(made)
    model.save(tmp_path)
    assert Companions.read(tmp_path) == Companions.read(made), "byte for byte, config.json too"
    assert seen(tmp_path) == seen(made)
    np.testing.assert_equal(weights(tmp_path), weights(made))
    model.save(tmp_path)  # over itself
    assert seen(tmp_path) == seen(made)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_loaded_in_another_dtype_and_converted(made, dtype, tmp_path):
    gptj_lab.load(made, weights=dtype).save(tmp_path / "saved")
    convert(made, tmp_path / "converted", "huggingface", dtype=dtype)
    for folder in (tmp_path / "saved", tmp_path / "converted"):
        assert seen(folder) == seen(made)
        assert texts(folder) == texts(made)
        fields = json.loads((folder / "config.json").read_text())
        assert fields["dtype"] == fields["torch_dtype"] == dtype


def test_by_way_of_int8(made, tmp_path):
    convert(made, tmp_path / "int8", "huggingface", dtype="int8")
    gptj_lab.load(tmp_path / "int8").save(tmp_path / "again")
    convert(tmp_path / "again", tmp_path / "float", "huggingface", dtype="float32")
    gptj_lab.load(tmp_path / "int8", weights="float32").save(tmp_path / "saved")
    for folder in (tmp_path / "float", tmp_path / "saved"):
        assert seen(folder) == seen(made)
        assert texts(folder) == texts(made)


def test_merged_and_fine_tuned(made, tmp_path, request):
    model = gptj_lab.load(made)
    adapted = lora.adapted(model, lora.LoRA(rank=2))
    lora.merged(adapted).save(tmp_path / "merged")
    folders = [tmp_path / "merged"]
    if model.config.family == "gpt2" or "not slow" not in request.config.option.markexpr:
        folders.append(tmp_path / "tuned")
        tune(model, folders[-1])
        before, after = weights(made), weights(folders[-1])
        assert any((before[name] != after[name]).any() for name in before)
    for folder in folders:
        assert seen(folder) == seen(made)
        assert not (folder / "README.md").exists(), "that card is of other weights"
        assert (folder / "README.base.md").read_text() == CARD
        assert (folder / "LICENSE").read_text() == "Do as you like."


def tune(model, out):
    rows = ["the cat sat on the mat. " * 9] * 6
    run = gptj_lab.finetune(model, rows, method=gptj_lab.Full(), steps=1, batch=1, say=str)
    run.save(out)


def test_an_original_release_keeps_all_but_the_config(made, tmp_path):
    if json.loads((made / "config.json").read_text())["model_type"] != "gptj":
        pytest.skip("only GPT-J has this form")
    convert(made, tmp_path / "release", "mesh-transformer", shards=2)
    assert texts(tmp_path / "release") == texts(made)
    release = gptj_lab.load(tmp_path / "release")
    assert release.companions == Companions.read(made).without(["config.json"])
    convert(tmp_path / "release", tmp_path / "back", "huggingface")
    back, before = seen(tmp_path / "back"), seen(made)
    assert back["tokenizer"] == before["tokenizer"]
    assert back["generation"] == before["generation"]
