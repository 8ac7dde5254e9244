"""A chat is generation after the template's prompt, up to where the next turn begins."""

import jax
import pytest

from gptj_lab import chat_templates
from gptj_lab.finetuning import export, lora
from gptj_lab.generation import chatting
from gptj_lab.language_model import LanguageModel, load
from gptj_lab.model.transformer import Transformer

FORM = "### {question}\n{answer}"
TURNS = [
    {"role": "system", "content": "Be."}, {"role": "user", "content": "one"},
    {"role": "assistant", "content": "1"}, {"role": "user", "content": "two"},
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_config, tiny_tokenizer):
    config = tiny_config(num_layers=1, vocab_size=300)
    network = Transformer(config, key=jax.random.key(1))
    made = LanguageModel(config, network, tiny_tokenizer, "tiny")
    made.chat_template = chat_templates.named("chat", chat_templates.special_tokens(tiny_tokenizer))
    return made


def test_an_answer_is_what_generation_gives_after_the_templates_prompt(model):
    settings = dict(max_new_tokens=6, temperature=0.7, seed=3)
    prompt = "Be.\n\nUser: one\n\nAssistant: 1<|endoftext|>\n\nUser: two\n\nAssistant:"
    (expected,) = model.generate(prompt, **settings)
    assert model.chat(TURNS, **settings) == expected.text.strip()
    assert "".join(model.stream_chat(TURNS, **settings)) == expected.text.strip()
    assert "".join(model.chat(TURNS, stream=True, **settings)) == expected.text.strip()
    asked = model.generate("### one\n", **settings)[0].text.strip()
    assert model.chat("one", template=FORM, **settings) == asked


def test_it_stops_where_the_next_turn_begins(model, monkeypatch):
    given = {}

    class Asked(Exception):
        pass

    def decoding(model, prompt, **settings):
        given.update(settings, prompt=prompt)
        raise Asked

    monkeypatch.setattr(chatting, "Decoding", decoding)
    with pytest.raises(Asked):
        model.chat("one", template="chatml", stop="x")
    assert given["stop"] == ["x", "<|im_end|>", "<|im_end|>\n<|im_start|>user"]
    assert given["max_new_tokens"] == 256 and not given["add_special_tokens"]
    long = [{"role": "user", "content": "word " * 20}, {"role": "assistant", "content": "ok"}] * 3
    with pytest.raises(Asked):
        model.chat([TURNS[0], *long, TURNS[1]], keep_end=True, max_new_tokens=4)
    assert given["prompt"].startswith("Be.\n\nUser: ") and given["prompt"].endswith(
        "User: one\n\nAssistant:"
    )
    assert given["prompt"].count("word ") < 60


@pytest.mark.parametrize(
    ("messages", "settings", "message"),
    [
        ([], {}, "give a text, or a list of"),
        ([{"role": "robot", "content": ""}], {}, "message 1 has the role 'robot': system, user"),
        (TURNS[:3], {}, "the last message is the assistant's"),
        (["hi"], {}, "message 1 is a str: give dicts"),
        ([TURNS[0], {"role": "user", "content": None}], {}, "message 2 has a NoneType as content"),
        ("hi", {"template": "nope"}, "template is 'nope', which isn't known: give plain, chat"),
        ("hi", {"samples": 2}, "samples is 2: a chat has one answer"),
        ("hi", {"template": "{{ raise_exception('no ' ~ messages[0].role) }}{% if 1 %}{% endif %}"},
         "the chat template refuses the messages: no user"),
    ],
)  # fmt: skip
def test_what_is_no_chat_is_refused(model, messages, settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        model.chat(messages, **settings)


def test_a_model_without_a_template_says_how_to_give_one(model):
    bare = model.twin()
    bare.chat_template = None
    with pytest.raises(ValueError, match="tiny has no chat template.*give template="):
        bare.chat("hi")


def test_the_template_travels_with_the_model_and_with_an_adapter(model, tmp_path):
    transformers = pytest.importorskip("transformers")
    tuned = lora.adapted(model, lora.LoRA(rank=2))
    export.save_adapter(tuned, tmp_path / "adapter")
    bare = model.twin()
    bare.chat_template = None
    bare.save(tmp_path / "base")
    assert load(tmp_path / "base").chat_template is None
    assert not (tmp_path / "base" / "chat_template.jinja").exists()
    model.save(tmp_path / "whole")
    whole = load(tmp_path / "whole")
    whole.save(tmp_path / "again")
    loaded = export.load_adapter(load(tmp_path / "base"), tmp_path / "adapter")
    expected = model.chat_template(TURNS, add_generation_prompt=True)
    for found in (whole, load(tmp_path / "again"), loaded):
        assert found.chat_template.name == "chat"
        assert found.chat_template(TURNS, add_generation_prompt=True) == expected
    for folder in ("adapter", "whole", "again"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / folder)
        assert tokenizer.apply_chat_template(
            TURNS, tokenize=False, add_generation_prompt=True
        ) == expected  # fmt: skip
