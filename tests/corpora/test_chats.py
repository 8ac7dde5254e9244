"""Exported chats as conversations: who speaks, when it was, what of it isn't said by anybody."""

import json

import pytest

from gptj_lab.corpora import chat_texts, reading
from gptj_lab.corpora.options import ReadingOptions
from gptj_lab.corpora.passages import ReadingNotes


def read(path, **options):
    notes, found = ReadingNotes(), []
    for passage in reading.passages(path, notes, ReadingOptions(**options)):
        if passage.begins:
            found.append("")
        found[-1] += passage.text
    return found, "\n".join(notes.sentences())


HEADS = [
    "05/03/2024, 20:14 - ", "5/3/24, 8:14 PM - ", "5/3/24, 8:14\u202fp.m. - ", "05.03.24, 20:14 - ",
    "2024-03-05, 20:14 - ", "05-03-2024 20:14 - ", "[05/03/2024, 20:14:33] ",
    "[5/3/24, 8:14:33 PM] ",
    "[05.03.24, 20:14:33] ", "[2024-03-05, 8:14:33\u202fPM] ", "\u200e[5/3/24, 20:14:33] ",
]  # fmt: skip


@pytest.mark.parametrize("head", HEADS)
def test_whatsapp_in_every_form_of_its_dates(tmp_path, head):
    path = tmp_path / "chat.txt"
    path.write_text(f"{head}Anna: Hi\nand more\n{head}Ben: Yo: 20:15\n{head}Anna: ok\n", "utf-8")
    assert read(path, me="Ben")[0] == ["User: Hi\nand more\n\nAssistant: Yo: 20:15"]


def test_the_order_of_day_and_month_is_found():
    def seconds(*dates):
        chat = chat_texts.whatsapp(f"{date}, 10:00 - Anna: Hi" for date in dates)
        return [m.seconds for m in chat.messages]

    first, second = seconds("3/12/24", "3/13/24")  # the American order
    assert second - first == 86_400
    first, second = seconds("12/03/24", "13/03/24")
    assert second - first == 86_400
    first, second = seconds("2/1/24", "1/2/24")  # both may be; time doesn't go back
    assert second > first


def test_a_name_is_looked_for_and_those_that_are_there_are_told(tmp_path):
    path = tmp_path / "chat.txt"
    words = [("Anna", "Hi"), ("Ben", "Yo"), ("Cleo", "Hey"), ("Cleo", "you"), ("Ben", "Bye")]
    path.write_text(
        "".join(f"05/03/2024, 20:1{i} - {who}: {w}\n" for i, (who, w) in enumerate(words))
    )
    found, said = read(path)
    assert found == ["Anna: Hi\nBen: Yo\nCleo: Hey\nCleo: you\nBen: Bye"]
    assert "--me NAME" in said and "Ben (2), Cleo (2), Anna (1)" in said
    assert read(path, me="ben")[0] == [  # of several others, each is named
        "User: Anna: Hi\n\nAssistant: Yo<|endoftext|>\n\nUser: Cleo: Hey\nyou\n\nAssistant: Bye"
    ]
    found, said = read(path, me="Zed")
    assert found == [] and "without 'Zed', left out" in said and "Anna (1)" in said


@pytest.mark.parametrize(
    "text",
    [
        "[12/03/2024, 10:00:00] INFO starting up\n[12/03/2024, 10:00:01] WARN thing\n",
        "12/03/2024 - Today was fine.\nThen more.\n",
        "Anna: Hi\nBen: Yo\n",
        "A novel. At 05/03/2024, 20:14 - Anna: said nothing.\n05/03/2024, 20:15 - Ben: Hi\n",
    ],
)
def test_other_texts_are_no_chats(tmp_path, text):
    path = tmp_path / "chat.txt"
    path.write_text(text)
    assert read(path) == ([text], "")


def test_long_pauses_cut_conversations_and_media_and_the_system_are_left_out(tmp_path):
    path = tmp_path / "chat.txt"
    lines = [
        "05/03/2024, 20:00 - Anna created group \u201cSea\u201d", "05/03/2024, 20:14 - Anna: Hi",
        "05/03/2024, 20:15 - Ben: <Media omitted>",
        "05/03/2024, 20:15 - Ben: IMG-1.jpg (file attached)",
        "05/03/2024, 20:16 - Ben: IMG-2.jpg (file attached)\nmy boat",
        "05/03/2024, 20:17 - Anna: null",
        "05/03/2024, 20:18 - Ben: edited \u200e<This message was edited>",
        "06/03/2024, 02:17 - Ben: still", "06/03/2024, 09:00 - Anna: Morning",
        "06/03/2024, 09:01 - Ben: This message was deleted", "06/03/2024, 09:02 - Ben: Yes",
    ]  # fmt: skip
    path.write_text("\n".join(lines) + "\n", "utf-8")
    found, said = read(path, me="Ben")
    assert found == [
        "User: Hi\n\nAssistant: my boat\nedited\nstill", "User: Morning\n\nAssistant: Yes",
    ]  # fmt: skip
    assert "without its lines of the system and media: chat.txt (5)" in said


def test_all_chats_of_telegrams_whole_export(tmp_path):
    def message(who, words, number):
        return {
            "type": "message",
            "from": who,
            "text": words,
            "date": f"2024-03-05T20:1{number}:00",
        }

    chats = [
        {"name": name, "type": "personal_chat", "id": 1, "messages": [
            message(name, "Hi", 1), message("Me", [{"type": "link", "text": "a.b"}, " yes"], 2),
            {"type": "service", "action": "phone_call", "date": "2024-03-05T20:13:00"}]}
        for name in ("Anna", "Ben")
    ]  # fmt: skip
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"about": "", "chats": {"about": "", "list": chats}}))
    assert read(path, me="Me")[0] == ["User: Hi\n\nAssistant: a.b yes"] * 2


def test_half_a_character_costs_its_conversation_only(tmp_path):
    messages = [
        {"type": "message", "from": who, "text": words, "date": date}
        for who, words, date in (
            ("Anna", "\ud83d", "2024-03-05T20:10:00"), ("Ben", "a", "2024-03-05T20:11:00"),
            ("Anna", "b", "2024-03-09T20:10:00"), ("Ben", "c", "2024-03-09T20:11:00"),
        )
    ]  # fmt: skip
    path = tmp_path / "result.json"
    path.write_text(
        json.dumps({"name": "x", "type": "personal_chat", "id": 1, "messages": messages})
    )
    found, said = read(path, me="Ben")
    assert found == ["User: b\n\nAssistant: c"] and "half a character" in said


@pytest.mark.parametrize(
    "value",
    [
        {"name": "x", "type": "personal_chat", "id": 1, "messages": ["Hi"]},
        {"guild": {}, "channel": [], "messages": [{"type": 0, "content": "a", "author": "b"}]},
        {"chats": {"list": [7]}}, {"guild": {}, "channel": {}, "messages": [None]},
        [{"type": "message", "ts": "now", "user": "U1", "text": "Hi"}],
        [{"mapping": {"1": {"message": "Hi"}}, "current_node": "1"}],
        [{"mapping": {"1": {}}, "current_node": ["1"]}],
    ],
)  # fmt: skip
def test_exports_that_are_not_as_written_are_a_sentence(tmp_path, value):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(value))
    found, said = read(path, me="Ben")
    assert found == [] and ("isn't as its program writes it" in said or "ChatGPT" in said)
