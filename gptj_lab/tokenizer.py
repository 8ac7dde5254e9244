"""Tokenizers: loading, training, streaming; token strings as a person should see them."""

import codecs
import copy
import functools
import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import index
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from gptj_lab import chunks, tokenizer_files

_ASSETS = Path(__file__).parent / "assets" / "gpt2_bpe"
END_OF_TEXT = "<|endoftext|>"
_VISIBLE = {" ": "␣", "\n": "↵", "\t": "⇥", "\x7f": "␡"}


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte, to the byte (Radford et al. 2019)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    stand_ins = {chr(256 + i): byte for i, byte in enumerate(others)}
    return {chr(byte): byte for byte in plain} | stand_ins


_BYTES = _byte_alphabet()  # its order is also that of GPT-2's first 256 ids


class Tokenizer:
    """A byte-level BPE tokenizer, on the `tokenizers` library.

    >>> Tokenizer.gpt2().encode("Hello world")
    [15496, 995]
    """

    def __init__(self, inner: tokenizers.Tokenizer, roles: Mapping[str, str] | None = None):
        """Wraps a byte-level tokenizer, or a BPE without a pre-tokenizer.

        Its padding and truncation are switched off.

        Args:
            roles: the text of each special token by its role: "bos_token", "eos_token", ...

        Raises:
            ValueError: it isn't a byte-level BPE.
        """
        tokenizer_files.check_byte_level(inner, bare=True)
        inner.no_padding()
        inner.no_truncation()
        self._inner = inner
        self._rows: int | None = None  # of the embedding, where it has fewer than there are tokens
        self.roles = dict(roles or {})
        vocabulary = inner.get_vocab(with_added_tokens=False)
        self._raw = {token_id: _bytes(token) for token, token_id in vocabulary.items()}
        for token_id, token in inner.get_added_tokens_decoder().items():
            if token_id not in self._raw:
                self._raw[token_id] = token.content.encode()
        self._special = {i for i, t in inner.get_added_tokens_decoder().items() if t.special}

    @classmethod
    def from_directory(cls, directory: Path | str) -> "Tokenizer":
        """The tokenizer of a Hugging Face directory, as transformers' AutoTokenizer makes it.

        Read are tokenizer.json, or else vocab.json with merges.txt; tokenizer_config.json,
        special_tokens_map.json and added_tokens.json; of config.json, what names the class.

        Raises:
            FileNotFoundError: the directory, or what it needs to hold, is missing.
            ValueError: a file is damaged, is no byte-level BPE, or asks for what can't be honoured.
        """
        folder = Path(directory)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} is not a directory: give the one that holds tokenizer.json"
            )
        return cls(*tokenizer_files.read(folder))

    @classmethod
    def gpt2(cls, spare_tokens: int = 143) -> "Tokenizer":
        """GPT-2's BPE with GPT-J's 143 spare tokens, 50,400 in all, as EleutherAI/gpt-j-6b has it.

        Ids: 256 bytes, 50,000 merges in order, <|endoftext|> = 50256, then <|extratoken_1|> to
        <|extratoken_143|>; GPT-2's own has no spare ones. The merges are OpenAI's vocab.bpe,
        shipped in assets/gpt2_bpe.
        """
        lines = gzip.decompress((_ASSETS / "vocab.bpe.gz").read_bytes()).decode().splitlines()
        merges = [(left, right) for left, right in (line.split(" ") for line in lines[1:])]
        tokens = [*_BYTES, *(left + right for left, right in merges), END_OF_TEXT]
        inner = _byte_level(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
        inner.add_tokens([AddedToken(f"<|extratoken_{i}|>") for i in range(1, spare_tokens + 1)])
        return cls(inner)

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id, up to the rows of the embedding (see `within`)."""
        size = max(self._raw, default=-1) + 1
        return size if self._rows is None else min(size, self._rows)

    @property
    def end_of_text_id(self) -> int | None:
        """The id of the token that ends a document: eos_token, else <|endoftext|>, if any."""
        return self.token_to_id(self.end_of_text)

    @property
    def end_of_text(self) -> str:
        """The text of the token that ends a document: eos_token, or <|endoftext|> without one."""
        own = self.roles.get("eos_token", END_OF_TEXT)
        token_id = self.token_to_id(own)
        without_embedding = self._rows is not None and (token_id or 0) >= self._rows
        return END_OF_TEXT if token_id is None or without_embedding else own

    def token_to_id(self, token: str) -> int | None:
        """The id of a token in the vocabulary's own spelling (Ġ for a space), if it is there."""
        return self._inner.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """The vocabulary's own spelling (Ġ for a space) of a token, if the id has one.

        Raises:
            ValueError: a negative id.
        """
        return self._inner.id_to_token(index(token_id)) if self._has(token_id) else None

    @functools.cached_property
    def before(self) -> list[int]:
        """The ids that `encode` puts before a text: none, or that of bos_token."""
        whole = self._inner.encode("a").ids
        alone = self._inner.encode("a", add_special_tokens=False).ids
        return next(whole[:i] for i in range(len(whole)) if whole[i : i + len(alone)] == alone)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The token ids of `text`; the text of a special token becomes that token.

        Args:
            add_special_tokens: with what the tokenizer puts around a text (`add_bos_token`, a
                template), if anything: so a model reads a prompt. Without it for a part of one.

        Raises:
            TypeError: not a str.
            ValueError: a lone surrogate, which is half a character and has no UTF-8 form; a token
                that the model's embedding doesn't have.
        """
        _check_text(text)
        return self._checked(self._inner.encode(text, add_special_tokens=add_special_tokens).ids)

    def encode_all(self, texts: Sequence[str], goes_on: Sequence[bool] = ()) -> list[list[int]]:
        """The ids of parts of documents, with nothing around them, on all cores.

        Args:
            goes_on: of each text, whether it goes on the one before it, so that
                `add_prefix_space` puts no space before it; by default none does.

        Raises:
            TypeError, ValueError: as `encode`.
        """
        for text in texts:
            _check_text(text)
        if self._chunks is not None:
            return list(map(self._checked, self._chunks.encode(texts)))
        found = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [encoding.ids for encoding in found]
        if self._going_on is not self._inner:
            for number, part in enumerate(goes_on):
                if part:
                    encoding = self._going_on.encode(texts[number], add_special_tokens=False)
                    ids[number] = encoding.ids
        return list(map(self._checked, ids))

    def encode_spans(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """(ids, the characters that each stands for) of whole texts, with nothing around them.

        Raises:
            TypeError, ValueError: as `encode`.
        """
        for text in texts:
            _check_text(text)
        found = self._inner.encode_batch(list(texts), add_special_tokens=False)
        return [(self._checked(encoding.ids), encoding.offsets) for encoding in found]

    def within(self, rows: int) -> "Tokenizer":
        """The same for an embedding of so many rows: tokens beyond it are refused in texts.

        Raises:
            ValueError: tokens of the vocabulary itself lie beyond it, not only added ones.
        """
        size = 1 + max(self._inner.get_vocab(with_added_tokens=False).values(), default=-1)
        if size > rows:
            raise ValueError(
                f"the tokenizer has {self.vocab_size} tokens, the embedding only {rows} rows: use "
                "the tokenizer that belongs to these weights"
            )
        other = copy.copy(self)
        other._rows = rows if self.vocab_size > rows else None
        return other

    def fingerprint(self) -> str:
        """A hash of all that decides how a text is cut into tokens, and which token ends it."""
        parts = self._inner.to_str()
        if self.end_of_text != END_OF_TEXT or self._inner.encode_special_tokens:
            parts += json.dumps([self.end_of_text, self._inner.encode_special_tokens])
        return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one token; none for a row that has no token.

        Raises:
            ValueError: a negative id.
        """
        return self._raw[index(token_id)] if self._has(token_id) else b""

    def decode_bytes(self, token_ids: Iterable[int]) -> bytes:
        """The exact bytes of the tokens; an added token gives its text's UTF-8.

        Raises:
            ValueError: a negative id.
        """
        return b"".join(map(self.token_bytes, token_ids))

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of the tokens; bytes that are not UTF-8 become the replacement character.

        Nothing is tidied: spaces stay as they are, and special tokens show their text.

        Args:
            skip_special_tokens: leave special tokens out.
        """
        if skip_special_tokens:
            token_ids = [i for i in token_ids if index(i) not in self._special]
        return self.decode_bytes(token_ids).decode(errors="replace")

    def display(self, token_id: int) -> str:
        """One token as a person should see it.

        ␣ is a space, ↵ a newline, ⇥ a tab, ␀ and its like control characters, ‹E2 80› bytes that
        are no whole UTF-8 character, ‹U+200B› a character that has no ink, ‹no token› a spare row.

        >>> Tokenizer.gpt2().display(995)
        '␣world'
        """
        if not self._has(token_id):
            return "‹no token›"
        text = self.token_bytes(token_id).decode(errors="surrogateescape")
        return re.sub("[\udc80-\udcff]+|.", _show, text, flags=re.DOTALL)

    def save(self, directory: Path | str) -> None:
        """Writes tokenizer.json and tokenizer_config.json, which transformers loads."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        # transformers' GPT2Tokenizer class would rebuild the tokenizer; this one takes it as it is.
        settings: dict[str, str | bool] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
        }
        if self._inner.encode_special_tokens:
            settings["split_special_tokens"] = True
        if self.roles:
            settings |= self.roles
        elif self.end_of_text_id is not None:
            settings |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
        self._inner.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(
            json.dumps(settings, indent=2) + "\n", encoding="utf-8"
        )

    @functools.cached_property
    def _chunks(self) -> chunks.Chunks | None:
        return chunks.Chunks(self._inner) if chunks.suits(self._inner) else None

    @functools.cached_property
    def _going_on(self) -> tokenizers.Tokenizer:
        return tokenizer_files.without_prefix_space(self._inner)

    def _checked(self, ids: list[int]) -> list[int]:
        if self._rows is not None and (beyond := [i for i in ids if i >= self._rows]):
            raise ValueError(
                f"the text holds {self.id_to_token(beyond[0])!r}, token {beyond[0]}, for which the "
                f"model has no embedding (it has {self._rows} rows): take it out of the text"
            )
        return ids

    def _has(self, token_id: int) -> bool:
        if index(token_id) < 0:
            raise ValueError(f"token id {token_id} is negative: ids count from 0")
        return index(token_id) in self._raw


class StreamDecoder:
    """Text from tokens one at a time, never half a UTF-8 character.

    All that `push` and then `flush` return, joined, equals `Tokenizer.decode` of the same ids.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The characters that this token completes, perhaps none."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """The replacement character if half a character is waiting, else nothing; starts anew."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` tokens, with GPT-2's splitting; deterministic.

    <|endoftext|> is id 0, the 256 bytes follow, then the merges, each of a pair seen at least
    twice. <|endoftext|> inside a text separates documents and is not learnt from.

    Raises:
        TypeError: `texts` is one str, or holds something else than str.
        ValueError: `vocab_size` is below 257; a text holds a lone surrogate.
    """
    if isinstance(texts, str):
        raise TypeError("texts is one str: give an iterable of them, for example [text]")
    if vocab_size < 257:
        raise ValueError(
            f"vocab_size is {vocab_size}: at least 257 are needed, 256 bytes and {END_OF_TEXT}"
        )

    def documents() -> Iterator[str]:
        for text in texts:
            _check_text(text)
            yield from text.split(END_OF_TEXT)

    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner = _byte_level(models.BPE())
    inner.train_from_iterator(documents(), trainer)
    return Tokenizer(inner)


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    """GPT-2's pipeline around a BPE; <|endoftext|> is special if the vocabulary has it."""
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    if inner.token_to_id(END_OF_TEXT) is not None:
        inner.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return inner


def _bytes(token: str) -> bytes:
    """The bytes of a token of the vocabulary; one that isn't written in their alphabet is text."""
    try:
        return bytes([_BYTES[character] for character in token])
    except KeyError:
        return token.encode()


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"the text is a {type(text).__name__}: a str is needed")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text holds a lone surrogate {text[error.start]!r} at position "
            f"{error.start}: remove it, it is half a character"
        ) from None


def _show(match: re.Match[str]) -> str:
    piece = match.group()
    if "\udc80" <= piece[0] <= "\udcff":
        return "‹" + piece.encode(errors="surrogateescape").hex(" ").upper() + "›"
    if piece in _VISIBLE:
        return _VISIBLE[piece]
    if ord(piece) < 32:
        return chr(0x2400 + ord(piece))
    return piece if piece.isprintable() else f"‹U+{ord(piece):04X}›"
