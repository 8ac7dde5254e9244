"""Python of permissive licence from the registry, as documents to train on.

`python -m gptj_lab.finetuning.code_corpus OUT` downloads the wheels of code_packages.tsv with pip
(--wheels FOLDER takes those that are there) and writes OUT/NAME.txt for each. Nothing of a wheel
is run: it is opened as a zip, and its modules are read as text.
"""

import argparse
import ast
import email
import random
import re
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from gptj_lab.tokenizer import END_OF_TEXT

PACKAGES = Path(__file__).with_name("code_packages.tsv")  # name, version, licence
SHARED_LINES = 10  # telling lines that a module may not share with a held-out text
_TELLING = 25  # characters that a line has at least before it says where it comes from
_SIZES = range(300, 100_000)  # characters of a module; larger ones are tables for the most part
_OWN_LIMIT = 500_000  # bytes of one package, so that none is most of the corpus
_NOT_CODE = {
    "test", "tests", "testing", "testsuite", "idle_test", "site-packages", "dist-packages",
    "_vendor", "vendor", "vendored", "_vendored", "third_party", "extern", "externals", "locale",
    "locales", "locale-data", "encodings", "__pycache__", "pydoc_data", "__phello__",
}  # fmt: skip
_NO_MODULE = re.compile(
    r"(^test_|_test\.py$|^tests?\.py$|^conftest|_pb2(_grpc)?\.py$|^(lex|parse|yacc)tab)"
)
_GENERATED = re.compile(r"generated (by|from|automatically)|auto-?generated|do not edit", re.I)
_DATA_LINE = re.compile(r"""^\s*([\[({"'\-\d]|[rbuf]["']|\w+=["'\d\[({]).*[,\])}]$""")
_PERMISSIVE = re.compile(r"\b(MIT|BSD|Apache|PSF|Python Software Foundation)\b", re.I)
_OTHER = re.compile(r"GPL|General Public|Mozilla|MPL|EUPL|CC[- ]BY|CDDL|Proprietary", re.I)


def telling_lines(text: str) -> set[str]:
    """The text's lines without their indentation, those of some length."""
    stripped = (line.strip() for line in text.splitlines())
    return {line for line in stripped if len(line) >= _TELLING}


def is_module(path: str) -> bool:
    """Whether a path is that of a module which is neither a test nor another project's."""
    parts = PurePosixPath(path).parts
    return (
        path.endswith(".py")
        and not _NOT_CODE & set(parts[:-1])
        and not _NO_MODULE.search(parts[-1])
    )


def cleaned(text: str) -> str | None:
    """A module without the licence at its head; None if it is no plain code by people.

    That is a table, a generated file, one that doesn't parse, is not ASCII for the most part, or
    is very short or long.
    """
    text = _without_licence(text.replace("\r\n", "\n")).strip() + "\n"
    lines = [line for line in text.splitlines() if line.strip()]
    if (
        len(text) not in _SIZES
        or END_OF_TEXT in text
        or _GENERATED.search(text[:1000])
        or sum(char > "\x7f" for char in text) > len(text) / 200
        or max(map(len, lines)) > 400
        or sum(bool(_DATA_LINE.match(line)) for line in lines) > len(lines) / 3
    ):
        return None
    try:
        with warnings.catch_warnings(action="ignore"):
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return text


def _without_licence(text: str) -> str:
    """The text without comments at its beginning that speak of a licence or a copyright."""
    head = re.match(r"(?:[ \t]*#[^\n]*\n|[ \t]*\n)+", text)
    if head and re.search(r"licen[sc]e|copyright", head.group(), re.I):
        return text[head.end() :]
    return text


def permissive(metadata: str) -> str:
    """The licence that a wheel's METADATA names, if it is MIT, BSD, Apache or PSF.

    Raises:
        ValueError: it names none of these, or another one too.
    """
    fields = email.message_from_string(metadata)
    named = [fields.get("License-Expression", ""), fields.get("License", "").split("\n")[0]]
    named += [each for each in fields.get_all("Classifier", []) if each.startswith("License")]
    said = "; ".join(each for each in named if each)
    found = sorted({each.upper() for each in _PERMISSIVE.findall(said)})
    if not found or _OTHER.search(said):
        raise ValueError(
            f"{fields['Name']} {fields['Version']} is under {said or 'no licence it names'!r}: "
            "only MIT, BSD, Apache and PSF are taken"
        )
    names = {"APACHE": "Apache-2.0", "PYTHON SOFTWARE FOUNDATION": "PSF"}
    return " or ".join(dict.fromkeys(str(names.get(each, each)) for each in found))


def modules(wheel: Path) -> Iterator[tuple[str, str]]:
    """Paths and cleaned texts of a wheel's modules, in an order that is always the same."""
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(filter(is_module, archive.namelist()))
        random.Random(0).shuffle(names)  # what is taken of a large package comes from all over it
        for name in names:
            try:
                text = cleaned(archive.read(name).decode("utf-8"))
            except UnicodeDecodeError:
                continue
            if text is not None:
                yield name, text


class Gate:
    """Lets modules pass that aren't held out, and that no module before them has said."""

    def __init__(self, held_out: Iterable[str]):
        self._held_out = [telling_lines(text) for text in held_out]
        self._seen: set[str] = set()

    def passes(self, text: str) -> bool:
        """Whether the text may be trained on; if so, it counts as said from now on.

        Refused is a text that shares SHARED_LINES telling lines with a held-out one, or half of
        its own with those that passed: a copy.
        """
        lines = telling_lines(text)
        if _shares(lines, self._held_out):
            return False
        if 2 * len(lines & self._seen) > len(lines):
            return False
        self._seen |= lines
        return True


def without(held_out: Iterable[str], texts: Iterable[str]) -> list[str]:
    """The texts that share fewer than SHARED_LINES telling lines with each held-out one."""
    known = [telling_lines(text) for text in held_out]
    return [text for text in texts if not _shares(telling_lines(text), known)]


def _shares(lines: set[str], known: Iterable[set[str]]) -> bool:
    return any(len(lines & each) >= SHARED_LINES for each in known)


def listed(path: Path = PACKAGES) -> list[tuple[str, str, str]]:
    """Name, version and licence of each package on the list."""
    rows = [line.split("\t") for line in path.read_text("utf-8").splitlines() if line.strip()]
    return [(name, version, licence) for name, version, licence in rows]


def download(names: Iterable[tuple[str, str]], folder: Path) -> None:
    """Puts the packages' wheels into the folder, without what they depend on."""
    wanted = [f"{name}=={version}" for name, version in names]
    subprocess.run(
        [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
            "--only-binary", ":all:", "--dest", str(folder), *wanted,
        ],
        check=True,
    )  # fmt: skip


def wheel_of(folder: Path, name: str, version: str) -> Path:
    """The wheel of a package in the folder.

    Raises:
        FileNotFoundError: there is none of that version.
    """
    key = re.sub(r"[-_.]+", "_", name).lower()
    for path in sorted(folder.glob("*.whl")):
        found, number, *_ = path.name.split("-")
        if re.sub(r"[-_.]+", "_", found).lower() == key and number == version:
            return path
    raise FileNotFoundError(f"{folder} holds no wheel of {name} {version}: run without --wheels")


def assemble(
    out: Path, held_out: Iterable[str], first: Iterable[str] = (), wheels: Path | None = None,
    packages: Path = PACKAGES,
) -> dict[str, int]:  # fmt: skip
    """Writes out/NAME.txt, a package each with <|endoftext|> between modules; gives their bytes.

    Args:
        held_out: texts that no module may share SHARED_LINES lines with.
        first: texts that are trained on anyway: no copy of these is taken.
        wheels: a folder that holds the wheels; without it they are downloaded.
    """
    names = listed(packages)
    gate = Gate(held_out)
    for text in first:
        gate.passes(text)
    out.mkdir(parents=True, exist_ok=True)
    sizes = {}
    with tempfile.TemporaryDirectory() as temporary:
        if wheels is None:
            wheels = Path(temporary)
            download([(name, version) for name, version, _ in names], wheels)
        for name, version, _ in names:
            texts, left = [], _OWN_LIMIT
            wheel = wheel_of(wheels, name, version)
            permissive(_metadata(wheel))
            for _, text in modules(wheel):
                size = len(text.encode())
                if size <= left and gate.passes(text):
                    texts.append(text)
                    left -= size
            (out / f"{name}.txt").write_text(END_OF_TEXT.join(texts), "utf-8")
            sizes[name] = _OWN_LIMIT - left
    return sizes


def _metadata(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n)]
        if len(names) != 1:
            raise ValueError(f"{wheel} holds {len(names)} METADATA files: a wheel has one")
        return archive.read(names[0]).decode("utf-8", "replace")


def main(arguments: list[str] | None = None) -> None:
    from gptj_lab.finetuning import pocket

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="NAME.txt of each package goes here")
    parser.add_argument("--wheels", type=Path, help="a folder that holds the wheels already")
    parser.add_argument("--packages", type=Path, default=PACKAGES, help="another list (TSV)")
    chosen = parser.parse_args(arguments)
    sizes = assemble(
        chosen.out, pocket.held_out_documents(), pocket.code_documents(),
        chosen.wheels, chosen.packages,
    )  # fmt: skip
    print(f"{sum(sizes.values()):,} bytes of {len(sizes)} packages in {chosen.out}")


if __name__ == "__main__":
    main()
