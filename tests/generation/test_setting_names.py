"""What `generate` is given by mistake is answered in one sentence that says what to write."""

import inspect

import pytest

from gptj_lab.generation import sampling, setting_names


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("do_sample", "temperature=0"), ("max_length", "max_new_tokens"),
        ("eos_token_id", "end_tokens"),
        ("num_return_sequences", "samples"), ("num_beams", "nothing like it"),
        ("penalty_alpha", "nothing like it"), ("pad_token_id", "isn't needed"),
        ("temprature", "do you mean temperature"), ("xyz", "leave it out"),
    ],
)  # fmt: skip
def test_an_unknown_setting_is_named_with_what_takes_its_place(tiny_model, name, advice):
    for call in (tiny_model.generate, tiny_model.stream):
        with pytest.raises(TypeError, match=f"no setting '{name}': .*{advice}") as caught:
            call("the cat", **{name: 2})
        known = list(inspect.signature(sampling.make_settings).parameters)[1:]
        for each in (*known, "max_new_tokens", "stop", "end_tokens", "seed", "samples", "keep_end"):
            assert f"{each}," in str(caught.value) or f"{each})" in str(caught.value)
        assert "vocab_size" not in str(caught.value)


def test_what_generate_knows_has_no_other_name():
    known = list(inspect.signature(sampling.make_settings).parameters)
    others = {*setting_names._ELSEWHERE, *setting_names._ABSENT, *setting_names._NEEDLESS}
    assert not others & set(known)


def test_no_stop(tiny_model):
    given = dict(max_new_tokens=4, temperature=0)
    assert tiny_model.generate("the", stop=None, **given) == tiny_model.generate("the", **given)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [(b"x", "is bytes: give a str"), (None, "is None: give a str"), (3, "of the type int: give"),
     (["a", b"x"], "is bytes"), ([None], "is None"), ([3], "of the type int")],
)  # fmt: skip
def test_a_prompt_that_is_no_text(tiny_model, prompt, said):
    with pytest.raises(TypeError, match=f"the prompt {said}" if "is " in said else said):
        tiny_model.generate(prompt)
