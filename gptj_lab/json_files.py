"""JSON files of a checkpoint (config.json, generation_config.json), with what is wrong in them."""

import codecs
import json
from pathlib import Path
from typing import Any


def read_file(path: Path) -> dict[str, Any]:
    """The fields in a config.json; of a name that is there twice the last, as json has it.

    Raises:
        ValueError: the file is not JSON, or not an object.
    """
    return parsed(path.read_bytes(), str(path))


def parsed(content: bytes, where: str) -> dict[str, Any]:
    """The fields in the bytes of a JSON file, such as config.json.

    Raises:
        ValueError: it is not JSON in UTF-8, or not an object; the message says where and the fix.
    """
    try:
        fields = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        is_utf16 = content.startswith(marks) or b"\0" in content[:2]
        raise ValueError(
            f"{where} is not a JSON file in UTF-8 ("
            + ("it is in UTF-16" if is_utf16 else f"byte {error.start} is none of it")
            + "): save it as UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        if not content.strip():
            raise ValueError(f"{where} is not a JSON file, it is empty: copy it again") from None
        if b"\0" in content[:4]:
            raise ValueError(
                f"{where} is not a JSON file in UTF-8 (it holds NULs, as UTF-16 does): save it as "
                "UTF-8"
            ) from None
        raise ValueError(
            f"{where} is not a JSON file: {error.msg} at line {error.lineno}, column "
            f"{error.colno}; correct it there (JSON has no comments and no comma after the last "
            "field), or copy it again"
        ) from None
    except (ValueError, RecursionError) as error:  # a number without end, or nested too deeply
        raise ValueError(f"{where} is not a JSON file ({error}): correct it there") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{where} holds a {type(fields).__name__}: a JSON object is needed")
    return fields
