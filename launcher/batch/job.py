"""What a batch is asked to do: the configuration's `batch`, checked.

Pure but for the clock's zone. All faults are told at once.
"""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from launcher.refusal import Refused
from launcher.schema import BatchConfig, BatchOrder

_SPAN = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_UNITS_S = (86400, 3600, 60, 1)


class BatchJob(msgspec.Struct, frozen=True, kw_only=True):
    inputs: tuple[str, ...]
    output: Path
    errors: Path | None
    in_order: bool
    parameters: dict[str, Any]
    deadline: float | None  # unix time


def read_job(config: BatchConfig, now: float) -> BatchJob:
    """Raises Refused."""
    faults = []
    given = [config.input] if isinstance(config.input, str) else config.input
    if not isinstance(given, list) or not given or not all(isinstance(path, str) and path for path in given):
        faults.append("batch.input: give a file, a glob, or a list of them: batch.input=prompts.jsonl")
    if not config.output:
        faults.append("batch.output: give the file that the results go to: batch.output=results.jsonl")
    try:
        deadline = None if config.deadline is None else read_deadline(config.deadline, now)
    except ValueError:
        told = "is neither a time like 2026-05-01T08:00 nor a span like 3h30m"
        faults.append(f"batch.deadline: {config.deadline!r} {told}")
    if faults:
        raise Refused(faults)
    assert isinstance(given, list)
    return BatchJob(
        inputs=tuple(given),
        output=Path(str(config.output)),
        errors=None if config.errors is None else Path(config.errors),
        in_order=config.order is BatchOrder.input,
        parameters=dict(config.parameters),
        deadline=deadline,
    )


def read_deadline(text: str, now: float) -> float:
    """Raises ValueError."""
    match = _SPAN.fullmatch(text)
    if match and text:
        return now + sum(int(part or 0) * unit for part, unit in zip(match.groups(), _UNITS_S, strict=True))
    return datetime.fromisoformat(text).timestamp()
