"""The text of documents: web pages, Word, OpenDocument, PDF and EPUB files."""

import logging
import posixpath
import re
import urllib.parse
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptj_lab.corpora import archives, files
from gptj_lab.corpora.options import ReadingOptions
from gptj_lab.corpora.passages import ReadingNotes, Refused

_LARGEST = 1 << 28  # bytes of a page or a document
_SILENT = (
    "script", "style", "noscript", "template", "svg", "iframe", "object", "canvas", "button",
    "select", "textarea", "form", "head",
)  # fmt: skip
_AROUND = ("nav", "footer", "aside", "header")
_ROLES = ("navigation", "banner", "contentinfo", "search", "complementary")
_BLOCKS = {
    "p", "div", "section", "article", "main", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl",
    "blockquote", "pre", "table", "figure", "figcaption", "hr", "body", "header", "address",
}  # fmt: skip
_LINES = {"li", "tr", "dt", "dd", "br", "caption"}
_OLE = b"\xd0\xcf\x11\xe0"  # Office's older container, which an encrypted .docx lies in too


def of_file(path: Path, notes: ReadingNotes, options: ReadingOptions) -> Iterator[str]:
    """The text of a document in parts; what can't be read is noted with the reason.

    Raises:
        ModuleNotFoundError: a library of the extra `documents` is missing.
    """
    name = path.name.lower()
    if path.stat().st_size > _LARGEST:
        what = f"a document of more than {_LARGEST >> 20} MB, left out: cut it into several"
        notes.skip(what, path.name)
        return
    reader = {".docx": _word, ".odt": _open_document, ".epub": _book, ".pdf": _pdf}.get(
        name[name.rfind(".") :], _page
    )
    try:
        yield from reader(path, notes, options)
    except (ModuleNotFoundError, Refused):
        raise
    except _Unreadable as error:
        notes.skip(str(error), path.name)
    except archives.Bomb as error:
        notes.skip(f"a file that unpacks to too much, left out ({error})", path.name)
    except Exception as error:  # a library's, at a damaged file: whatever it stumbled over
        what = "a damaged document, read as far as it goes"
        notes.skip(what, f"{path.name} ({type(error).__name__}: {error!s:.120})")


class _Unreadable(ValueError):
    """Why a document isn't read."""


def _page(path: Path, notes: ReadingNotes, options: ReadingOptions) -> Iterator[str]:
    soup = _soup(path.read_bytes(), path.name, options.encoding)
    found = soup.original_encoding
    if found not in (None, "utf-8", "ascii") and options.encoding is None:
        notes.remark(f"a page in {found}, read as that", path.name)
    text, around = page_text(soup)
    if around:
        notes.remark("a page, read without its menus, headers, footers and asides", path.name)
    yield text


def _soup(data: bytes, name: str, encoding: str | None = None) -> Any:
    library = files.needed("bs4", f"{name} (.html)", "documents")
    return library.BeautifulSoup(data, "html.parser", from_encoding=encoding)


def page_text(soup: Any) -> tuple[str, bool]:
    """(the text of a page, whether something around it was left out)."""
    for tag in soup.find_all(_SILENT):
        tag.decompose()
    around = soup.find_all(lambda tag: _is_around(tag))
    before = len(soup.get_text())
    for tag in around:
        if not tag.decomposed:
            tag.decompose()
    body = soup.body or soup
    parts = body.find_all("main") or [
        tag for tag in body.find_all("article") if tag.find_parent("article") is None
    ]
    # What is marked as the main part is taken where most of the words are in it.
    size = len(body.get_text().split())
    if parts and sum(len(part.get_text().split()) for part in parts) < 0.5 * size:
        parts = []
    text = "\n\n".join(filter(None, (_block_text(part) for part in parts or [body])))
    return text, bool(parts) or len(soup.get_text()) < before


def _is_around(tag: Any) -> bool:
    if tag.name in ("html", "body", "main", "article"):
        return False
    if tag.has_attr("hidden") or tag.get("aria-hidden") == "true" or tag.get("role") in _ROLES:
        return True
    if tag.name == "header":  # of the page, not of an article
        return tag.find_parent(("article", "main", "section")) is None and tag.find("h1") is None
    return tag.name in _AROUND


def _block_text(root: Any) -> str:
    """The words below a tag, blocks apart by a blank line, list items and rows by a line end.

    A tag's own stack, not recursion: a page may be nested as deep as it likes.
    """
    from bs4.element import NavigableString, Tag

    out: list[str] = []
    open_tags = [(iter(root.contents), "", root.name == "pre")]
    while open_tags:
        inside, end, is_kept = open_tags[-1]
        node = next(inside, None)
        if node is None:
            out.append(end)
            open_tags.pop()
        elif isinstance(node, Tag):
            mark = "\0" if node.name in _BLOCKS else "\1" if node.name in _LINES else ""
            out.append("\t" if node.name in ("td", "th") and _is_later(node) else mark)
            open_tags.append((iter(node.contents), mark, is_kept or node.name == "pre"))
        elif type(node) is NavigableString:
            text = re.sub("[\0\1]", "", str(node))
            out.append(text.strip("\n") if is_kept else re.sub(r"\s+", " ", text))
    joined = re.sub(r" *\t *", "\t", "".join(out))
    joined = re.sub(r"[ \x00\x01]*\x00[ \x00\x01]*", "\n\n", joined)
    return re.sub(r" *\x01[ \x01]*", "\n", joined).strip()


def _is_later(cell: Any) -> bool:
    """Whether a cell of a table isn't its row's first; one that isn't closed holds the next."""
    if cell.parent.name in ("td", "th"):
        return True
    before = cell.previous_sibling
    while before is not None and before.name not in ("td", "th"):
        before = before.previous_sibling
    return before is not None


def _word(path: Path, notes: ReadingNotes, options: ReadingOptions) -> Iterator[str]:
    del options, notes
    _check_container(path, "save it without a password")
    library = files.needed("docx", f"{path.name} (.docx)", "documents")
    end = ""
    for part in library.Document(str(path)).iter_inner_content():
        rows = getattr(part, "rows", None)
        if rows is None:
            text = part.text
        else:
            text = "\n".join("\t".join(cell.text for cell in row.cells) for row in rows)
        if text.strip():
            yield end + text
            end = "\n\n"


def _open_document(path: Path, notes: ReadingNotes, options: ReadingOptions) -> Iterator[str]:
    del options, notes
    _check_container(path, "save it without a password")
    with zipfile.ZipFile(path) as packed:
        if b"encryption-data" in packed.read("META-INF/manifest.xml"):
            raise _Unreadable("an encrypted document, left out: save it without a password")
    library = files.needed("odfdo", f"{path.name} (.odt)", "documents")
    end = ""
    for part in library.Document(str(path)).body.xpath("descendant::text:p|descendant::text:h"):
        if (text := part.inner_text).strip():
            yield end + text
            end = "\n\n"


def _check_container(path: Path, fix: str) -> None:
    """Nothing, if a document is a zip file that unpacks to a reasonable size.

    Raises:
        _Unreadable: it is encrypted or of another kind.
    """
    with path.open("rb") as file:
        head = file.read(4)
    if head == _OLE:
        raise _Unreadable(f"an encrypted document, or one of an older kind, left out: {fix}")
    if not zipfile.is_zipfile(path):
        raise _Unreadable("a document that isn't of its ending's kind, left out: save it anew")
    with zipfile.ZipFile(path) as packed:
        archives.check(packed, _LARGEST)


def _book(path: Path, notes: ReadingNotes, options: ReadingOptions) -> Iterator[str]:
    """The chapters of an EPUB in the order of its spine (EPUB 3.3, section 5.7)."""
    del options
    _check_container(path, "give one without copy protection")
    with zipfile.ZipFile(path) as packed:
        if "META-INF/encryption.xml" in packed.namelist() and (
            b"EncryptedData" in packed.read("META-INF/encryption.xml")
        ):
            notes.remark(
                "a book with encrypted parts (fonts, or all with copy protection)", path.name
            )
        root = _soup(packed.read("META-INF/container.xml"), path.name).find("rootfile")["full-path"]
        package = _soup(packed.read(root), path.name)
        hrefs = {item.get("id"): item.get("href") for item in package.find_all("item")}
        end = ""
        for item in package.find_all("itemref"):
            if item.get("linear") == "no" or not (href := hrefs.get(item.get("idref"))):
                continue
            inside = posixpath.normpath(
                posixpath.join(posixpath.dirname(root), urllib.parse.unquote(href))
            )
            text, _ = page_text(_soup(packed.read(inside), path.name))
            if text:
                yield end + text
                end = "\n\n"


def _pdf(path: Path, notes: ReadingNotes, options: ReadingOptions) -> Iterator[str]:
    del options
    library = files.needed("pypdf", f"{path.name} (.pdf)", "documents")
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # a warning for each oddity
    reader = library.PdfReader(str(path), strict=False)
    fix = "save it without a password (qpdf --decrypt)"
    if reader.is_encrypted:
        try:
            opened = reader.decrypt("")
        except library.errors.DependencyError:
            raise _Unreadable(f"an encrypted PDF, left out: {fix}") from None
        if not opened:
            raise _Unreadable(f"an encrypted PDF, left out: {fix}")
    pages = len(reader.pages)
    empty, end = 0, ""
    for page in reader.pages:
        text = page.extract_text().strip()
        empty += not text
        if text:
            yield end + text
            end = "\n\n"
    if pages and empty == pages:
        raise _Unreadable("a PDF of pictures without text, left out: OCR (ocrmypdf) adds the text")
    if empty:
        notes.remark(
            "a PDF with pages without text (pictures?)", f"{path.name} ({empty} of {pages})"
        )
