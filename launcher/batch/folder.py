"""Where a batch keeps its state: a folder beside its output, `OUTPUT.batch/`.

Owns the paths and nothing else.
"""

from __future__ import annotations

from pathlib import Path


class BatchDir:
    """Of one output file."""

    def __init__(self, output: Path) -> None:
        self.output = output.expanduser().absolute()
        self.path = self.output.with_name(f"{self.output.name}.batch")
        self.results = self.path / "results.log"
        self.manifest = self.path / "batch.json"
        self.summary = self.path / "summary.json"

    @property
    def errors(self) -> Path:
        """Where no other place is given."""
        name = self.output.name
        stem = name.removesuffix(".jsonl")
        return self.output.with_name(f"{stem}.errors.jsonl")
