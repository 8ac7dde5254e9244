"""Templates: ids and masks are transformers' and TRL's; the text is that of the public forms."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from trl_reference import CONVERSATIONS, SAID, STRINGS

from gptj_lab import chat_templates
from gptj_lab.chat_templates import Form
from gptj_lab.corpora import reading, templates
from gptj_lab.corpora.options import ReadingOptions
from gptj_lab.corpora.passages import ReadingNotes
from gptj_lab.finetuning import corpus
from gptj_lab.tokenizer import Tokenizer

# Llama 3's way with turns, without and with marks; Mistral's, which refuses roles out of order.
_LLAMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start|>' + m['role'] + '<|end|>\n\n' + "
    "m['content'] | trim + '<|eot|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
)
_MARKED = (
    "{%- for m in messages %}\n{%- if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{%- elif m.role == 'system' %}{{- m.content + '\\n' }}\n{%- else %}"
    "{% generation %} {{ m.content }}{{ eos_token }}{% endgeneration %}{% endif %}{%- endfor %}"
)
_STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}"
    "{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
TURNS = [
    {"role": "system", "content": "Be brief, naïve 🙂."},
    {"role": "user", "content": "Name a colour."},
    {"role": "assistant", "content": "Red, like\n\n  a lamp."},
    {"role": "user", "content": " And one more? "},
    {"role": "assistant", "content": "Blue."},
]
PAIR = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I am."}]
SHAPES = {
    **{f"{name}, conversation": (name, TURNS) for name in chat_templates.NAMED},
    **{f"{name}, pair": (name, PAIR) for name in chat_templates.NAMED},
    "alpaca with input": ("alpaca", [{**PAIR[0], "context": "A sea."}, PAIR[1]]),
    "marked, conversation": (_MARKED, TURNS),
    "a form": ("### {question}\n{answer}", TURNS),
    "a form with blanks before the answer": ("Q: {question} A: {answer} END", PAIR),
}
UNMARKED = {"unmarked, conversation": (_LLAMA, TURNS), "unmarked, pair": (_STRICT, PAIR)}


@pytest.fixture(scope="module")
def ours():
    return Tokenizer.gpt2(0)


@pytest.fixture(scope="module")
def theirs(ours, tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tokenizer")
    ours.save(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def prepared(messages, template, tokenizer, folder, **settings):
    """(ids, mask) of the one document that a conversation becomes, the mark in front left out."""
    row = {"messages": messages} if isinstance(messages, list) else messages
    made = corpus.prepare(
        [row], tokenizer, context=8, held_out=0, template=template, cache=folder, **settings
    )
    store = made.train.store
    (document,) = store.documents
    ids, mask = store.read(0, 1, int(document["length"]) - 1 + int(document["closes"]))
    return ids.tolist(), mask.astype(int).tolist(), made.template


@pytest.mark.parametrize("shape", SHAPES)
def test_ids_and_mask_are_those_of_transformers(shape, ours, theirs, tmp_path):
    given, messages = SHAPES[shape]
    context = messages[0].get("context")
    if context is None:
        ids, mask, template = prepared(messages, given, ours, tmp_path)
    else:
        row = {"instruction": "Who?", "input": context, "output": "I am."}
        found = corpus.prepare([row], ours, context=8, held_out=0, template=given, cache=tmp_path)
        store, template = found.train.store, found.template
        ids, mask = store.read(0, 1, int(store.documents["length"][0]))
        ids, mask = ids.tolist(), mask.astype(int).tolist()
    expected = theirs.apply_chat_template(
        messages, chat_template=template.source, return_dict=True, return_assistant_tokens_mask=True
    )
    assert ids == expected["input_ids"] and mask == expected["assistant_masks"]
    assert sum(mask) > 1 and theirs.decode(ids) == template(messages)
    asked = messages[:-1]
    assert template(asked, add_generation_prompt=True) == theirs.apply_chat_template(
        asked, chat_template=template.source, tokenize=False, add_generation_prompt=True
    )


@pytest.mark.parametrize("shape", UNMARKED)
def test_without_marks_an_answer_is_what_follows_its_prompt_as_in_trl(
    shape, ours, theirs, tmp_path
):
    given, messages = UNMARKED[shape]
    ids, mask, template = prepared(messages, given, ours, tmp_path)
    kept = dict(chat_template=given, tokenize=False)
    expected_ids, expected = [], []

    def common(left, right):
        return len(os.path.commonprefix([left, right]))

    for i, message in enumerate(messages):  # TRL's prompt and completion, for each answer
        if message["role"] == "assistant":
            asked = theirs.apply_chat_template(messages[:i], add_generation_prompt=True, **kept)
            said = theirs.apply_chat_template(messages[: i + 1], **kept)
            prompt = theirs(asked, add_special_tokens=False)["input_ids"]
            whole = theirs(said, add_special_tokens=False)["input_ids"]
            prompt = whole[: common(prompt, whole)]
            expected += [0] * (len(prompt) - len(expected)) + [1] * (len(whole) - len(prompt))
            expected_ids = whole
    if expected_ids[0] == ours.end_of_text_id:  # its bos_token is the mark in front
        expected_ids, expected = expected_ids[1:], expected[1:]
    assert (ids, mask) == (expected_ids, expected) and template.source == given
    assert prepared(messages, given, ours, tmp_path, loss_on="all")[1] == [1] * len(ids)


def test_ids_and_mask_are_those_of_trl(ours, tmp_path):
    """tests/trl_reference.py, which has run TRL's SFTTrainer."""
    written = json.loads((Path(__file__).parent / "trl_reference.json").read_text("utf-8"))
    for (name, prompt, answer), made in zip(STRINGS, written["strings"], strict=True):
        # What TRL was given is what the template made: as it is, it has to give the same.
        found = prepared((prompt, answer), "none", ours, tmp_path)[:2]
        assert found == by_trl(made), name
        if name != "none":
            row = ROWS[prompt]
            assert prepared(row, name, ours, tmp_path)[:2] == by_trl(made), name
    for (name, asked), made in zip(CONVERSATIONS, written["conversations"], strict=True):
        untrained = [{**m, "weight": 0} for m in asked]
        for messages, expected in ((untrained + SAID, "last"), (asked + SAID, "every")):
            ids, mask = by_trl(made[expected])
            if expected == "last" and name in ("plain", "alpaca"):
                continue  # they mark the cue as the answer's; TRL takes it for the prompt's
            if expected == "last" and name == "chatml":  # its completion's last line end too
                mask[-1] = 0
            assert prepared(messages, name, ours, tmp_path)[:2] == (ids, mask), (name, expected)


def by_trl(made):
    """(ids, mask) of what TRL made."""
    return made["input_ids"], [int(label != -100) for label in made["labels"]]


ROWS = {
    "Name a colour.": ("Name a colour.", "Red, like a lamp."),
    "Who is naïve 🙂?": ("Who is naïve 🙂?", "I am,\n\n  I think."),
    "User: Name a colour.\n\nAssistant:": ("Name a colour.", "Red."),
    STRINGS[3][1]: ("Say hello.", "Hello"),
    "### Name a colour.\n": ("Name a colour.", "Red."),
    "Q: Who? A:": ("Who?", "I am."),
}


def test_alpaca_is_the_public_text():
    """Stanford Alpaca's train.py, PROMPT_DICT."""
    with_input = (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
    )
    without = (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:"
    )
    rows = [
        {"instruction": "Add.", "input": "2, 2", "output": "4"},
        {"instruction": "Say hello.", "input": "", "output": "Hello"},
    ]
    (first, second), _ = texts(rows, "alpaca")
    assert first == with_input.format(**rows[0]) + "»\n4«"
    assert second == without.format(**rows[1]) + "»\nHello«"


def texts(rows, template=None, own=None, tokenizer=None, **settings):
    """(the documents with » « around what is learnt, all sentences)."""
    notes, found = ReadingNotes(), []
    tokenizer = tokenizer or Tokenizer.gpt2(0)
    options = ReadingOptions(templates=templates.chosen(template, tokenizer, own, **settings))
    for passage in reading.passages(rows, notes, options):
        text = passage.text
        for start, end in reversed(passage.answers or ()):
            text = f"{text[:start]}»{text[start:end]}«{text[end:]}"
        found.append(text)
    return found, "\n".join(notes.sentences())


def test_forms_take_the_rows_own_fields_and_say_which_are_missing():
    rows = [{"Question": "Who?", "answer": "I", "topic": "me"}, {"question": "Why?", "answer": 4}]
    found, said = texts(rows, "[{topic}] {question}\n{answer}")
    assert found == ["[me] Who?\n»I«"]
    assert "the template has the field 'topic', which it doesn't have" in said
    assert "its fields are 'question', 'answer': item 2" in said
    assert texts(rows[1:], "{{x}} {prompt}: {answer}.")[0] == ["{x} Why?:» 4.«"]
    form = Form.of("{topic}|{question} {answer}", templates.PROMPTS)
    assert (form.asked, form.answer) == ("question", "answer")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("alpacca", "give plain, chat, chatml, alpaca, tokenizer .*, none"),
        ("{answer}", "needs a field for what is asked and, as the last, one for the answer"),
        ("{question.__class__}{answer}", "only names of fields are filled in"),
        ("{question:>9}{answer}", "only names of fields are filled in"),
        ("{question}{", "isn't a format string"),
        ("{% if %}{{ messages }}", "template can't be used: line 1"),
        ("tokenizer", "the model has no chat template of its own"),
        (7, "template is a int"),
    ],
)
def test_templates_that_are_none_are_refused(template, message):
    with pytest.raises((ValueError, TypeError), match=message):
        templates.chosen(template, Tokenizer.gpt2(0))


def test_loss_on_is_answers_or_all():
    with pytest.raises(ValueError, match="loss_on is 'prompts': give 'answers' or 'all'"):
        templates.chosen("plain", Tokenizer.gpt2(0), loss_on="prompts")
    assert texts([PAIR], "chat", loss_on="all")[0] == ["»User: Who?\n\nAssistant: I am.«"]


def test_rows_that_are_joined_already_stay_as_they_are_and_give_the_form():
    rows = [{"prompt": f"Question: {i}?\nAnswer:", "completion": f" No {i}"} for i in "abc"]
    found, said = texts(rows)
    assert found[0] == "Question: a?\nAnswer:» No a«" and "3 x a prompt and its answer with" in said
    asked = templates.chosen(None, Tokenizer.gpt2(0))
    list(reading.passages(rows, ReadingNotes(), ReadingOptions(templates=asked)))
    made = templates.template_of(asked.facts(), asked, Tokenizer.gpt2(0))
    assert made([{"role": "user", "content": "x?"}]) == "Question: x?\nAnswer:"
    assert texts(rows, "plain")[0][0] == "Question: a?\nAnswer:»\nAnswer: No a«"
    assert texts([("a", "b")], "none")[0] == ["a»b«"]


def test_turns_of_weight_0_and_empty_ones_are_not_learnt_and_faults_are_told_by_row():
    turns = [PAIR[0], {**PAIR[1], "weight": 0}, PAIR[0], {**PAIR[1], "content": ""}, *PAIR]
    calls = [PAIR[0], {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}]
    marks = [PAIR[0], {"role": "assistant", "content": "a<|im_end|>b"}]
    pictures = [{"role": "user", "content": [{"type": "image_url"}]}, PAIR[1]]
    rows = [{"messages": each} for each in (turns, calls, marks, pictures)]
    found, said = texts(rows, "chatml")
    assert found[0].count("»") == 1 and found[0].endswith("»I am.<|im_end|>«\n")
    assert found[1].endswith("»a<|im_end|>b<|im_end|>«\n") and len(found) == 2
    assert "it calls tools (tool_calls)" in said and "item 2" in said
    assert "words hold '<|im_end|>', which the template itself" in said and "item 3" in said
    assert "holds a part of type 'image_url'" in said and "item 4" in said


def test_the_models_own_template_is_the_default_and_refuses_rows_by_number():
    own = chat_templates.ChatTemplate(_STRICT, {"eos_token": "<|endoftext|>"}, "tokenizer")
    found, said = texts([PAIR, [PAIR[0], PAIR[0], PAIR[1]]], own=own)
    assert found == ["[INST] Who? [/INST]»I am.«"]
    assert "its template (tokenizer) refuses it: Conversation roles must alternate" in said
    assert "item 2" in said
    assert texts([("Who?", "I am.")], own=own)[0] == found


def test_a_template_that_changes_earlier_turns_is_refused_with_the_way_out():
    last_only = "{% for m in messages %}{{ m.content if loop.last else '-' }}{% endfor %}"
    assert texts([TURNS[1:]], last_only)[0] == []
    said = texts([TURNS[1:]], last_only)[1]
    assert "gives a turn another text when others follow" in said and "loss_on='all'" in said


def test_a_templates_own_words_are_no_leak(ours, tmp_path):
    rows = [{"instruction": f"Add {i} to {i * 7}.", "output": f"It is {i * 8}."} for i in range(80)]
    found = corpus.prepare(rows, ours, context=64, held_out=0.2, template="alpaca", cache=tmp_path)
    assert len(found.held_out) and found.split.moved < 8
    said = " ".join(found.doctor().sentences)
    assert "80 rows of prompts and answers by the template alpaca" in said
    weights = found.train.batch(np.arange(1)).weights
    assert 0 < weights.sum() < weights.size / 2


def test_a_checkpoints_template_is_found_as_transformers_finds_it(theirs, tmp_path):
    listed = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": _LLAMA}]
    for config, jinja, expected in (
        ({"chat_template": _STRICT}, None, _STRICT), ({"chat_template": listed}, None, _LLAMA),
        ({"chat_template": _STRICT}, _MARKED, _MARKED), ({}, None, None), ([], None, None),
    ):  # fmt: skip
        files = {"tokenizer_config.json": json.dumps(config).encode()}
        files |= {} if jinja is None else {"chat_template.jinja": jinja.encode()}
        found = chat_templates.of_files(files, {})
        assert (found and found.source) == expected
    template = chat_templates.named("alpaca", {})
    chat_templates.write(template, tmp_path)
    again = chat_templates.of_files(
        {"chat_template.jinja": (tmp_path / "chat_template.jinja").read_bytes()}, {}
    )
    assert again == template


def test_stops_are_what_ends_an_answer():
    special = {"eos_token": "<|endoftext|>"}
    stops = {name: chat_templates.named(name, special).stops for name in chat_templates.NAMED}
    assert stops == {
        "plain": [], "chat": [], "alpaca": [],
        "chatml": ["<|im_end|>", "<|im_end|>\n<|im_start|>user"],
    }  # fmt: skip
    bare = {name: chat_templates.named(name, {}).stops for name in ("chat", "alpaca")}
    assert bare == {"chat": ["\n\nUser:"], "alpaca": ["\n\n### Instruction:"]}
