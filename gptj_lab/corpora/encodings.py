"""What a file's bytes are text in: a mark, UTF-8, or what charset-normalizer finds."""

import codecs
import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from gptj_lab.corpora.passages import ReadingNotes

_MARKS = {  # byte-order marks; UTF-32's begins with UTF-16's
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_ODD = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of bytes that are not UTF-8
_DAMAGE = re.compile("[\0\udc80-\udcff]")
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r\f\x08\x1b"))  # hardly ever in a text
_SAMPLE = 1 << 20  # bytes that the detector looks at
_TELLING = 32  # bytes beyond ASCII from which on it can tell languages
_SURE = 0.2  # coherence (how well letters follow one another as in a language) that is believed
_ASIAN = {"Japanese", "Chinese", "Korean"}  # for these it gives no coherence in short texts


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How a file is decoded.

    Attributes:
        codec, errors: as codecs takes them.
        damage: what is left out where it is damaged: whole lines, or characters.
    """

    codec: str
    errors: str = "strict"
    damage: Literal["none", "lines", "characters"] = "none"


def marked(block: bytes) -> str | None:
    """The codec that a file's first bytes name, if they do: its mark, or UTF-16's zeros."""
    for mark, codec in _MARKS.items():
        if block.startswith(mark):
            return codec
    pairs = min(len(block) // 2, 2048)
    if pairs >= 8:  # English in UTF-16 has a zero in every pair, on one side
        even, odd = block[: 2 * pairs : 2].count(0), block[1 : 2 * pairs : 2].count(0)
        if even > 0.7 * pairs and not odd:
            return "utf-16-be"
        if odd > 0.7 * pairs and not even:
            return "utf-16-le"
    return None


def found_in(
    read: Callable[[], Iterable[bytes]], name: str, notes: ReadingNotes, given: str | None = None
) -> Encoding | None:
    """How a file is decoded; None for a binary one. What isn't UTF-8 is noted.

    `read` gives its blocks, as often as it is called.
    """
    first = next(iter(read()), b"")
    if given is not None:
        mark = marked(first)
        return Encoding(mark if mark == "utf-8-sig" and given.lower() == "utf-8" else given,
                        "replace")  # fmt: skip
    if mark := marked(first):
        if mark != "utf-8-sig":
            notes.remark(f"a file in {mark.upper()}, read as that", name)
        return Encoding(mark, "replace")
    if len(first) - len(first.translate(None, _CONTROLS)) > 0.05 * len(first):
        notes.skip("a file with NUL bytes or other control characters: binary, not read", name)
        return None
    good, bad, nulls, first_bad = _counted(read())
    if not bad and not nulls:
        return Encoding("utf-8")
    if bad and good <= bad and not nulls:
        return Encoding(detected(read(), name, bad, notes), "replace")
    where = f"{name} ({bad + nulls:,} bytes, the first at {first_bad:,})"
    if _share_of_damaged_lines(read()) <= 0.1:
        return Encoding("utf-8", "surrogateescape", "lines")
    what = "a file with bytes that are not UTF-8, read with U+FFFD for them"
    notes.skip("a file with NULs, read without them" if not bad else what, where)
    return Encoding("utf-8", "surrogateescape", "characters")


def _counted(blocks: Iterable[bytes]) -> tuple[int, int, int, int]:
    """(good characters beyond ASCII, bad bytes, NULs, where the first fault is)."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    good = bad = nulls = size = 0
    first = -1
    for block in blocks:
        if zeros := block.count(0):
            nulls += zeros
            first = size + block.index(0) if first < 0 else first
        if block.isascii() and not decoder.getstate()[0]:
            size += len(block)
            continue
        decoded = decoder.decode(block)
        odd = [match.start() for match in _ODD.finditer(decoded)]
        if odd and first < 0:
            first = size + len(decoded[: odd[0]].encode())
        wide = len(decoded) - len(decoded.encode("ascii", "ignore"))
        good, bad = good + wide - len(odd), bad + len(odd)
        size += len(block)
    rest = len(decoder.decode(b"", final=True))
    return good, bad + rest, nulls, size if first < 0 else first


def _share_of_damaged_lines(blocks: Iterable[bytes]) -> float:
    """Of a file's characters, the share that lies in lines with damage."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    damaged = size = held = 0
    hurt = False
    for block in blocks:
        for number, part in enumerate(decoder.decode(block).split("\n")):
            if number:  # a line ended
                damaged, held, hurt = damaged + held * hurt, 0, False
            held, size = held + len(part), size + len(part)
            hurt = hurt or is_damaged(part)
    hurt = hurt or bool(decoder.decode(b"", final=True))
    return (damaged + held * hurt) / max(1, size)


def is_damaged(line: str) -> bool:
    """Whether a line that was decoded with surrogateescape holds damage."""
    return _DAMAGE.search(line) is not None


def mended(text: str) -> str:
    """Such a text with U+FFFD for bad bytes and without NULs."""
    return _ODD.sub("\ufffd", text.replace("\0", ""))


def detected(blocks: Iterable[bytes], name: str, wide: int, notes: ReadingNotes) -> str:
    """The codec of a file that isn't UTF-8, noted with how sure that is.

    charset-normalizer's, where it is installed and finds a language; else Windows-1252, the most
    usual one. `wide`: bytes beyond ASCII.
    """
    sample = b"".join(_until(blocks, _SAMPLE))
    if len(sample) >= _SAMPLE:  # not in the middle of a character
        sample = sample[: sample.rfind(b"\n") + 1] or sample
    fix = "encoding=... names another"
    fault = f"a file that is not UTF-8, read as Windows-1252 (not sure; {fix})"
    codec = "cp1252"
    if wide >= _TELLING and (best := _best(sample)) is not None:
        found, sure, language = best
        if found == "cp1252":
            fault = f"a file that is not UTF-8, read as Windows-1252 (sure by {sure:.0%}; {fix})"
        else:
            codec = found
            fault = (
                f"a file that is not UTF-8, read as {found}, {language} "
                f"(charset-normalizer, sure by {sure:.0%}; {fix})"
            )
    notes.skip(fault, f"{name} ({wide:,} bytes)")
    return codec


def _best(sample: bytes) -> tuple[str, float, str] | None:
    """(codec, how sure from 0 to 1, language) of charset-normalizer, if it found a language."""
    try:
        import charset_normalizer
    except ModuleNotFoundError:
        return None
    for match in charset_normalizer.from_bytes(sample):
        text, sure = str(match), match.coherence * (1 - match.chaos)
        if match.language in _ASIAN and match.coherence < _SURE:
            if not _is_script_of(match.language, text):
                continue
            sure = 0.5
        elif match.coherence < _SURE:
            continue
        try:  # several codecs may give the same text: the usual one is named
            usual = sample.decode("cp1252") == text
        except UnicodeDecodeError:
            usual = False
        return ("cp1252" if usual else match.encoding), sure, match.language
    return None


def _is_script_of(language: str, text: str) -> bool:
    """Whether the letters of a text are those that the language often uses."""
    letters = [character for character in text if ord(character) > 0x2000]
    if language == "Japanese":  # a tenth at least is kana
        return sum("\u3040" <= each <= "\u30ff" for each in letters) > 0.1 * len(letters)
    # The first standards hold the frequent ones; later ones all, which any bytes may become.
    common = {"Korean": ("euc_kr",), "Chinese": ("gb2312", "big5")}[language]
    frequent = [  # euc_kr writes rare syllables in eight bytes
        sum(len(each.encode(codec, "ignore")) == 2 for each in letters) for codec in common
    ]
    return max(frequent) > 0.95 * len(letters)


def _until(blocks: Iterable[bytes], most: int) -> Iterator[bytes]:
    size = 0
    for block in blocks:
        yield block
        size += len(block)
        if size >= most:
            return
