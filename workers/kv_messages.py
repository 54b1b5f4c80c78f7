"""The messages on where the KV lies: `protocol` says who may be sent which.

A list of block hashes (`workers.digest.chains`) travels as bytes, little-endian uint64 each.
"""

from __future__ import annotations

from workers.message import Message

# ---------------------------------------------------------------- worker -> proxy


class PromptTrace(Message, frozen=True, tag="prompt_trace"):
    """The block hashes of a leg's prompt (`workers.digest.chains`), before its answer. Not of a decode leg."""

    rid: int
    chain: bytes  # of the full blocks
    num_prompt_tokens: int


class Computed(Message, frozen=True, tag="computed"):
    """A whole or decode leg has its first token, but its answer cannot begin: else that says the same (`Start`)."""

    rid: int
    num_prompt_tokens: int
    num_cached_tokens: int  # of these; those that were handed over count among them


class Digest(Message, frozen=True, tag="digest"):
    """Which blocks the engine's prefix cache holds, to a proxy that wants to know.

    A snapshot replaces what was told before. Others continue the one numbered before them, in the same epoch. A new
    epoch, which begins with a snapshot, says that the engine's cache was cleared or that events were lost for good.
    """

    dp_rank: int
    epoch: int
    seq: int
    added: bytes
    removed: bytes = b""
    snapshot: bool = False
    age_s: float = 0.0  # of the oldest change in it, when it left


AboutPrompts = PromptTrace | Computed | Digest

# ---------------------------------------------------------------- proxy -> worker


class DigestWanted(Message, frozen=True, tag="digest_wanted"):
    """To a host: tell the digest, a snapshot first. Said once, and again where what was told does not fit together."""

    dp_rank: int
