"""Rows of any usual shape: which field is what, named or found, and what is told of the rest."""

import pytest

from gptj_lab.corpora import reading
from gptj_lab.corpora.options import ReadingOptions
from gptj_lab.corpora.passages import ReadingNotes


def read(rows, strict=False, **options):
    """(documents as (text, trained) stretches, all sentences)."""
    notes, found = ReadingNotes(strict=strict), []
    for passage in reading.passages(rows, notes, ReadingOptions(**options)):
        if passage.begins:
            found.append([])
        found[-1] += stretches(passage)
    return found, "\n".join(notes.sentences())


def stretches(passage):
    """[(text, whether it is trained on)] of a passage."""
    if passage.answers is None:
        return [(passage.text, passage.trained)]
    found, place = [], 0
    for start, end in passage.answers:
        found += [(passage.text[place:start], False), (passage.text[start:end], True)]
        place = end
    return [each for each in [*found, (passage.text[place:], False)] if each[0]]


def pair(asked, answered):
    if not asked.endswith(" ") and not answered.startswith(" "):  # else it stays as it is
        answered = f"\nAnswer: {answered}"
    return [[(asked, False), (answered, True)]]


@pytest.mark.parametrize(
    "names",
    [
        ("Question", "Answer"), ("Q", "A"), ("input", "output"), ("INSTRUCTION", "Response"),
        ("prompt", "completion"), ("human", "assistant"), ("user", "bot"), ("query", "Reply"),
        (" question", "answer "), ("problem", "solution"), ("front", "back"),
    ],
)  # fmt: skip
def test_names_are_found_whatever_their_case(names):
    assert read([dict(zip(names, ("Who?", "I."), strict=True))], strict=True)[0] == (
        pair("Who?", "I.")
    )


@pytest.mark.parametrize(
    ("row", "asked", "answered"),
    [
        ({"instruction": "Say.", "context": "A sea.", "response": "ok"}, "Say.\n\nA sea.", "ok"),
        ({"instruction": "Say.", "context": "", "response": "ok"}, "Say.", "ok"),
        (
            {"system_prompt": "Be kind.", "question": "Who?", "response": "I."},
            "Be kind.\n\nWho?", "I.",
        ),
        (
            {"question": "Who?", "context": "I am.", "answers": {"text": ["I"], "start": [0]}},
            "Who?\n\nI am.", "I",
        ),
        ({"question": "2+2", "answer": 4}, "2+2", "4"),
        ({"question": "zero", "answer": 0}, "zero", "0"),
        ({"question": "half", "answers": [0.5, 1]}, "half", "0.5"),
        ({"prompt": "Once ", "completion": "more"}, "Once ", "more"),
        ({"prompt": "Once", "completion": " more"}, "Once", " more"),
    ],
)  # fmt: skip
def test_context_system_and_answers_of_all_kinds_go_where_they_belong(row, asked, answered):
    assert read([row], strict=True)[0] == pair(asked, answered)


def test_named_fields_are_taken_whatever_else_is_there():
    row = {"Frage": "Wer?", "Antwort": "Ich.", "prompt": "x", "Rolle": "Hilf.", "Text": "Ein Wal."}
    found, _ = read(
        [row], prompt_field="frage", answer_field="ANTWORT", system_field="Rolle",
        context_field="Text",
    )  # fmt: skip
    assert found == pair("Hilf.\n\nWer?\n\nEin Wal.", "Ich.")
    assert read([{"question": "Who?", "Antwort": "I."}], answer_field="Antwort")[0] == (
        pair("Who?", "I.")
    )
    assert read([row], text_field="text")[0] == [[("Ein Wal.", True)]]


def test_a_named_field_that_no_row_has_is_told_with_those_that_are_there():
    found, said = read([{"a": "x", "b": "y"}] * 3, prompt_field="question", answer_field="b")
    assert (
        found == [] and "3 x a row left out: it has no field 'question': its fields are 'a'" in said
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(text_field="a", prompt_field="b"), "text_field and prompt_field are both given"),
        (dict(encoding="klingon"), "encoding is 'klingon', which Python doesn't know: utf-8"),
        (dict(encoding="hex"), "encoding is 'hex'"),
        (dict(me="  "), "me is empty"),
    ],
)
def test_options_that_cannot_be_are_a_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        ReadingOptions(**options)
    with pytest.raises(TypeError, match="me is 7: a name is needed"):
        ReadingOptions(me=7)  # type: ignore[arg-type]


def test_text_that_is_not_used_is_told_and_strict_refuses_it():
    rows = [{"id": str(i), "text": "a story", "summary": "what the story says"} for i in range(4)]
    found, said = read(rows)
    assert len(found) == 4 and "4 x a row whose field 'summary' holds text that isn't used" in said
    assert "'id'" not in said
    with pytest.raises(ValueError, match="'summary' holds text that isn't used"):
        read(rows, strict=True)
    assert len(read(rows, strict=True, text_field="text")[0]) == 4  # by intention


def test_a_copy_of_prompt_and_answer_in_a_form_is_no_text_that_is_lost():
    row = {"instruction": "Do it.", "output": "Done.", "text": "Below: Do it. ### Done."}
    assert read([row], strict=True)[0] == pair("Do it.", "Done.")
    turns = [{"role": "user", "content": "Who is it?"}, {"role": "assistant", "content": "I."}]
    assert read([{"prompt": "Who is it?", "messages": turns}], strict=True)[0]


def test_an_empty_answer_is_told():
    for answer in ("", [], None, {"text": []}):
        found, said = read([{"question": "Who?", "answers": answer}], answer_field="answers")
        assert found == [] and "its answers" in said


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Yo", "rejected": "No"},
        {
            "prompt": "Hi",
            "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}],
            "rejected": [{"role": "user", "content": "Hi"}],
        },
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Yo", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
    ],
)
def test_preference_pairs_are_told_as_what_they_become(row):
    found, said = read([row], strict=True)
    assert "1 x a preference pair, trained on its chosen answer only" in said
    assert "".join(text for text, trained in found[0] if trained).endswith("Yo")
    assert "No" not in str(found)


def test_conversations_of_other_shapes():
    expected = [[("User: Hi\n\nAssistant:", False), (" Yo", True)]]
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    named = [{"from": "Anna", "text": "Hi"}, {"from": "Ben", "text": "Yo"}]
    parts = [turns[0], {"role": "assistant", "content": [{"type": "text", "text": "Yo"}]}]
    assert read([turns])[0] == read([{"Messages": turns}])[0] == expected
    assert read([{"dialog": ["Hi", "Yo"]}])[0] == read([{"messages": parts}])[0] == expected
    assert read([{"messages": named}], me="Ben")[0] == expected
    assert "a turn of 'Anna'" in read([{"messages": named}])[1]
    picture = [turns[0], {"role": "assistant", "content": [{"type": "image_url"}]}]
    assert "a part of type 'image_url': only texts are read" in read([{"messages": picture}])[1]
    assert read([("Hi", "Yo")])[0] == pair("Hi", "Yo")


def test_turns_of_weight_0_are_not_trained_on():
    messages = [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 1},
    ]  # fmt: skip
    ((asked, answered),) = read([{"messages": messages}])[0]
    assert answered == (" d", True) and "Assistant: b" in asked[0]


def test_a_conversation_of_chatgpt_is_the_branch_that_was_shown():
    def node(parent, role, words):
        message = {"author": {"role": role}, "content": {"parts": [words]}} if role else None
        return {"parent": parent, "message": message}

    mapping = {
        "0": node(None, None, ""), "1": node("0", "user", "Hi"), "2": node("1", "assistant", "No"),
        "3": node("1", "assistant", "Yo"),
    }  # fmt: skip
    found, _ = read([{"title": "t", "mapping": mapping, "current_node": "3"}])
    assert found == [[("User: Hi\n\nAssistant:", False), (" Yo", True)]]
    mapping["1"]["parent"] = "3"  # a ring
    assert "doesn't lead from current_node" in read([{"mapping": mapping, "current_node": "3"}])[1]
