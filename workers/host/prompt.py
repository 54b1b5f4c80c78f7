"""A prompt as an engine computes it, and what is told of it: the hashes of its blocks.

Pure. An engine adapter makes the `Prompt`, the host tells the proxy that asked for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from workers.digest.chains import Hasher, Media, extras
from workers.kv_messages import PromptTrace


class Prompt(NamedTuple):
    """All that its blocks' KV depends on."""

    token_ids: Sequence[int]
    lora: str | None = None
    salt: str | None = None
    media: Sequence[Media] = ()


def trace_of(prompt: Prompt, rid: int, hasher: Hasher, block_size: int) -> PromptTrace:
    num_tokens = len(prompt.token_ids)
    others = extras(num_tokens // block_size, block_size, prompt.lora, prompt.salt, prompt.media)
    return PromptTrace(rid, hasher.packed_chain(prompt.token_ids, block_size, others), num_tokens)
