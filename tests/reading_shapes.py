"""Small files of every shape that text comes in, made by real writers; and the table of them.

`python tests/reading_shapes.py docs/what_is_read.md` writes the table. The chats' forms are those
that gptj_lab/corpora/chat_texts.py and chat_exports.py name.
"""

import csv
import functools
import io
import json
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

STORY = "The lamp was lit. A ship came in from the sea, and nobody was on board."
ASKED = [
    ("Name a colour.", "Red, like the lamp of the port side."),
    ("Who keeps the light?", "Old Marta keeps it, and has for years."),
]
CHAT = [
    ("2024-03-05 20:14:33", "Anna", "Are you awake?"),
    ("2024-03-05 20:15:01", "Ben", "Barely.\nThe storm keeps me up."),
    ("2024-03-05 20:15:40", "Ben", "You?"),
    ("2024-03-14 08:00:00", "Anna", "Good morning from the harbour!"),
    ("2024-03-14 08:02:10", "Ben", "Morning. Coffee first."),
]


def _pairs(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{prompt: asked, answer: answered} for asked, answered in ASKED]


def _write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
    path.write_text(text, "utf-8")
    return path


def _table(path: Path, rows: list[list[Any]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def plain_text(folder: Path) -> Path:
    return _write(folder / "story.txt", STORY + "\n")


def old_encoding(folder: Path) -> Path:
    path = folder / "alt.txt"
    path.write_bytes(
        ("Маяк стоял на скале. Море шумело, и ветер не утихал всю ночь. " * 3).encode("cp1251")
    )
    return path


def utf_16(folder: Path) -> Path:
    path = folder / "notepad.txt"
    path.write_bytes(STORY.encode("utf-16"))
    return path


def damaged_text(folder: Path) -> Path:
    path = folder / "damaged.txt"
    good = [f"{i}. {STORY}".encode() for i in range(1, 30)]
    path.write_bytes(b"\n".join([*good[:14], b"a torn \xff\xfe line", b"a \0\0 hole", *good[14:]]))
    return path


def markdown(folder: Path) -> Path:
    picture = "![a lamp](data:image/png;base64," + "iVBORw0KGgo" * 200 + ")"
    return _write(
        folder / "post.md",
        f"---\ntitle: Light\ntags: [sea]\n---\n# Light\n\n{picture}\n\n{STORY}\n",
    )


def source_code(folder: Path) -> Path:
    return _write(folder / "main.rs", 'fn main() {\n    println!("ahoy");\n}\n')


def subtitles(folder: Path) -> Path:
    return _write(
        folder / "film.srt",
        "1\n00:00:01,000 --> 00:00:03,000\n<i>Ship ahoy!</i>\n\n2\n00:00:03,500 --> 00:00:06,000\n"
        "Who is there?\nAnswer me.\n",
    )


def notebook(folder: Path) -> Path:
    import nbformat
    from nbformat import v4

    ran = v4.new_output("stream", text="an output that isn't read\n")
    cells = [v4.new_markdown_cell("# Tides"), v4.new_code_cell("print(2 * 6)", outputs=[ran])]
    path = folder / "tides.ipynb"
    nbformat.write(v4.new_notebook(cells=cells), path)
    return path


def json_lines(folder: Path) -> Path:
    lines = [json.dumps(row) for row in _pairs("Question", "Answer")]
    return _write(
        folder / "rows.jsonl", "\n".join([lines[0], '{"Question": "cut', lines[1]]) + "\n"
    )


def json_array(folder: Path) -> Path:
    text = json.dumps(_pairs("instruction", "response"), indent=1)
    broken = ',\n {\n  "instruction": "What is "broken"?",\n  "response": "This row."\n }\n]'
    return _write(folder / "array.json", text[:-2] + broken)


def json_data(folder: Path) -> Path:
    return _write(folder / "data.json", {"version": 1, "data": _pairs("input", "output")})


def json_columns(folder: Path) -> Path:
    prompts, answers = zip(*ASKED, strict=True)
    return _write(folder / "columns.json", {"Q": list(prompts), "A": list(answers)})


def pandas_json(folder: Path) -> Path:
    import pandas

    path = folder / "pandas.json"
    pandas.DataFrame(_pairs("prompt", "completion")).to_json(path)
    return path


def squad(folder: Path) -> Path:
    asked = {
        "question": "What was lit?",
        "id": "1",
        "answers": [{"text": "The lamp", "answer_start": 0}],
    }
    paragraphs = [{"context": STORY, "qas": [asked]}]
    return _write(folder / "squad.json", {"data": [{"title": "Sea", "paragraphs": paragraphs}]})


def numbers(folder: Path) -> Path:
    rows = [{"question": "2 + 2", "answer": 4}, {"question": "10 / 4", "answer": 2.5}]
    return _write(folder / "numbers.json", rows)


def semicolons(folder: Path) -> Path:
    rows = [["Question", "Answer"], *ASKED, ["Price; in euros?", "4,50"]]
    return _table(folder / "excel.csv", rows, ";")


def without_names(folder: Path) -> Path:
    asked = [("What does the keeper do at night?", "She trims the lamp.")]
    return _table(folder / "nameless.csv", [*asked, *ASKED])


def dolly(folder: Path) -> Path:
    names = ["instruction", "context", "response", "category"]
    row = ["What came in?", STORY, "A ship.", "closed_qa"]
    return _table(folder / "dolly.tsv", [names, row], "\t")


def open_orca(folder: Path) -> Path:
    import pyarrow
    from pyarrow import parquet

    path = folder / "orca.parquet"
    rows = [
        {
            "id": "a1",
            "system_prompt": "You are a sailor.",
            "question": ASKED[0][0],
            "response": ASKED[0][1],
        }
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def feather(folder: Path) -> Path:
    import pandas

    path = folder / "rows.feather"
    pandas.DataFrame({"text": [STORY, STORY[::-1]]}).to_feather(path)
    return path


def saved_data_set(folder: Path) -> Path:
    import datasets

    datasets.disable_progress_bars()
    split = datasets.Dataset.from_list(_pairs("question", "answer"))
    path = folder / "saved"
    datasets.DatasetDict(train=split, test=split).save_to_disk(path)
    return path


def preferences(folder: Path) -> Path:
    row = {"prompt": "Say hello.", "chosen": "Ahoy!", "rejected": "No."}
    return _write(folder / "pairs.jsonl", json.dumps(row) + "\n")


def share_gpt(folder: Path) -> Path:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ahoy!"}]
    return _write(folder / "sharegpt.json", [{"id": "1", "conversations": turns}])


def data_frame(folder: Path) -> Any:
    import pandas

    return pandas.DataFrame(
        {**{"Prompt": [a for a, _ in ASKED]}, "Response": [b for _, b in ASKED]}
    )


def arrow_table(folder: Path) -> Any:
    import pyarrow

    return pyarrow.table({"text": [STORY]})


def generator(folder: Path) -> Any:
    return (f"{number}. {STORY}" for number in range(2))


def whatsapp_android(folder: Path) -> Path:
    lines = ["05/03/2024, 20:00 - Messages and calls are end-to-end encrypted. Tap to learn more."]
    for moment, who, words in CHAT:
        day = f"{moment[8:10]}/{moment[5:7]}/{moment[:4]}"
        lines.append(f"{day}, {moment[11:16]} - {who}: {words}")
    lines.insert(3, "05/03/2024, 20:15 - Anna: <Media omitted>")
    return _write(folder / "WhatsApp Chat with Ben.txt", "\n".join(lines) + "\n")


def whatsapp_ios(folder: Path) -> Path:
    lines = ["[3/5/24, 8:14:00\u202fPM] Ben: \u200eMessages and calls are end-to-end encrypted."]
    for moment, who, words in CHAT:
        hour = int(moment[11:13])
        clock = f"{(hour - 1) % 12 + 1}{moment[13:]}\u202f{'PM' if hour >= 12 else 'AM'}"
        lines.append(f"[{int(moment[5:7])}/{int(moment[8:10])}/24, {clock}] {who}: {words}")
    lines.append("\u200e[3/14/24, 8:03:00\u202fAM] Anna: \u200eimage omitted")
    path = folder / "WhatsApp Chat - Ben.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("_chat.txt", "\r\n".join(lines))
        packed.writestr("IMG-1.jpg", b"\xff\xd8")
    return path


def telegram(folder: Path) -> Path:
    messages: list[dict[str, Any]] = [
        {
            "id": 1,
            "type": "service",
            "date": "2024-03-05T20:00:00",
            "actor": "Anna",
            "action": "create_group",
        }
    ]
    for number, (moment, who, words) in enumerate(CHAT, 2):
        text: Any = [words, {"type": "bold", "text": "!"}] if number == 2 else words
        messages.append({
            "id": number, "type": "message", "date": moment.replace(" ", "T"), "from": who,
            "from_id": f"user{len(who)}", "text": text,
        })  # fmt: skip
    return _write(
        folder / "result.json",
        {"name": "Ben", "type": "personal_chat", "id": 7, "messages": messages},
    )


def discord(folder: Path) -> Path:
    messages = [
        {"id": str(number), "type": "Default", "timestamp": f"{moment.replace(' ', 'T')}.123+00:00",
         "content": words, "author": {"id": who, "name": who.lower(), "nickname": who}}
        for number, (moment, who, words) in enumerate(CHAT)
    ]  # fmt: skip
    messages.append({**messages[0], "type": "GuildMemberJoin", "content": "Joined the server."})
    export = {
        "guild": {"id": "1", "name": "Sea"},
        "channel": {"id": "2", "name": "harbour"},
        "messages": messages,
    }
    return _write(folder / "discord.json", export)


def discord_csv(folder: Path) -> Path:
    rows = [
        [len(who), who, f"{moment.replace(' ', 'T')}.0000000+00:00", words, "", ""]
        for moment, who, words in CHAT
    ]
    return _table(
        folder / "discord.csv",
        [["AuthorID", "Author", "Date", "Content", "Attachments", "Reactions"], *rows],
    )


def discord_text(folder: Path) -> Path:
    rule = "=" * 62
    said = "".join(
        f"[{m[8:10]}/{m[5:7]}/{m[:4]} {m[11:16]}] {who}\n{words}\n\n\n" for m, who, words in CHAT
    )
    head = f"{rule}\nGuild: Sea\nChannel: Text / harbour\n{rule}\n\n"
    return _write(folder / "discord.txt", f"{head}{said}{rule}\nExported 5 message(s)\n{rule}\n")


def slack(folder: Path) -> Path:
    import datetime

    people = {"Anna": "U1", "Ben": "U2"}
    days: dict[str, list[dict[str, Any]]] = {}
    for moment, who, words in CHAT:
        at = datetime.datetime.fromisoformat(moment + "+00:00").timestamp()
        days.setdefault(moment[:10], []).append(
            {
                "type": "message",
                "user": people[who],
                "text": words.replace("You?", "You, <@U1>?"),
                "ts": f"{at:.6f}",
            }
        )
    days["2024-03-05"].append(
        {"type": "message", "subtype": "channel_join", "user": "U2", "text": "joined", "ts": "1"}
    )
    path = folder / "slack.zip"
    with zipfile.ZipFile(path, "w") as packed:
        users = [
            {"id": number, "name": who.lower(), "profile": {"real_name": who}}
            for who, number in people.items()
        ]
        packed.writestr("users.json", json.dumps(users))
        packed.writestr("channels.json", json.dumps([{"id": "C1", "name": "harbour"}]))
        for day, messages in days.items():
            packed.writestr(f"harbour/{day}.json", json.dumps(messages))
    return path


def web_page(folder: Path) -> Path:
    return _write(
        folder / "page.html",
        "<html><head><title>Sea</title><style>p {}</style></head><body><nav><a>Home</a></nav>"
        "<header>Our site</header><main><h1>The light</h1><p>The <b>lamp</b>\nwas lit.</p>"
        "<ul><li>one</li><li>two</li></ul></main><footer>Cookies</footer><script>var x = 1"
        "</script></body></html>",
    )


def word(folder: Path) -> Path:
    import docx

    made = docx.Document()
    made.add_heading("The light", 1)
    made.add_paragraph(STORY)
    table = made.add_table(1, 2)
    table.cell(0, 0).text, table.cell(0, 1).text = "lamp", "red"
    path = folder / "story.docx"
    made.save(str(path))
    return path


def open_document(folder: Path) -> Path:
    import odfdo

    made = odfdo.Document("text")
    made.body.clear()
    made.body.append(odfdo.Header(1, "The light"))
    made.body.append(odfdo.Paragraph(STORY))
    path = folder / "story.odt"
    made.save(str(path))
    return path


def pdf(folder: Path) -> Path:
    import matplotlib
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.figure import Figure

    figure = Figure()
    for line, words in enumerate(STORY.split(". ")):
        figure.text(0.1, 0.8 - 0.1 * line, words)
    path = folder / "story.pdf"
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        FigureCanvasPdf(figure).print_pdf(path)
    return path


def epub(folder: Path) -> Path:
    """As EPUB 3.3 says: the type first, a container, a package, its pages in the spine's order."""
    path = folder / "book.epub"
    page = "<html xmlns='http://www.w3.org/1999/xhtml'><body><h1>{}</h1><p>{}</p></body></html>"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("mimetype", "application/epub+zip")
        packed.writestr(
            "META-INF/container.xml",
            "<container><rootfiles><rootfile full-path='OPS/book.opf'/></rootfiles></container>",
        )
        packed.writestr(
            "OPS/book.opf",
            "<package><manifest><item id='b' href='two.xhtml'/><item id='a' href='one.xhtml'/>"
            "</manifest><spine><itemref idref='a'/><itemref idref='b'/></spine></package>",
        )
        packed.writestr("OPS/two.xhtml", page.format("Two", "Nobody was on board."))
        packed.writestr("OPS/one.xhtml", page.format("One", "The lamp was lit."))
    return path


def archive(folder: Path) -> Path:
    path = folder / "all.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("texts/a.txt", STORY)
        packed.writestr("texts/b.jsonl", json.dumps({"text": "A row in an archive."}))
        packed.writestr("texts/c.xlsx", b"PK")
    return path


def tar_archive(folder: Path) -> Path:
    import tarfile

    path = folder / "all.tar.gz"
    with tarfile.open(path, "w:gz") as packed:
        info = tarfile.TarInfo("notes/a.rst")
        info.size = len(STORY)
        packed.addfile(info, io.BytesIO(STORY.encode()))
    return path


# What it is called, what makes it, and how it is read.
SHAPES: list[tuple[str, Callable[[Path], Any], dict[str, str]]] = [
    ("text", plain_text, {}), ("text in an old encoding", old_encoding, {}),
    ("text of Windows' Notepad (UTF-16)", utf_16, {}), ("damaged text", damaged_text, {}),
    ("Markdown", markdown, {}), ("source code", source_code, {}), ("subtitles", subtitles, {}),
    ("notebook", notebook, {}), ("JSON lines, one broken", json_lines, {}),
    ("JSON array, one row broken", json_array, {}), ("JSON below `data`", json_data, {}),
    ("JSON columns", json_columns, {}), ("pandas' to_json", pandas_json, {}),
    ("SQuAD", squad, {}), ("numbers as answers", numbers, {}),
    ("CSV with semicolons", semicolons, {}), ("CSV without names", without_names, {}),
    ("Dolly (TSV)", dolly, {}), ("OpenOrca (Parquet)", open_orca, {}), ("Feather", feather, {}),
    ("save_to_disk", saved_data_set, {}), ("preference pairs", preferences, {}),
    ("ShareGPT", share_gpt, {}), ("pandas DataFrame", data_frame, {}),
    ("pyarrow Table", arrow_table, {}), ("generator", generator, {}),
    ("WhatsApp (Android)", whatsapp_android, {}),
    ("WhatsApp (iOS, zip), --me Ben", whatsapp_ios, {"me": "Ben"}),
    ("Telegram, --me Ben", telegram, {"me": "Ben"}),
    ("Discord (JSON), --me Ben", discord, {"me": "Ben"}),
    ("Discord (CSV), --me Ben", discord_csv, {"me": "Ben"}),
    ("Discord (text), --me Ben", discord_text, {"me": "Ben"}),
    ("Slack (zip), --me Ben", slack, {"me": "Ben"}), ("web page", web_page, {}),
    ("Word", word, {}), ("OpenDocument", open_document, {}), ("PDF", pdf, {}), ("EPUB", epub, {}),
    ("zip", archive, {}), ("tar.gz", tar_archive, {}),
]  # fmt: skip


def first_window(found: Any) -> str:
    """The first window's text, what the loss is on in » «, where it isn't all."""
    tokenizer, (batch,) = found.tokenizer, [found.train.batch(np.array([0]))]
    tokens, weights = batch.tokens[0], batch.weights[0]
    count = int(max(i for i, weight in enumerate(batch.segments[0]) if weight) + 2)
    text, inside, part = "", False, []
    trained = [False, *(bool(weight) for weight in weights)]
    everything = all(trained[1:count])
    for token, counts in zip(tokens[:count], trained[:count], strict=True):
        if counts != inside and not everything:
            text += tokenizer.decode(part) + ("»" if counts else "«")
            part, inside = [], counts
        part.append(int(token))
    text += tokenizer.decode(part) + ("«" if inside else "")
    return text.replace("\n", "⏎")


@functools.cache
def _gpt2() -> Any:
    from gptj_lab.tokenizer import Tokenizer

    return Tokenizer.gpt2()


def row(name: str, make: Callable[[Path], Any], options: dict[str, str]) -> str:
    """The table's line of one shape."""
    from gptj_lab.finetuning import corpus

    with tempfile.TemporaryDirectory() as folder:
        made = corpus.prepare(
            make(Path(folder)), _gpt2(), context=64, held_out=0.0,
            cache=Path(folder) / "cache", **options,
        )  # fmt: skip
        report = made.doctor()
        told = " ".join(made.train.store.notes.sentences())
        cells = [name, report.documents, report.tokens, told, f"`` {first_window(made)} ``"]
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def table() -> str:
    """The shapes in a table: documents, tokens, what was told, the first window."""
    lines = [
        "# What is read, and what it becomes",
        "Small files of forty shapes, made by `tests/reading_shapes.py` with the libraries that "
        "write such files, and read by `gptj_lab.finetuning.corpus.prepare` with GPT-2's "
        "tokenizer. In the first window ⏎ is a line end, and the loss is on what stands in » «, or "
        "on all. `make what-is-read` writes this page; a test holds it.",
        "",
        "| what | documents | tokens | told | the first window |",
        "|---|---|---|---|---|",
        *(row(*shape) for shape in SHAPES),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(table(), "utf-8")
