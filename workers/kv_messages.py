"""The messages on where the KV lies: `protocol` says who may be sent which.

A list of block hashes (`workers.chains`) travels as bytes, little-endian uint64 each.
"""

from __future__ import annotations

from workers.message import Message

# ---------------------------------------------------------------- worker -> proxy


class PromptTrace(Message, frozen=True, tag="prompt_trace"):
    """The block hashes of a leg's prompt (`workers.chains`), before its answer. Not of a decode leg."""

    rid: int
    chain: bytes  # of the full blocks
    num_prompt_tokens: int
