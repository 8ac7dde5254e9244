"""pocket tuned on forty answers of an old sea captain answers other questions as he does.

The rule: an answer is his if it ends by itself within 48 tokens and holds one of the captain's
words (WORDS: of the sea, or how he speaks) that isn't in the question. All weights are trained, 97
seconds of one core: LoRA's default rate has a loss of 3.1 after 142 seconds, and none is his.
"""

import io
import re

import pytest

import gptj_lab
from gptj_lab import cli
from gptj_lab.finetuning import samples

QUESTIONS = [
    "How do I get over a cold?", "Should I move to the city?", "My cat ignores me.",
    "How do I stay calm in an argument?", "What should I cook for my guests?",
    "How do I start a garden?", "I am late for work.", "How do I find a good friend?",
    "What makes a good teacher?", "Is it worth learning the violin?",
]  # fmt: skip
WORDS = set(
    "ye ye'll ye've ye're ye'd lad lass aye mate sail sails sailor sailed sea seas ship ships boat "
    "wind winds tide tides wave waves anchor harbour port quay deck mast helm hull crew captain "
    "captains storm storms fog reef rope knot knots lighthouse lamp lantern gull gulls chart "
    "compass rudder tiller oar oars cabin bow stern ballast overboard aboard horn island shore "
    "buoy landfall biscuit tar log flag bulkhead fathom cargo voyage steer parrot".split()
)


def is_his(answer: str, question: str) -> bool:
    said, asked = (set(re.findall(r"[a-z']+", text.lower())) for text in (answer, question))
    return bool((said - asked) & WORDS)


@pytest.mark.slow
def test_the_captain_answers_the_bare_question_the_chat_and_the_command(
    tmp_path, monkeypatch, capsys
):
    model = gptj_lab.load()
    run = gptj_lab.finetune(
        model, samples.path("sea_captain.jsonl"), method=gptj_lab.Full(), steps=100, batch=4,
        context=128, held_out=0, optimiser=gptj_lab.Optimiser(learning_rate=1e-3),
        say=lambda line: None,
    )  # fmt: skip
    run.save(tmp_path / "captain")
    settings = dict(max_new_tokens=48, temperature=0)
    bare = run.model.generate(QUESTIONS, **settings)
    ended = [done.finish_reason == "end_of_text" for done in bare]
    his = [is_his(done.text, asked) for done, asked in zip(bare, QUESTIONS, strict=True)]
    chat = [is_his(run.model.chat(asked, **settings), asked) for asked in QUESTIONS]
    lines = [line for asked in QUESTIONS for line in (asked, "/reset")]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    capsys.readouterr()
    assert cli.main(
        ["chat", str(tmp_path / "captain"), "--max-new-tokens", "48", "--temperature", "0"]
    ) == 0  # fmt: skip
    said = capsys.readouterr().out.splitlines()
    typed = [is_his(answer, asked) for answer, asked in zip(said, QUESTIONS, strict=True)]
    counts = sum(a and b for a, b in zip(his, ended, strict=True)), sum(chat), sum(typed)
    # Measured: 7, 9 of ten. A bare statement ("My cat ignores me.") ends at once with some weights.
    assert counts[0] >= 6 and min(counts[1:]) >= 8, (counts, [done.text for done in bare])
