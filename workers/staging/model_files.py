"""Which files of a model's folder an engine needs, and what tells two versions of them apart.

Reads folders, changes nothing. The same files give the same name on every node, so that engines which hand KV over
agree on the model's path; other files give another name, and such engines do not exchange KV.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

SAFETENSORS = ".safetensors"
# The same weights once more, in forms that are read only where there are no safetensors or load_format asks.
OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ot")
OTHER_FOLDERS = ("original", "onnx", "gguf")
SAFETENSORS_FORMATS = ("auto", "hf", "safetensors")


class ModelFile(msgspec.Struct, frozen=True):
    """What a copy is compared by."""

    name: str  # below the model's folder
    size: int
    mtime_ns: int


def model_files(folder: Path, load_format: str = "auto") -> tuple[ModelFile, ...]:
    """Sorted by name. Raises OSError naming the file that cannot be opened."""
    found = sorted(_walk(folder, ""), key=lambda file: file.name)
    if load_format in SAFETENSORS_FORMATS and any(file.name.endswith(SAFETENSORS) for file in found):
        found = [file for file in found if not file.name.endswith(OTHER_WEIGHTS)]
    for file in found:
        (folder / file.name).open("rb").close()
    return tuple(found)


def _walk(folder: Path, prefix: str) -> Iterator[ModelFile]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if entry.name not in OTHER_FOLDERS:
                    yield from _walk(folder / entry.name, f"{prefix}{entry.name}/")
                continue
            status = entry.stat()  # of what a link leads to
            yield ModelFile(prefix + entry.name, status.st_size, status.st_mtime_ns)


def staged_name(source: Path, files: tuple[ModelFile, ...]) -> str:
    """By the files' names, sizes and times: weights that are edited in place get a folder of their own."""
    name = source.parent.parent.name if source.parent.name == "snapshots" else source.name
    return f"{name}-{hashlib.sha256(msgspec.json.encode(files)).hexdigest()[:12]}"


def is_copied(folder: Path, file: ModelFile) -> bool:
    """A file has its name and time only once all of it is there."""
    try:
        status = (folder / file.name).stat()
    except FileNotFoundError:
        return False
    return (status.st_size, status.st_mtime_ns) == (file.size, file.mtime_ns)
