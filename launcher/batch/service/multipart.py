"""An uploaded form: its fields and its one file.

Pure.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_BOUNDARY = re.compile(rb'boundary="?([^";,]+)"?', re.IGNORECASE)
_NAME = re.compile(rb'[; ]name="([^"]*)"')
_FILENAME = re.compile(rb'filename="([^"]*)"')


class Form(NamedTuple):
    fields: dict[str, str]
    filename: str | None
    content: bytes


def read_form(content_type: bytes, body: bytes) -> Form | None:
    """None: it is not a form."""
    boundary = _BOUNDARY.search(content_type)
    if boundary is None or not content_type.lower().startswith(b"multipart/form-data"):
        return None
    fields: dict[str, str] = {}
    filename, content = None, b""
    for part in (b"\r\n" + body).split(b"\r\n--" + boundary[1])[1:-1]:
        head, _, value = part.partition(b"\r\n\r\n")
        name = _NAME.search(head)
        if name is None:
            return None
        if name[1] == b"file":
            given = _FILENAME.search(head)
            filename, content = (given[1] if given else b"file").decode(errors="replace"), value
        else:
            fields[name[1].decode(errors="replace")] = value.decode(errors="replace")
    return Form(fields, filename, content)
