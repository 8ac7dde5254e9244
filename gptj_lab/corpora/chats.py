"""Messages of exported chats as conversations: cut at pauses, one turn a person at a time."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator

from gptj_lab.corpora.examples import Example, Turn
from gptj_lab.corpora.passages import ReadingNotes

PAUSE = 6 * 3600.0  # seconds without a message, after which another conversation begins


@dataclasses.dataclass(frozen=True)
class Message:
    """What somebody said.

    Attributes:
        seconds: when, from any beginning; None if it isn't known.
    """

    who: str
    words: str
    seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Chat:
    """The messages of one chat in order.

    Attributes:
        form: the program that exported it.
        left_out: how many lines of the system and media without words aren't among them.
    """

    form: str
    messages: list[Message]
    left_out: int = 0
    name: str = ""


def conversations(
    chat: Chat, me: str | None, place: str, notes: ReadingNotes
) -> Iterator[tuple[str, Example]]:
    """(place, example) of each conversation of a chat.

    With `me` it is one of turns, the assistant's those of `me`; of several others, each one's
    words begin with the name. Without, it is a text with the names before the words.
    """
    place = f"{place} {chat.name}".strip()
    if not chat.messages:
        notes.skip(f"a chat of {chat.form} without messages, left out", place)
        return
    counts = collections.Counter(message.who for message in chat.messages)
    shown = ", ".join(f"{who} ({count:,})" for who, count in counts.most_common(12))
    if chat.left_out:
        what = f"a chat of {chat.form}, without its lines of the system and media"
        notes.remark(what, f"{place} ({chat.left_out:,})")
    found = _found(me, counts)
    if me is None:
        notes.remark(
            f"a chat of {chat.form}, trained on as a text of all its people; me=NAME "
            "(--me NAME) makes one of them the assistant",
            f"{place}: {shown}",
        )
    elif found is None:
        what = f"a chat of {chat.form} without {me!r}, left out: me is none of its people"
        notes.skip(what, f"{place}: {shown}")
        return
    for number, messages in enumerate(_cut(chat.messages), 1):
        inside = f"{place} conversation {number:,}"
        if found is None:
            yield inside, Example(text="\n".join(f"{m.who}: {m.words}" for m in messages))
            continue
        turns = _turns(messages, found, several=len(counts) > 2)
        if any(turn.role == "assistant" for turn in turns):
            yield inside, Example(turns=tuple(turns))
        else:
            notes.remark(f"a conversation without a word of {found}, left out", inside)


def _found(me: str | None, names: Iterable[str]) -> str | None:
    """The person that `me` means, if it is clear: the same name, else the same but for case."""
    if me is None:
        return None
    if me in set(names):
        return me
    alike = [name for name in names if name.casefold() == me.strip().casefold()]
    return alike[0] if len(alike) == 1 else None


def _cut(messages: list[Message]) -> Iterator[list[Message]]:
    """The messages in runs without a long pause."""
    together: list[Message] = []
    for message in messages:
        last = together[-1].seconds if together else None
        if last is not None and message.seconds is not None and message.seconds - last > PAUSE:
            yield together
            together = []
        together.append(message)
    if together:
        yield together


def _turns(messages: list[Message], me: str, *, several: bool) -> list[Turn]:
    """Turns, those of one side that follow one another joined by line ends."""
    turns: list[Turn] = []
    last = None
    for message in messages:
        role = "assistant" if message.who == me else "user"
        words = message.words
        if several and role == "user" and message.who != last:
            words = f"{message.who}: {words}"
        if turns and turns[-1].role == role:
            turns[-1] = Turn(role, f"{turns[-1].words}\n{words}")
        else:
            turns.append(Turn(role, words))
        last = message.who
    return turns
