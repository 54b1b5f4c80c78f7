"""What no router can beat: each prompt on an engine that does nothing else, with all that was ever computed cached.

Pure.
"""

from __future__ import annotations

import statistics
from collections import OrderedDict
from collections.abc import Sequence

from launcher.twin.card import Card
from launcher.twin.traces import Request, leading


def ttft_mean_s(requests: Sequence[Request], card: Card) -> float:
    seen: OrderedDict[int, None] = OrderedDict()
    times = []
    for request in requests:
        num_cached = min(leading(request.chain, seen) * card.block_size, request.num_prompt - 1)
        times.append(alone_s(request.num_prompt - num_cached, card))
        seen.update(dict.fromkeys(request.chain))
    return statistics.fmean(times)


def alone_s(num_tokens: int, card: Card) -> float:
    full, rest = divmod(num_tokens, card.max_num_batched_tokens)
    return full * card.timing.pass_s(card.max_num_batched_tokens, 0, 0.0) + card.timing.pass_s(rest, 0, 0.0)
