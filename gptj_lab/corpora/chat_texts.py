"""Chats exported as text: WhatsApp's, and DiscordChatExporter's .txt.

Forms, as the programs write them: WhatsApp's "[05/03/2025, 10:14:33] Anna: Hi" of iOS and
"05/03/2025, 10:14 - Anna: Hi" of Android, dates in the phone's own order and separators
(wachattopdf.com/blog/whatsapp-chat-txt-format); DiscordChatExporter's PlainTextMessageWriter.cs.
"""

import datetime
import re
from collections.abc import Iterable

from gptj_lab.corpora.chats import Chat, Message

_DATE = (
    r"(\d{1,4})[./-](\d{1,2})[./-](\d{1,4})\.?,?\s+(?:at\s|um\s)?"
    r"(\d{1,2})[:.](\d{2})(?:[:.](\d{2}))?(?:\s*([AaPp])\.?\s?[Mm]\.?)?"
)
_WHATSAPP = re.compile(
    rf"[\u200e\u200f\ufeff]*(?:\[{_DATE}\]|{_DATE}\s[-\u2013\u2014])\s(.*)", re.S
)
_DISCORD = re.compile(rf"\[(?:{_DATE}|[^\[\]]*\d:\d\d[^\[\]]*)\] (\S.{{0,80}})")
_NAME = re.compile(r"[\u200e\u202a\u202c~\s]*([^:\n]{1,60}?)[\u202c\s]*: ?(.*)", re.S)
_EDITED = re.compile(r"\s*\u200e?<[^<>]*\bedited>\s*$")
_MEDIA = re.compile(r"(?:\u200e.*|<[^<>\n]{1,60}>|null)", re.S)  # of WhatsApp's own
_ATTACHED = re.compile(r"\S+\.\w{2,5} \([^()\n]+\)\s*")  # IMG-1.jpg (file attached)
_DELETED = ("This message was deleted", "You deleted this message", "Missed voice call",
            "Missed video call", "Waiting for this message")  # fmt: skip
_SECTIONS = ("{Attachments}", "{Embed}", "{Stickers}", "{Reactions}")
_RULE = "=" * 62


def form_of(start: str) -> str | None:
    """The program whose export a text is that begins so, or None of another text.

    >>> form_of("05/03/2025, 10:14 - Anna: Hi\\n05/03/2025, 10:15 - Ben: Yo\\n")
    'WhatsApp'
    """
    if start.startswith(f"{_RULE}\nGuild: "):
        return "Discord"
    first, _, rest = start.lstrip("\ufeff\n\r ").partition("\n")
    if not _WHATSAPP.fullmatch(first):
        return None
    heads = [match for line in (first, *rest.split("\n")) if (match := _WHATSAPP.fullmatch(line))]
    named = [match for match in heads if _NAME.fullmatch(match[match.re.groups])]
    if len(named) < min(2, 1 + rest.count("\n")) or len(named) < len(heads) / 4:
        return None
    return "WhatsApp"


def whatsapp(lines: Iterable[str]) -> Chat:
    """The chat of WhatsApp's .txt; lines of the system and media without words are counted."""
    stamps: list[tuple[str | None, ...]] = []
    texts: list[str] = []
    for line in lines:
        if match := _WHATSAPP.fullmatch(line):
            groups = match.groups()
            stamps.append(groups[:7] if groups[0] else groups[7:14])
            texts.append(groups[14])
        elif texts:
            texts[-1] += "\n" + line
    messages, left_out = [], 0
    for seconds, text in zip(_seconds(stamps), texts, strict=True):
        named = _NAME.fullmatch(text)
        words = "" if named is None else _said(named[2])
        if named is None or not words:
            left_out += 1
            continue
        messages.append(Message(named[1], words, seconds))
    return Chat("WhatsApp", messages, left_out)


def _said(words: str) -> str:
    """What somebody wrote, without WhatsApp's own remarks."""
    words = _EDITED.sub("", words)
    words = _ATTACHED.sub("", words, count=1) if _ATTACHED.match(words) else words
    if _MEDIA.fullmatch(words.strip()) or words.startswith(_DELETED):
        return ""
    return words.replace("\u200e", "").strip()


def discord(lines: Iterable[str]) -> Chat:
    """The chat of DiscordChatExporter's .txt."""
    stamps: list[tuple[str | None, ...]] = []
    found: list[tuple[str, list[str]]] = []
    name, rules = "", 0
    for line in lines:
        if line == _RULE:
            rules += 1
            if rules == 3:  # of the end
                break
        elif rules == 1:
            name = line.removeprefix("Channel: ") if line.startswith("Channel: ") else name
        elif match := _DISCORD.fullmatch(line):
            stamps.append(match.groups()[:7])
            found.append((match.groups()[7].removesuffix(" (pinned)").strip(), []))
        elif found:
            found[-1][1].append(line)
    messages, left_out = [], 0
    for seconds, (who, written) in zip(_seconds(stamps), found, strict=True):
        ends = [i for i, line in enumerate(written) if line in _SECTIONS]
        words = "\n".join(written[: ends[0]] if ends else written).strip()
        if words:
            messages.append(Message(who, words, seconds))
        else:
            left_out += 1
    return Chat("Discord", messages, left_out, name)


def _seconds(stamps: list[tuple[str | None, ...]]) -> list[float | None]:
    """Seconds of dates in one order: the one that all of them allow and that goes on, day first.

    Each is three numbers of a date, hour, minute, second and a or p.
    """
    orders = [[_moment(stamp, day_first) for stamp in stamps] for day_first in (True, False)]

    def faults(moments: list[float | None]) -> tuple[int, int]:
        known = [moment for moment in moments if moment is not None]
        back = sum(later < sooner for sooner, later in zip(known, known[1:], strict=False))
        return len(moments) - len(known), back

    return min(orders, key=faults)


def _moment(stamp: tuple[str | None, ...], day_first: bool) -> float | None:
    """Seconds since 1970 of one date, None where it is none in this order."""
    if stamp[0] is None:
        return None
    one, two, three, hour, minute, second = (int(part or 0) for part in stamp[:6])
    if one > 31:
        year, month, day = one, two, three
    else:
        year = three + 2000 * (three < 100)
        day, month = (one, two) if day_first else (two, one)
    if stamp[6]:
        hour = hour % 12 + 12 * (stamp[6] in "pP")
    try:
        moment = datetime.datetime(year, month, day, hour, minute, second, tzinfo=datetime.UTC)
    except ValueError:
        return None
    return moment.timestamp()
