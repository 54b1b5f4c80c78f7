"""A host's own load figures: how much work it has, whose it is, and what each proxy was told of it.

Pure. Every proxy is told of the whole with each beat. Where several send work, each also hears soon what
the others' share has become: so they keep one count of a worker without talking to each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from workers.protocol import Load

SHARED_INTERVAL_S = 0.05  # how soon a proxy hears of a change in the others' work, and how often at most
Others = tuple[int, int, int]


@dataclass(slots=True)
class Work:
    """What one proxy has given to this host, or all of them."""

    running: int = 0
    waiting: int = 0
    decodes: int = 0  # whole and decode legs among these
    prefill_tokens: int = 0
    pinned_blocks: int = 0

    def add(self, other: Work) -> None:
        self.running += other.running
        self.waiting += other.waiting
        self.decodes += other.decodes
        self.prefill_tokens += other.prefill_tokens
        self.pinned_blocks += other.pinned_blocks


class LoadReports:
    """What each proxy was last told of the others."""

    def __init__(self) -> None:
        self._told: dict[str, Others] = {}

    def due(
        self, work: Mapping[str, Work], kv_tokens_received: int, kv_used: float, proxies: Iterable[str], *, beat: bool
    ) -> list[tuple[str, Load]]:
        """What to tell whom. `work` is by proxy, and may be of one that has gone."""
        total = Work()
        for share in work.values():
            total.add(share)
        whole = _whole(total, kv_tokens_received, kv_used)
        loads = {proxy: _without(whole, total, work.get(proxy, Work())) for proxy in proxies}
        due = [(proxy, load) for proxy, load in loads.items() if beat or _others(load) != self._told.get(proxy)]
        self._told = {proxy: _others(load) for proxy, load in loads.items()}
        return due


def _whole(total: Work, kv_tokens_received: int, kv_used: float) -> Load:
    """The engine's KV gauge is as old as its last step: what nobody uses is free."""
    holds_kv = total.running or total.waiting or total.pinned_blocks
    return Load(
        running=total.running,
        waiting=total.waiting,
        pinned_blocks=total.pinned_blocks,
        prefill_tokens=total.prefill_tokens,
        kv_tokens_received=kv_tokens_received,
        kv_used=kv_used if holds_kv else 0.0,
    )


def _without(whole: Load, total: Work, own: Work) -> Load:
    return msgspec.structs.replace(
        whole,
        other_decodes=total.decodes - own.decodes,
        other_prefill_tokens=total.prefill_tokens - own.prefill_tokens,
        other_pinned_blocks=total.pinned_blocks - own.pinned_blocks,
    )


def _others(load: Load) -> Others:
    return load.other_decodes, load.other_prefill_tokens, load.other_pinned_blocks
