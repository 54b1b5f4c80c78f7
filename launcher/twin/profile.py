"""Measured points of an engine, in the npz format that profilers share, and the step model fitted to them.

Owns the names and units of that format: milliseconds, tokens per second and GPU, KV use as a part of `max_kv_tokens`.
All of a file's faults are told at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import msgspec
import numpy
from numpy.typing import NDArray

from launcher.twin.step_model import StepModel

Points = NDArray[numpy.float64]
PREFILL = ("prefill_isl", "prefill_ttft", "prefill_thpt_per_gpu")
DECODE = ("x_kv_usage", "y_context_length", "z_itl", "z_thpt_per_gpu")
MAX_KV_TOKENS = "max_kv_tokens"
MIN_POINTS = 3
ROUNDS = 5


class BadProfile(Exception):
    """The message names the file and the key."""


class Profile(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    prefill_isl: Points
    prefill_ttft: Points
    prefill_thpt_per_gpu: Points
    x_kv_usage: Points
    y_context_length: Points
    z_itl: Points
    z_thpt_per_gpu: Points
    max_kv_tokens: int

    @property
    def num_gpus(self) -> int:
        """By what both throughputs say."""
        return round(float(numpy.median(self.prefill_isl / self.prefill_ttft * 1000 / self.prefill_thpt_per_gpu)))


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    model: StepModel
    prefill_error: float  # medians over the points, parts of what was measured
    decode_error: float


def write(path: Path, profile: Profile) -> None:
    with path.open("wb") as file:
        arrays: dict[str, Any] = {name: numpy.atleast_1d(getattr(profile, name)) for name in Profile.__struct_fields__}
        numpy.savez(file, **arrays)


def read(path: Path) -> Profile:
    """One file, or a folder with a file for each half. Raises BadProfile, OSError."""
    files = sorted(path.rglob("*.npz")) if path.is_dir() else [path]
    found: dict[str, Points] = {}
    for file in files:
        found |= _arrays(file)
    if faults := list(_faults(found)):
        raise BadProfile("\n".join(f"{path}: {fault}" for fault in faults))
    points = {name: found[name] for name in (*PREFILL, *DECODE)}
    return Profile(**points, max_kv_tokens=int(found[MAX_KV_TOKENS][0]))


def _arrays(file: Path) -> dict[str, Points]:
    try:
        with numpy.load(file, allow_pickle=False) as loaded:
            return {name: numpy.asarray(loaded[name], dtype=numpy.float64).reshape(-1) for name in loaded.files}
    except (BadZipFile, ValueError, EOFError, AttributeError):
        raise BadProfile(f"{file}: is not an npz file of numbers") from None


def _faults(found: dict[str, Points]) -> Iterator[str]:
    for names in (PREFILL, DECODE, (MAX_KV_TOKENS,)):
        missing = [name for name in names if name not in found]
        yield from (f"{name}: is missing" for name in missing)
        if missing:
            continue
        sizes = {name: found[name].size for name in names}
        least = 1 if names == (MAX_KV_TOKENS,) else MIN_POINTS
        if len(set(sizes.values())) > 1 or min(sizes.values()) < least:
            counts = ", ".join(f"{name}: {size}" for name, size in sizes.items())
            yield f"{counts} points; {least} or more, as many each"
        for name in names:
            if not (numpy.isfinite(found[name]).all() and (found[name] > 0).all()):
                yield f"{name}: has values that are not above 0"


def fit(profile: Profile, budget: int) -> Fit:
    """`budget`: prompt tokens per step, as it was measured. Errors of small values weigh as much as of large ones."""
    isl, ttft_s = profile.prefill_isl, profile.prefill_ttft / 1000
    chunks = numpy.stack([numpy.ceil(isl / budget), isl, isl * isl / 2], axis=1)
    prefill = _nonnegative(chunks, ttft_s)
    kv_tokens = profile.x_kv_usage * profile.max_kv_tokens
    decodes = kv_tokens / profile.y_context_length
    itl_s = profile.z_itl / 1000
    steps = numpy.stack([numpy.ones_like(decodes), decodes, kv_tokens], axis=1)
    more_s = numpy.zeros_like(itl_s)  # where computing the tokens takes longer than reading the weights
    for _ in range(ROUNDS):
        decode = _nonnegative(steps, itl_s - more_s)
        weights_s = max(0.0, decode[0] - prefill[0])
        more_s = numpy.clip(prefill[1] * decodes - weights_s, 0.0, 0.9 * itl_s)
    fixed_s = min(prefill[0], decode[0])
    model = StepModel(
        fixed_s=fixed_s,
        weights_s=decode[0] - fixed_s,
        token_s=prefill[1],
        pair_s=prefill[2],
        read_s=decode[2],
        sequence_s=decode[1],
        chunk_s=prefill[0] - fixed_s,
        source="profile",
    )
    return Fit(
        model=model, prefill_error=_error(chunks, prefill, ttft_s), decode_error=_error(steps, decode, itl_s - more_s)
    )


def _nonnegative(columns: Points, values: Points) -> list[float]:
    """Least squares of relative errors; a term that would be negative is left out."""
    weighted = columns / values[:, None]
    used = list(range(columns.shape[1]))
    while True:
        found = numpy.linalg.lstsq(weighted[:, used], numpy.ones_like(values), rcond=None)[0]
        if (found >= 0).all():
            terms = dict(zip(used, found.tolist(), strict=True))
            return [terms.get(column, 0.0) for column in range(columns.shape[1])]
        del used[int(found.argmin())]


def _error(columns: Points, terms: list[float], values: Points) -> float:
    return float(numpy.median(numpy.abs(columns @ numpy.array(terms) / values - 1)))
