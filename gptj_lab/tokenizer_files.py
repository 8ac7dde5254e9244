"""The tokenizer that a folder's files describe, put together as by transformers 5's AutoTokenizer.

Two kinds of class matter. `PreTrainedTokenizerFast` takes tokenizer.json as it is. GPT2Tokenizer,
GPTNeoXTokenizer and CodeGenTokenizer take vocabulary and merges from it (or from vocab.json and
merges.txt) and build the rest themselves, with the settings of tokenizer_config.json: what
tokenizer.json says of normalising and splitting is not read. transformers 4 took it as it is.
Source: transformers 5.24, tokenization_utils_base.py, tokenization_utils_tokenizers.py and
models/auto/tokenization_auto.py; tests/test_tokenizer_files.py holds the two together.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from gptj_lab import json_files, notices
from gptj_lab.special_tokens import ROLES, Added, Special, special_tokens

_END = "<|endoftext|>"
_GPT2_ROLES: Special = dict.fromkeys(("unk_token", "bos_token", "eos_token"), _END)
_BUILT: dict[str, Special] = {  # with the tokens that each class has where the files say nothing
    "GPT2Tokenizer": _GPT2_ROLES,
    "CodeGenTokenizer": _GPT2_ROLES,
    "GPTNeoXTokenizer": _GPT2_ROLES | {"pad_token": "<|padding|>"},
}
_AS_IT_IS = ("PreTrainedTokenizer", "TokenizersBackend", "PythonBackend", "BloomTokenizer")
_OF_MODEL = {
    "gptj": "GPT2Tokenizer", "gpt2": "GPT2Tokenizer", "gpt_neo": "GPT2Tokenizer",
    "codegen": "GPT2Tokenizer", "gpt_neox": "GPTNeoXTokenizer",
}  # fmt: skip
_OTHER_KINDS = {
    "*.model": "a SentencePiece tokenizer", "tekken.json": "a Tekken tokenizer",
    "vocab.txt": "a WordPiece tokenizer", "*.tiktoken": "a tiktoken tokenizer",
}  # fmt: skip
_NEEDED = "only byte-level BPE tokenizers (GPT-2's kind) are supported"
_MEND = (
    "write it from transformers with AutoTokenizer.from_pretrained(...).backend_tokenizer.save("
    '"tokenizer.json"), and set tokenizer_class to "PreTrainedTokenizerFast" in '
    "tokenizer_config.json"
)
_APART = "the two belong together, so take both from one model"
_NEWER = (
    f"tokenizers {tokenizers.__version__} reads none from it; where a newer version wrote it, "
    "upgrade that package, else take the model's own file"
)
_ADDS = ("add_bos_token", "add_eos_token")
_CLEANS = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"


def read(folder: Path, *, quiet: bool = False) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """The tokenizer of a folder, and the text of each special token by its role ("eos_token").

    Args:
        quiet: don't tell what of the files isn't used, because it was told before.

    Raises:
        FileNotFoundError: there is neither tokenizer.json, nor vocab.json with merges.txt.
        ValueError: a file is damaged, or asks for what can't be honoured; the message names it.
    """
    settings = fields(folder / "tokenizer_config.json") or {}
    serialized = fields(folder / "tokenizer.json")
    path = folder / ("vocab.json" if serialized is None else "tokenizer.json")
    _check_files(folder, path)
    kind = _class(folder, settings, serialized)
    _check_settings(folder, settings)
    adds = {name: settings[name] for name in _ADDS if name in settings and serialized is None}
    roles, extra, added = special_tokens(folder, settings, serialized)
    roles = _BUILT.get(kind, {}) | roles
    # transformers adds them in this order, whatever that of the file is
    roles = {role: roles[role] for role in ROLES if role in roles} | roles
    if serialized is None:
        fields(folder / "vocab.json")
        _check_merges(folder / "merges.txt")
        path = f"{path} with merges.txt"
    try:
        inner = _inner(kind, folder, settings, serialized)
    except Exception as error:  # the library raises plain Exception for every fault
        fix = _APART if serialized is None else _NEWER
        raise ValueError(f"{path} is not a tokenizer ({error}): {fix}") from error
    try:
        check_byte_level(inner)
        _add(inner, roles, extra, added)
        if around := _template(inner, adds, roles):
            inner.post_processor = around
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    inner.encode_special_tokens = settings.get("split_special_tokens", False)
    if serialized is not None and not quiet:
        _tell_what_is_not_read(folder, kind, inner, settings, serialized)
    return inner, {role: str(token) for role, token in roles.items() if token is not None}


def fields(path: Path) -> dict[str, Any] | None:
    """What a JSON file holds; None if it isn't there.

    Raises:
        ValueError: it isn't a JSON object.
    """
    if not path.is_file():
        return None
    return json_files.read_file(path)


def check_byte_level(inner: tokenizers.Tokenizer, *, bare: bool = False) -> None:
    """Refuses what isn't a byte-level BPE, by name.

    Args:
        bare: one without a pre-tokenizer passes: a BPE made in memory, of the characters that a
            text has (lesson 12). Of a file it doesn't, as that lost its pre-tokenizer.

    Raises:
        ValueError: another model, or a pre-tokenizer that doesn't turn text into bytes.
    """
    model = inner.model
    if not isinstance(model, models.BPE):
        raise ValueError(f"its model is {type(model).__name__}: {_NEEDED}")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if value := getattr(model, name):
            raise ValueError(f"{name} of its model is {value!r}: set it to null, {_NEEDED}")
    if bare and inner.pre_tokenizer is None:
        return
    if "ByteLevel" not in [*_steps(inner.pre_tokenizer), *_steps(inner.normalizer)]:
        found = " then ".join(_steps(inner.pre_tokenizer)) or "none"
        raise ValueError(f"its pre-tokenizer is {found}, without ByteLevel: {_NEEDED}")


def without_prefix_space(inner: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A tokenizer for text that goes on another: no space is put before it."""
    if not _set_prefix_space(_state(inner.pre_tokenizer), False):
        return inner
    state = json.loads(inner.to_str())
    _set_prefix_space(state["pre_tokenizer"], False)
    other = tokenizers.Tokenizer.from_str(json.dumps(state))
    other.encode_special_tokens = inner.encode_special_tokens
    return other


# --- What the files ask for ---


def _check_files(folder: Path, path: Path) -> None:
    if path.is_file() and (path.name == "tokenizer.json" or (folder / "merges.txt").is_file()):
        return
    for pattern, kind in _OTHER_KINDS.items():
        if found := next(folder.glob(pattern), None):
            raise ValueError(
                f"{folder} has no tokenizer.json, and {found.name} is {kind}: {_NEEDED}"
            )
    raise FileNotFoundError(
        f"{folder} has no tokenizer.json, nor vocab.json with merges.txt: "
        "copy the model's tokenizer.json there"
    )


def _check_merges(path: Path) -> None:
    """Refuses lines that the library, and so transformers, refuses, by their numbers."""
    try:
        content = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} isn't UTF-8 ({error}): save it as UTF-8") from None
    lines = content.removesuffix("\n").split("\n") if content else []
    for number, line in enumerate(lines, 1):
        parts = line.removesuffix("\r").split(" ")
        if not line.startswith("#version") and (len(parts) != 2 or not all(parts)):
            advice = "take the model's own file" if line.strip() else "delete it"
            raise ValueError(
                f"{path}: line {number} is {line[:80]!r}, not two tokens with a space between: "
                f"{advice}"
            )


def _class(folder: Path, settings: Mapping[str, Any], serialized: Mapping[str, Any] | None) -> str:
    """The class that AutoTokenizer takes, without its "Fast"."""
    path, auto = folder / "tokenizer_config.json", settings.get("auto_map")
    own = auto.get("AutoTokenizer") if isinstance(auto, Mapping) else auto
    if own:
        raise ValueError(
            f"{path}: auto_map names the tokenizer's own class, {own!r}, and no code of a "
            f"checkpoint is run here: {_MEND}"
        )
    config = fields(folder / "config.json") or {}
    plain = "GPT2Tokenizer" if serialized is None else "TokenizersBackend"
    name = settings.get("tokenizer_class") or config.get("tokenizer_class")
    name = str(name or _OF_MODEL.get(str(config.get("model_type")), plain)).removesuffix("Fast")
    if name == "LlamaTokenizer" and '"ByteLevel"' in json.dumps(serialized):
        name = "TokenizersBackend"
    if name not in (*_BUILT, *_AS_IT_IS):
        raise ValueError(
            f"{path}: tokenizer_class is {name!r}, which builds a tokenizer in a way of its own; "
            f"{', '.join(_BUILT)} and PreTrainedTokenizerFast are read here: {_MEND}"
        )
    return plain if serialized is None and name in _AS_IT_IS else name


def _check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    path = folder / "tokenizer_config.json"
    for name in ("add_prefix_space", "split_special_tokens", *_ADDS, _CLEANS):
        value = settings.get(name, False)
        if not isinstance(value, bool):
            raise ValueError(f"{path}: {name} is {value!r}: true or false is needed")
    if settings.get(_CLEANS):
        raise ValueError(f"{path}: {_CLEANS} is true: decoding doesn't change text here, remove it")
    files = settings.get("fast_tokenizer_files") or ["tokenizer.json"]
    if files != ["tokenizer.json"]:
        raise ValueError(
            f"{path}: fast_tokenizer_files is {files!r}, a file for each version of transformers: "
            "keep the right one as tokenizer.json and remove this field"
        )


# --- Putting it together ---


def _inner(
    kind: str, folder: Path, settings: Mapping[str, Any], serialized: Mapping[str, Any] | None
) -> tokenizers.Tokenizer:
    """The tokenizer before its special tokens, as the class makes it."""
    if kind not in _BUILT:
        return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    prefix = settings.get("add_prefix_space", False)
    if serialized is None:
        model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
        post_processor = None
    else:
        model, post_processor = _model(serialized), _parts(serialized).post_processor
    inner = tokenizers.Tokenizer(model)
    if kind == "GPTNeoXTokenizer":
        inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    inner.decoder = decoders.ByteLevel()
    if kind == "CodeGenTokenizer":
        inner.post_processor = processors.ByteLevel(trim_offsets=False)
    if post_processor is not None and kind != "GPTNeoXTokenizer":  # which makes its own
        inner.post_processor = post_processor
    return inner


def _model(serialized: Mapping[str, Any]) -> models.BPE:
    model = serialized.get("model") or {}
    vocabulary, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocabulary, dict) or not isinstance(merges, list):
        raise ValueError(f"its model is {model.get('type')}: {_NEEDED}")
    pairs: list[Any] = [
        tuple(each.split(" ") if isinstance(each, str) else each) for each in merges
    ]
    return models.BPE(vocab=vocabulary, merges=pairs)


def _parts(serialized: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """tokenizer.json without vocabulary and tokens: for what else is in it."""
    empty = {**serialized["model"], "vocab": {}, "merges": []}
    return tokenizers.Tokenizer.from_str(
        json.dumps({**serialized, "model": empty, "added_tokens": []})
    )


def _add(
    inner: tokenizers.Tokenizer, roles: Special, extra: list[Added | str], added: dict[int, Added]
) -> None:
    """Adds the special tokens in the order in which transformers does, so that their ids agree.

    Raises:
        ValueError: the files give a token another id than the one it gets.
    """
    tokens: list[Any] = [token for _, token in sorted(added.items())]
    there = {token.content for token in inner.get_added_tokens_decoder().values()}
    there |= {token.content for token in tokens}
    named = [token for token in roles.values() if token is not None]
    for token in [*named, *extra]:
        if str(token) not in there and token not in tokens:
            tokens.append(token)
    roles_of = {str(token) for token in named}
    for number, token in enumerate(tokens):
        if isinstance(token, str):
            tokens[number] = Added(token, special=True)
        elif str(token.content) in roles_of:
            token.special = True
    if tokens:
        inner.add_tokens(tokens)
    for wanted, token in added.items():
        if (found := inner.token_to_id(token.content)) != wanted:
            raise ValueError(
                f"the token {token.content!r} is said to have id {wanted}, after the vocabulary "
                f"it gets {found}: mend added_tokens_decoder of tokenizer_config.json, or "
                "added_tokens.json"
            )


def _template(
    inner: tokenizers.Tokenizer, adds: Mapping[str, bool], roles: Special
) -> processors.TemplateProcessing | None:
    """What is put before and after a text, if anything is."""
    begin, end = (
        [str(roles[f"{which}_token"])]
        if adds.get(f"add_{which}_token") and roles.get(f"{which}_token") is not None
        else []
        for which in ("bos", "eos")
    )
    if not begin and not end:
        return None
    single = [*(f"{token}:0" for token in begin), "$A:0", *(f"{token}:0" for token in end)]
    pair = ["$B:1" if piece == "$A:0" else f"{piece[:-1]}1" for piece in single]
    ids = [(token, inner.token_to_id(token)) for token in dict.fromkeys([*begin, *end])]
    return processors.TemplateProcessing(single=single, pair=[*single, *pair], special_tokens=ids)


# --- What is left out, told ---


def _tell_what_is_not_read(
    folder: Path,
    kind: str,
    inner: tokenizers.Tokenizer,
    settings: Mapping[str, Any],
    serialized: Mapping[str, Any],
) -> None:
    """Tells where transformers 5 reads a folder otherwise than its files say, or than 4 did."""
    parts, known = _parts(serialized), inner.get_vocab()
    left_out = []
    if kind in _BUILT:
        theirs, ours = _state(parts.pre_tokenizer), _state(inner.pre_tokenizer)
        _set_prefix_space(theirs, settings.get("add_prefix_space", False))
        if theirs != ours:
            left_out.append("tokenizer.json's pre_tokenizer")
        if _state(parts.normalizer) != _state(inner.normalizer):
            left_out.append("tokenizer.json's normalizer")
    adds = inner.num_special_tokens_to_add(False)
    if parts.num_special_tokens_to_add(False) > adds:
        left_out.append("tokenizer.json's post_processor")
    if not adds:
        left_out += [f"tokenizer_config.json's {name}" for name in _ADDS if settings.get(name)]
    left_out += [
        f"tokenizer.json's added token {token['content']!r}"
        for token in serialized.get("added_tokens") or []
        if token["content"] not in known
    ]
    if left_out:
        notices.tell(
            f"{folder}: {', '.join(left_out[:5])} is not used, because transformers 5 doesn't "
            f"use it either for this folder ({kind}); transformers 4 did. If the model was trained "
            'with it, set tokenizer_class to "PreTrainedTokenizerFast" in tokenizer_config.json, '
            "and what is to stand around a text in tokenizer.json's post_processor"
        )


def _set_prefix_space(state: dict[str, Any] | None, value: bool) -> bool:
    """Sets add_prefix_space of every ByteLevel step; whether one changed."""
    if state is None:
        return False
    changed = False
    for step in _inside(state):
        if step["type"] == "ByteLevel" and step["add_prefix_space"] != value:
            step["add_prefix_space"], changed = value, True
    return changed


def _steps(part: Any) -> list[str]:
    """The types of a pre-tokenizer or normalizer and of its parts, in order."""
    state = _state(part)
    return [step["type"] for step in _inside(state)] if state else []


def _inside(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of a sequence, of sequences in it too; else the one step."""
    steps = state.get("pretokenizers") or state.get("normalizers")
    return [state] if steps is None else [each for step in steps for each in _inside(step)]


def _state(part: Any) -> dict[str, Any] | None:
    """A part as tokenizer.json writes it, without what changes offsets alone."""
    if part is None:
        return None
    state = json.loads(part.__getstate__())
    for step in _inside(state):
        step.pop("trim_offsets", None)
    return state
