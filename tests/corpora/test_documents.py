"""Documents, archives and odd bytes: what is left out, what is refused, and the way to mend it."""

import io
import sys
import tarfile
import zipfile

import pytest

from gptj_lab.corpora import archives, documents, reading
from gptj_lab.corpora.options import ReadingOptions
from gptj_lab.corpora.passages import ReadingNotes


def read(path, strict=False, **options):
    notes, found = ReadingNotes(strict=strict), []
    for passage in reading.passages(path, notes, ReadingOptions(**options)):
        if passage.begins:
            found.append("")
        found[-1] += passage.text
    return found, "\n".join(notes.sentences())


def zipped(members):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return packed.getvalue()


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<p>one</p><p>two<br>three</p>", "one\n\ntwo\nthree"),
        ("<pre>a\n  b</pre><ul><li>x</li><li>y</li></ul>", "a\n  b\n\nx\ny"),
        ("<table><tr><td>a<td>b<tr><td>c<td>d</table>", "a\tb\nc\td"),
        ("<nav>menu</nav><div role=banner>top</div><p>a &amp; b<p hidden>no", "a & b"),
        ("<article><header>I</header><p>story</p></article><aside>ad</aside>", "I\n\nstory"),
        ("<main>no</main><div>far more words than in the main part of it</div>",
         "no\n\nfar more words than in the main part of it"),
        ("<div>" * 1500 + "deep" + "</div>" * 1500, "deep"),
        ("<script>alert(1)</script><style>p {}</style>said", "said"),
    ],
)  # fmt: skip
def test_a_page_is_read_without_what_is_around_it(tmp_path, page, text):
    pytest.importorskip("bs4")
    path = tmp_path / "page.HTML"
    path.write_text(page)
    assert read(path)[0] == [text]


def test_the_encoding_of_a_page_is_the_one_that_it_names(tmp_path):
    pytest.importorskip("bs4")
    path = tmp_path / "page.html"
    path.write_bytes("<meta charset='windows-1251'><p>Море".encode("cp1251"))
    assert read(path)[0] == ["Море"]
    path.write_bytes("<p>Море".encode("koi8-r"))
    assert read(path, encoding="koi8-r")[0] == ["Море"]


def test_an_encrypted_pdf_one_of_pictures_and_a_damaged_one_are_sentences(tmp_path):
    pypdf = pytest.importorskip("pypdf")
    writer = pypdf.PdfWriter()
    writer.add_blank_page(100, 100)
    writer.write(tmp_path / "blank.pdf")
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(tmp_path / "locked.pdf")
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.4 nothing")
    (tmp_path / "good.txt").write_text("good")
    found, said = read(tmp_path)
    assert found == ["good"]
    assert (
        "an encrypted PDF, left out: save it without a password (qpdf --decrypt): locked.pdf"
        in said
    )
    assert (
        "a PDF of pictures without text, left out: OCR (ocrmypdf) adds the text: blank.pdf" in said
    )
    assert "a damaged document, read as far as it goes: bad.pdf (PdfStreamError" in said
    with pytest.raises(ValueError, match=r"blank.pdf: a PDF of pictures"):
        read(tmp_path / "blank.pdf", strict=True)


@pytest.mark.parametrize("name", ["a.docx", "a.odt", "a.epub"])
def test_documents_that_are_none_or_encrypted_are_sentences(tmp_path, name, monkeypatch):
    path = tmp_path / name
    path.write_bytes(b"\xd0\xcf\x11\xe0" + b"x" * 99)
    assert "an encrypted document, or one of an older kind" in read(path)[1]
    path.write_bytes(b"hello")
    assert "isn't of its ending's kind" in read(path)[1]
    monkeypatch.setattr(documents, "_LARGEST", 1 << 16)
    path.write_bytes(zipped({"word/document.xml": b"a" * (1 << 17)}))
    assert "unpacks to too much" in read(path)[1]


def test_a_missing_library_is_a_sentence_and_costs_one_file_of_a_folder(tmp_path, monkeypatch):
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    (tmp_path / "b.txt").write_text("good")
    monkeypatch.setitem(sys.modules, "pypdf", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs pypdf.*gptj_lab\[documents\]"):
        read(tmp_path / "a.pdf")
    found, said = read(tmp_path)
    assert found == ["good"] and "pip install 'gptj_lab[documents]'" in said


def test_no_path_leads_out_of_an_archive(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    evil = {
        "../out.txt": "x",
        "/out.txt": "x",
        "C:\\out.txt": "x",
        "..\\out.txt": "x",
        "ok.txt": "good",
    }
    (folder / "a.zip").write_bytes(zipped(evil))
    with tarfile.open(folder / "b.tar", "w") as packed:
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        packed.addfile(link)
    found, said = read(folder)
    assert found == ["good"] and "4 x a file of an archive whose path leads out of it" in said
    assert "a link in an archive, left out: b.tar: link.txt" in said
    assert not list(tmp_path.rglob("out.txt"))
    with pytest.raises(ValueError, match=r"a.zip: ../out.txt: a file of an archive"):
        read(folder, strict=True)


def test_a_bomb_is_left_out_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_SMALL", 1 << 16)
    path = tmp_path / "bomb.zip"
    path.write_bytes(zipped({"first.txt": "fine", "a.txt": b"\n" * (3 << 20)}))
    found, said = read(path)
    assert found == [] and "unpacks to too much, left out (more than" in said
    monkeypatch.setattr(archives, "_MEMBERS", 3)
    path.write_bytes(zipped({f"{i}.txt": "x" for i in range(5)}))
    assert "left out (more than 3 files)" in read(path)[1]


def test_archives_in_archives_are_read_two_deep(tmp_path):
    one = zipped({"a.txt": "deep"})
    two = zipped({"one.zip": one, "b.txt": "high"})
    path = tmp_path / "two.zip"
    path.write_bytes(two)
    assert sorted(read(path)[0]) == ["deep", "high"]
    path.write_bytes(zipped({"two.zip": two}))
    found, said = read(path)
    assert found == ["high"] and "too deep inside others" in said
    path.write_bytes(two[:-9])
    assert "a damaged archive" in read(path)[1]


def test_markdown_keeps_what_is_no_front_matter(tmp_path):
    path = tmp_path / "a.md"
    kept = "---\n# A rule and a heading\n\n---\nwords\n"
    for text, expected in {
        "---\ntitle: x\ntags:\n  - a\n---\nwords\n": "words\n",
        "+++\ntitle = 'x'\n+++\nwords": "words", kept: kept,
        "---\nnever closed\n": "---\nnever closed\n",
        "[i]: <data:image/png;base64,AAAA>\nwords ![pic][i]\n": "words ![pic][i]\n",
        "a <img src='data:image/png;base64,AAAA'> b\n": "a  b\n",
        "see data: here\n": "see data: here\n",
    }.items():  # fmt: skip
        path.write_text(text)
        assert read(path)[0] == [expected]


def test_subtitles_of_the_web(tmp_path):
    path = tmp_path / "a.vtt"
    path.write_text(
        "WEBVTT\n\nNOTE no\n\nSTYLE\n::cue {}\n\n00:01.000 --> 00:02.000 align:start\n<v Anna>Hi "
        "<00:01.500><c>you</c>\n\nb\n00:02.000 --> 00:03.000\nHi you\nthere\n"
    )
    assert read(path)[0] == ["Hi you\nthere"]


@pytest.mark.parametrize(
    ("data", "options", "text", "said"),
    [
        ("Привет".encode("koi8-r"), dict(encoding="koi8-r"), "Привет", ""),
        ("The lamp was lit. ".encode("utf-16-le"), {}, "The lamp was lit. ", "UTF-16-LE"),
        (b"ok\n" * 30 + b"bad\0\n" + b"ok\n", {}, "ok\n" * 31, "t.txt line 31"),
        (b"ok\n" * 30 + "é".encode() * 3 + b"\xff\n", {}, "ok\n" * 30, "t.txt line 31"),
        (b"one line with \0 a hole", {}, "one line with  a hole", "NULs, read without them"),
        ("Маяк стоял на скале, и ветер не утихал. ".encode("cp1251") * 4, {},
         "Маяк стоял на скале, и ветер не утихал. " * 4, "read as cp1251, "),
        ("Grüße aus München, schöne Tage. ".encode("cp1252") * 9, {},
         "Grüße aus München, schöne Tage. " * 9, "read as Windows-1252 (sure by"),
        ("吾輩は猫である。名前はまだ無い。".encode("shift_jis") * 9, {},
         "吾輩は猫である。名前はまだ無い。" * 9, "read as cp932, Japanese"),
    ],
)  # fmt: skip
def test_bytes_of_other_encodings_and_damage(tmp_path, data, options, text, said):
    pytest.importorskip("charset_normalizer")
    path = tmp_path / "t.txt"
    path.write_bytes(data)
    found, sentences = read(path, **options)
    assert found == [text] and said in sentences and bool(said) == bool(sentences)


def test_without_charset_normalizer_it_is_windows_1252(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "charset_normalizer", None)
    path = tmp_path / "t.txt"
    path.write_bytes("“naïve” café, ".encode("cp1252") * 20)
    found, said = read(path)
    assert found == ["“naïve” café, " * 20] and "read as Windows-1252 (not sure" in said


@pytest.mark.parametrize(
    ("table", "documents", "said"),
    [
        ("Question;Answer\nWhat, now?;4,50\n", ["What, now?\nAnswer: 4,50"],
         "separated by semicolons"),
        ("q\ta\none\ttwo\n", ["one\nAnswer: two"], "separated by tabs"),
        ("prompt|answer\na, b|c\n", ["a, b\nAnswer: c"], "separated by bars"),
        ("A long line without any name in it\nanother one\n",
         ["A long line without any name in it", "another one"], "a line of names, read as text"),
        ("What is there to be seen?,Sea\nWho?,I\n",
         ["What is there to be seen?\nAnswer: Sea", "Who?\nAnswer: I"],
         "read as prompt and answer"),
        ("A long line without any name,b,c\nx,y,z\n", [], "write a first line with a name"),
        ("Frage,Antwort\nWer?,Ich\n", [], "prompt_field=... and answer_field=..."),
    ],
)  # fmt: skip
def test_tables_however_they_are_separated(tmp_path, table, documents, said):
    path = tmp_path / "t.csv"
    path.write_text(table)
    found, sentences = read(path)
    assert found == documents and said in sentences
