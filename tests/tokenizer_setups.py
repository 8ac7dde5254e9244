"""Tokenizer folders as people have them, written by transformers and tokenizers themselves."""

import functools
import json
import random
import sysconfig
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, normalizers, pre_tokenizers, processors

SAMPLES = Path(__file__).parents[1] / "data" / "samples"
GPT2, NEOX = {"model_type": "gpt2"}, {"model_type": "gpt_neox"}
_SPACES = [AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)]
_CHAT = ["<|im_start|>", "<|im_end|>"]


END = "<|endoftext|>"
Base = tokenizers.Tokenizer  # a plain byte-level BPE, to be changed in copies only


def _copy(base: Base, change) -> Base:
    inner = tokenizers.Tokenizer.from_str(base.to_str())
    change(inner)
    return inner


def _vocabulary(base: Base) -> dict:
    model = json.loads(base.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}


def _write(folder: Path, config: dict | None = None, **files) -> None:
    """JSON files by their names without ".json"."""
    for name, content in {"config": config, **files}.items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content), "utf-8")


def _saved(folder: Path, base: Base, kind: str, config: dict, added=(), **settings) -> None:
    """A folder as transformers' class of that name saves it."""
    import transformers

    theirs = getattr(transformers, kind)(**_vocabulary(base), **settings)
    theirs.add_tokens(list(added))
    theirs.save_pretrained(folder)
    _write(folder, config)


def _pair(folder: Path, base: Base, config: dict, **files) -> None:
    """vocab.json and merges.txt, with what else is given."""
    base.model.save(str(folder))
    _write(folder, config, **files)


def _flags(content: str, **flags) -> dict:
    off = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word", "special"), False)
    return {"content": content, **off, **flags}


def gpt2(folder, base):
    _saved(folder, base, "GPT2Tokenizer", GPT2)


def gpt2_prefix_space(folder, base):
    _saved(folder, base, "GPT2Tokenizer", {"model_type": "gptj"}, add_prefix_space=True)


def gpt2_bos(folder, base):
    settings = {"add_bos_token": True, "tokenizer_class": "GPT2Tokenizer", "bos_token": "<|begin|>"}
    _pair(folder, base, GPT2, tokenizer_config=settings)


def neox_spaces(folder, base):
    added = [*_SPACES, AddedToken("<mask>", lstrip=True, special=True, normalized=False),
             AddedToken("<tail>", rstrip=True), AddedToken("Ωmega", normalized=True)]  # fmt: skip
    _saved(folder, base, "GPTNeoXTokenizer", NEOX, added)


def codegen(folder, base):
    _saved(
        folder, base, "CodeGenTokenizer", {"model_type": "codegen"}, [*_SPACES, AddedToken("\t\t")]
    )


def chat(folder, base):
    _saved(folder, base, "GPT2Tokenizer", {"model_type": "gptj"}, eos_token="<|im_end|>",
           pad_token="<|padding|>", extra_special_tokens=_CHAT)  # fmt: skip


def older_files(folder, base):
    size = base.get_vocab_size()
    added = {"<|im_start|>": size, "<|im_end|>": size + 1, "### End": size + 2}
    roles = {"eos_token": _flags("<|im_end|>", rstrip=True), "pad_token": "<|im_end|>",
             "additional_special_tokens": ["<|im_start|>"]}  # fmt: skip
    _pair(folder, base, {"model_type": "gpt_neo"}, added_tokens=added, special_tokens_map=roles)


def template(folder, base):
    def around(inner):
        inner.add_special_tokens(["<s>", "</s>"])
        ids = [(token, inner.token_to_id(token)) for token in ("<s>", "</s>")]
        inner.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=ids)

    _copy(base, around).save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>",
                "eos_token": "</s>", "pad_token": "</s>", "add_bos_token": False}  # fmt: skip
    _write(folder, {"model_type": "gptj"}, tokenizer_config=settings)


def dolly(folder, base):
    added = [AddedToken("### End", normalized=False), AddedToken("### Instruction:"),
             AddedToken("### Response:\n", normalized=True), *_SPACES]  # fmt: skip
    _saved(folder, base, "GPTNeoXTokenizer", NEOX, added, eos_token="<|endoftext|>")


def disagreeing(folder, base):
    def odd(inner):
        inner.normalizer = normalizers.Lowercase()
        digits = pre_tokenizers.Digits(individual_digits=True)
        inner.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(False)])
        inner.add_tokens([AddedToken("<in file>")])

    _copy(base, odd).save(str(folder / "tokenizer.json"))
    end, size = base.token_to_id(END), base.get_vocab_size()
    added = {str(end): _flags(END, special=True), str(size): _flags("<in config>")}
    settings = {"add_prefix_space": True, "added_tokens_decoder": added, "add_bos_token": True}
    _write(folder, GPT2, tokenizer_config=settings)


def neox_template(folder, base):
    def around(inner):
        inner.normalizer = normalizers.NFC()
        ids = [(END, inner.token_to_id(END))]
        inner.post_processor = processors.TemplateProcessing(f"{END} $A", special_tokens=ids)

    _copy(base, around).save(str(folder / "tokenizer.json"))
    _write(folder, NEOX)


def neox_pair_around(folder, base):
    settings = {"add_bos_token": True, "add_eos_token": True, "eos_token": "</s>"}
    _pair(folder, base, NEOX, tokenizer_config=settings)


def split_special(folder, base):
    _saved(folder, base, "GPT2Tokenizer", GPT2, split_special_tokens=True)


def words_alone(folder, base):
    added = [AddedToken("is", single_word=True), AddedToken("the", lstrip=True, rstrip=True)]
    _saved(folder, base, "GPT2Tokenizer", GPT2, added)


def split_by_pattern(folder, base):
    def other(inner):
        pattern = tokenizers.Regex(r"\p{N}{1,3}| ?\p{L}+|\s+|[^\s\p{L}\p{N}]+")
        inner.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(pattern, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])  # fmt: skip
        inner.normalizer = normalizers.NFKC()

    _copy(base, other).save(str(folder / "tokenizer.json"))
    _write(folder, {"model_type": "gptj", "tokenizer_class": "PreTrainedTokenizerFast"})


def file_alone(folder, base):
    base.save(str(folder / "tokenizer.json"))


def typed_roles(folder, base):
    typed = _flags("<|stop|>", lstrip=True, normalized=True) | {"__type": "AddedToken"}
    settings = {"eos_token": typed, "pad_token": "<|pad|>", "image_token": "<|image|>",
                "mask_token": None, "use_a_token": True,
                "additional_special_tokens": ["<|a|>", "<|b|>"]}  # fmt: skip
    base.save(str(folder / "tokenizer.json"))
    _write(folder, GPT2, tokenizer_config=settings)


TEN = (
    gpt2, gpt2_prefix_space, gpt2_bos, neox_spaces, codegen, chat, older_files, template, dolly,
    disagreeing,
)  # fmt: skip
MORE = (
    neox_template, neox_pair_around, split_special, words_alone, split_by_pattern, file_alone,
    typed_roles,
)  # fmt: skip


def texts(size: int, added: list[str]) -> list[str]:
    """About `size` bytes: prose, code, chat markup with the added tokens, Unicode of every kind."""
    part = size // 4
    samples, code = (text * (part // len(text) + 1) for text in _sources())
    return [samples[:part], code[:part], _markup(added, part), _unicode(part)]


@functools.cache
def _sources() -> tuple[str, str]:
    library = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-f]*.py"))
    return (
        "".join(path.read_text("utf-8") for path in sorted(SAMPLES.glob("*.[tj]*"))),
        "".join(path.read_text("utf-8", "replace") for path in library),
    )


def _markup(added: list[str], size: int) -> str:
    """Words with the added tokens among them, spaces and newlines before and after."""
    draw, pieces, length = random.Random(1), [], 0
    words = [
        "user",
        "assistant",
        " Hello",
        "the",
        " is",
        "it",
        "\n",
        "  ",
        "\t",
        "Café",
        "1234",
        "é",
    ]
    gaps = ["", "", " ", "  ", "\n", "\n\n", "\t", " \n ", "\u00a0"]
    while length < size:
        word = draw.choice(words if draw.random() < 0.6 or not added else added)
        pieces.append(draw.choice(gaps) + word)
        length += len(pieces[-1])
    return "".join(pieces)


@functools.cache
def _unicode(size: int) -> str:
    """Emoji, combining marks, marks of order, controls, right to left, CJK; a very long line."""
    draw = random.Random(2)
    ranges = [
        (0x20, 0x7F), (0, 0x20), (0xA0, 0x250), (0x300, 0x370), (0x590, 0x700), (0x900, 0xA00),
        (0x1100, 0x1200), (0x2000, 0x2070), (0x3040, 0x3100), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
        (0xFE00, 0xFE10), (0xFEFF, 0xFF00), (0x1F300, 0x1FA00), (0xE0020, 0xE0080), (0, 0xD800),
    ]  # fmt: skip
    fixed = "\ufeff\0a\0\ufeff 👩‍👩‍👧‍👦🇪🇺 é e\u0301 ก็ำ שלום"
    fixed += "\u202eabc\u202c 日本語。\r\n\r\x0b\x85\u2028"
    line, pieces, length = "x" * (size // 8) + " " * (size // 16), [fixed], len(fixed)
    while length < size // 3:  # most take several bytes
        low, high = draw.choice(ranges)
        pieces.append("".join(chr(draw.randrange(low, high)) for _ in range(draw.randrange(1, 9))))
        length += len(pieces[-1])
    return "".join([*pieces, line])
