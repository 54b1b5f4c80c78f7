"""What a batch's results are of: model and parameters, beside the keys that each result carries.

Owns `batch.json` in a batch's folder, and the comparison when the batch is run again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from launcher.batch.survey import Changed
from workers.spec import write_json


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`model_path`: what the name stands for, where that is known."""

    model: str
    model_path: str = ""
    parameters: dict[str, Any] = {}


def settle(path: Path, now: Manifest, *, has_results: bool) -> None:
    """Raises Changed where the results there are were made with other settings."""
    before = _read(path)
    if before == now:
        return
    if before is not None and has_results:
        old, new = _flat(before), _flat(now)
        changes = [
            f"{key} was {old.get(key)!r}, is {new.get(key)!r}" for key in {**old, **new} if old.get(key) != new.get(key)
        ]
        raise Changed(f"there are results with other settings: {'; '.join(changes)}")
    write_json(path, now)


def _flat(manifest: Manifest) -> dict[str, Any]:
    fields = msgspec.to_builtins(manifest)
    return {**{f"batch.parameters.{key}": value for key, value in fields.pop("parameters").items()}, **fields}


def _read(path: Path) -> Manifest | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        return None
