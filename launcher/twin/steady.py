"""What a fleet has that has kept up for long, and a replay begins with: answers in flight, as its requests come for
less time than long answers take, and what its proxy has learnt of its engines.

Pure. How many there are is where what arrives and how fast steps are then agree.
"""

from __future__ import annotations

import itertools
import math
import statistics
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from launcher.twin.card import Card
from launcher.twin.needs import Load, prefills_s
from launcher.twin.traces import Request
from proxy.fleet.rates import Line, Mean, Rates

CLOSE = 0.01  # answers


class Underway(NamedTuple):
    request: Request
    num_made: int  # tokens of its answer


def underway(requests: Sequence[Request], num: int) -> list[Underway]:
    """So many at a moment taken by chance: a long answer is met more often than a short one, anywhere in it. Of their
    prompts only what several have is known: else who comes would find a copy of itself cached."""
    num_having = Counter(itertools.chain.from_iterable(request.chain for request in requests))
    gaps = [request.num_output - 1 for request in requests]
    step = sum(gaps) / max(1, num)
    found: list[Underway] = []
    at = step / 2
    for request, gap in zip(requests, gaps, strict=True):
        while at < gap and len(found) < num:
            shared = itertools.takewhile(lambda block: num_having[block] > 1, request.chain)
            found.append(Underway(replace(request, chain=array("Q", shared)), 1 + int(at)))
            at += step
        at -= gap
    return found


def num_underway(card: Card, load: Load, num_workers: int, prompts: float) -> int:
    """On all of these workers. `prompts`: the part of prompts that they compute, each in a step of its own."""
    most = min(card.max_num_seqs, int(card.kv_tokens / load.own_context))
    each_s = statistics.fmean(prefills_s(card, load))
    chunk_steps = prompts * load.rate / num_workers  # per second
    num, before = 0.0, -1.0
    while num - before > CLOSE and num < most:
        before, num = num, min(most, load.tokens_per_s / num_workers * _itl_s(card, load, num, chunk_steps, each_s))
    return round(num_workers * num)


def _itl_s(card: Card, load: Load, num: float, chunk_steps: float, each_s: float) -> float:
    """Of `num` answers: the time that prompts leave is for steps without."""
    model = card.model
    assert model is not None
    alone_s = model.decode_step_s(math.ceil(num), num * load.context)
    left = 1 - chunk_steps * (each_s + model.token_s * num)
    return 1 / (chunk_steps + left / alone_s) if left > 0 else math.inf


def learnt_rates(card: Card, requests: Sequence[Request]) -> Rates:
    model = card.model
    assert model is not None
    mean = max(2, round(statistics.fmean(request.num_prompt for request in requests)))
    half_s, whole_s = (model.prefill_s(num, 0, card.max_num_batched_tokens) for num in (mean // 2, mean))
    prefill_s = (whole_s - half_s) / (mean - mean // 2)
    transfer_s = card.timing.kv_bytes(1) / card.link_bytes_per_s
    step_s = model.read_s + (model.token_s + model.sequence_s) / mean
    gaps = [request.num_output - 1 for request in requests if request.num_output > 1] or [1]
    return Rates(
        prefill=Line(max(0.0, whole_s - prefill_s * mean), prefill_s),
        transfer=Line(transfer_s, transfer_s),
        step=Line(model.fixed_s + model.weights_s, step_s),
        answer_tokens=Mean(statistics.fmean(request.num_output for request in requests)),
        answer_share=Mean(statistics.fmean(1 / gap for gap in gaps)),
    )
