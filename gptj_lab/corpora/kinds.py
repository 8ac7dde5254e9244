"""Which files are read, by the ending of their names, and what to do with those that aren't."""

TEXTS = (".txt", ".text", ".rst", ".tex", ".adoc", ".log", ".org")
MARKDOWN = (".md", ".markdown", ".mdx", ".qmd", ".rmd")
SUBTITLES = (".srt", ".vtt")
LINES = (".jsonl", ".ndjson")
JSON = (".json",)
SEPARATED = (".csv", ".tsv", ".psv")
ARROW = (".parquet", ".arrow", ".feather", ".ipc")
RECORDS = (".tfrecords", ".tfrecord", ".index")
WEB = (".html", ".htm", ".xhtml")
DOCUMENTS = (".docx", ".odt", ".epub", ".pdf")
NOTEBOOKS = (".ipynb",)
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
CODE = (
    ".py", ".pyi", ".js", ".mjs", ".cjs", ".jsx", ".ts", ".tsx", ".java", ".kt", ".kts", ".scala",
    ".groovy", ".gradle", ".c", ".h", ".cc", ".cpp", ".cxx", ".hh", ".hpp", ".cu", ".cs", ".fs",
    ".vb", ".go", ".rs", ".zig", ".nim", ".d", ".swift", ".m", ".mm", ".rb", ".php", ".pl", ".pm",
    ".lua", ".r", ".jl", ".f", ".f90", ".f95", ".for", ".pas", ".ada", ".adb", ".ads", ".hs",
    ".ml", ".mli", ".elm", ".clj", ".cljs", ".ex", ".exs", ".erl", ".lisp", ".el", ".scm", ".rkt",
    ".dart", ".sql", ".sh", ".bash", ".zsh", ".fish", ".ps1", ".bat", ".asm", ".s", ".v", ".sv",
    ".vhd", ".tcl", ".awk", ".vim", ".css", ".scss", ".sass", ".less", ".vue", ".svelte", ".xml",
    ".yaml", ".yml", ".toml", ".ini", ".cfg", ".conf", ".cmake", ".mk", ".proto", ".graphql", ".tf",
    ".sol",
)  # fmt: skip

# A text that ends so is a file's name, blanks or not; "see main.c" or a site.org may be a text.
UNMISTAKABLE = (
    *TEXTS[:-1], *MARKDOWN, *SUBTITLES, *LINES, *JSON, *SEPARATED, *ARROW, *RECORDS, *WEB,
    *DOCUMENTS, *NOTEBOOKS, *ARCHIVES, ".py",
)  # fmt: skip
KINDS = (*UNMISTAKABLE, ".org", *CODE)
_PACKABLE = (*TEXTS, *MARKDOWN, *SUBTITLES, *LINES, *JSON, *SEPARATED, *CODE)
_PACKINGS = (".gz", ".zst")

SHOWN = (
    "texts (.txt, .md, .rst, .tex, .srt, source code), rows (.jsonl, .json, .csv, .tsv, .parquet, "
    ".arrow), documents (.html, .epub, .docx, .odt, .pdf, .ipynb), TFRecords, and .zip or .tar.gz "
    "of these; texts and rows also as .gz or .zst"
)

_PICTURE = "pictures aren't read: OCR (ocrmypdf, tesseract) makes text of them"
_SOUND = "sound isn't read: a transcriber (whisper) makes .srt or .txt of it"
_UNPACK = "unpack it and give the folder, or pack it as .zip"
_PICKLED = "pickles can run code and are never opened: save the data as .parquet or .jsonl"
_SHEET = "save the sheet as .csv"
_DATABASE = "export the table as .csv (sqlite3 -header -csv FILE 'select * from ...')"
_HINTS = {
    (".xlsx", ".xls", ".xlsm", ".ods", ".numbers"): _SHEET,
    (".doc", ".rtf", ".pages", ".docm", ".wpd", ".wps", ".dot"): "save it as .docx or .txt",
    (".mobi", ".azw", ".azw3", ".fb2", ".djvu", ".lit"): "convert it to .epub or .txt (Calibre)",
    (".ppt", ".pptx", ".odp", ".key", ".xps", ".ps", ".eps"): "save it as .pdf",
    (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".heic"): _PICTURE,
    (".mp3", ".wav", ".m4a", ".ogg", ".opus", ".flac", ".mp4", ".mkv", ".webm", ".mov"): _SOUND,
    (".7z", ".rar", ".tar.zst", ".xz", ".bz2"): _UNPACK,
    (".pkl", ".pickle", ".pt", ".pth", ".joblib", ".npy", ".npz"): _PICKLED,
    (".db", ".sqlite", ".sqlite3", ".mdb", ".accdb"): _DATABASE,
    (".eml", ".msg", ".mbox", ".pst"): "save the messages as .txt or .html",
    (".avro", ".orc", ".h5", ".hdf5"): "save the table as .parquet",
}  # fmt: skip


def kind_of(name: str) -> str | None:
    """The ending that a file is read by, in lower case and without .gz or .zst; None of others.

    >>> kind_of("Tales.TXT.gz"), kind_of("a.tar.gz"), kind_of("a.png")
    ('.txt', '.tar.gz', None)
    """
    name = name.lower()
    for ending in ARCHIVES:
        if name.endswith(ending):
            return ending
    unpacked = name
    for packing in _PACKINGS:
        unpacked = unpacked.removesuffix(packing)
    dot = unpacked.rfind(".")
    ending = unpacked[dot:] if dot >= 0 else ""
    if ending not in (_PACKABLE if unpacked != name else KINDS):
        return None
    return ending


def advice(name: str) -> str:
    """What makes a file readable that isn't, in a few words."""
    name = name.lower()
    for endings, words in _HINTS.items():
        if name.endswith(endings):
            return words
    return "give it the ending of one of these if it is one, such as .txt"
