"""Where uploaded files, results and batches lie in the run folder: `batches/`.

Owns these files. Everything may block; an object is written whole or not at all.
"""

from __future__ import annotations

import secrets
import threading
from pathlib import Path

import msgspec

from launcher.batch.folder import BatchDir
from launcher.batch.service.objects import BatchObject, FileObject
from workers.spec import write_json


class Shelf:
    """Of one run."""

    def __init__(self, path: Path) -> None:
        self._files = path / "files"
        self._batches = path / "batches"
        self._saving = threading.Lock()
        for folder in (path, self._files, self._batches):
            folder.mkdir(mode=0o700, exist_ok=True)

    # ------------------------------------------------------------ files

    def add_file(self, content: bytes, owner: str, filename: str, purpose: str, now: float) -> FileObject:
        id_ = f"file-{secrets.token_hex(12)}"
        (self._files / id_).write_bytes(content)
        return self._describe(id_, owner, filename, purpose, now)

    def adopt_file(self, path: Path, id_: str, owner: str, now: float) -> FileObject:
        """A file that a batch has written becomes one of its owner's."""
        path.rename(self._files / id_)
        return self._describe(id_, owner, f"{id_}.jsonl", "batch_output", now)

    def _describe(self, id_: str, owner: str, filename: str, purpose: str, now: float) -> FileObject:
        size = self.content(id_).stat().st_size
        made = FileObject(id=id_, owner=owner, bytes=size, created_at=int(now), filename=filename, purpose=purpose)
        write_json(self._files / f"{id_}.json", made)
        return made

    def content(self, id_: str) -> Path:
        return self._files / id_

    def files(self) -> list[FileObject]:
        return [msgspec.json.decode(path.read_bytes(), type=FileObject) for path in self._files.glob("file-*.json")]

    def delete_file(self, id_: str) -> None:
        (self._files / f"{id_}.json").unlink(missing_ok=True)
        self.content(id_).unlink(missing_ok=True)

    # ------------------------------------------------------------ batches

    def batches(self) -> list[BatchObject]:
        return [msgspec.json.decode(path.read_bytes(), type=BatchObject) for path in self._batches.glob("batch_*.json")]

    def save(self, batch: BatchObject) -> None:
        with self._saving:
            write_json(self._batches / f"{batch.id}.json", batch)

    def folder(self, batch: BatchObject) -> BatchDir:
        return BatchDir(self._batches / f"{batch.id}.jsonl")
