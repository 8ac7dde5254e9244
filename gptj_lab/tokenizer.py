"""Loading a tokenizer; token strings as a person should see them."""

from collections.abc import Sequence
from pathlib import Path

import tokenizers


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte, to the byte (Radford et al. 2019)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    stand_ins = {chr(256 + i): byte for i, byte in enumerate(others)}
    return {chr(byte): byte for byte in plain} | stand_ins


_BYTES = _byte_alphabet()
_VISIBLE = {" ": "␣", "\n": "↵", "\t": "⇥", "\x7f": "␡"}


class Tokenizer:
    """A byte-level BPE tokenizer, on the `tokenizers` library."""

    def __init__(self, inner: tokenizers.Tokenizer):
        self._inner = inner
        self._added = {i: t.content for i, t in inner.get_added_tokens_decoder().items()}

    @classmethod
    def from_directory(cls, directory: Path | str) -> "Tokenizer":
        """The tokenizer of a Hugging Face directory.

        Raises:
            FileNotFoundError: the directory has no tokenizer.json.
            ValueError: tokenizer.json is damaged.
        """
        path = Path(directory) / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{directory} has no tokenizer.json: copy the model's tokenizer.json there"
            )
        try:
            return cls(tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8")))
        except Exception as error:  # the library raises plain Exception for every fault
            raise ValueError(f"{path} is not a tokenizer ({error}): copy it again") from None

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id."""
        return max(self._inner.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def end_of_text_id(self) -> int | None:
        """The id of <|endoftext|>, if it is there."""
        return self._inner.token_to_id("<|endoftext|>")

    def encode(self, text: str) -> list[int]:
        """The token ids of `text`; the text of a special token becomes that token.

        Raises:
            TypeError: not a str.
            ValueError: a lone surrogate, which is half a character and has no UTF-8 form.
        """
        if not isinstance(text, str):
            raise TypeError(f"the text is a {type(text).__name__}: a str is needed")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the text holds a lone surrogate {text[error.start]!r} at position "
                f"{error.start}: remove it, it is half a character"
            ) from None
        return self._inner.encode(text, add_special_tokens=False).ids

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one token; none for a row that has no token.

        Raises:
            ValueError: a negative id.
        """
        if token_id < 0:
            raise ValueError(f"token id {token_id} is negative: ids count from 0")
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self._inner.id_to_token(token_id)
        return b"" if token is None else bytes(_BYTES[character] for character in token)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of the tokens; bytes that are not UTF-8 become the replacement character."""
        return b"".join(map(self.token_bytes, token_ids)).decode(errors="replace")

    def display(self, token_id: int) -> str:
        """One token as a person should see it: ␣ for a space, ↵ for a newline, ‹E2› for a byte."""
        raw = self.token_bytes(token_id)
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            return "‹" + raw.hex(" ").upper() + "›"
        return "".join(_VISIBLE.get(c, chr(0x2400 + ord(c)) if ord(c) < 32 else c) for c in text)

    def save(self, directory: Path | str) -> None:
        """Writes tokenizer.json and tokenizer_config.json, which transformers loads."""
        self._inner.save(str(Path(directory) / "tokenizer.json"))
        (Path(directory) / "tokenizer_config.json").write_text(
            '{"tokenizer_class": "PreTrainedTokenizerFast"}\n'
        )
