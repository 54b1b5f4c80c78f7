"""What a prompt's bytes are known by: keyed hashes of its leading parts, so that prompts that share bytes share keys.

Pure; knows no tokenizer and no template. A body's other fields come first: two bodies share keys only where all of
them are equal, but for those that do not change the prompt. A field that is not known is one that does. Hashes are
keyed by a secret of the process, so nobody outside can aim at equal ones.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

import msgspec

Raw = msgspec.Raw

# Of every engine and route: how to sample, what to return and how, and who asks. None of them is seen by a template.
HARMLESS = frozenset(
    {
        "frequency_penalty",
        "ignore_eos",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_output_tokens",
        "max_tokens",
        "metadata",
        "min_p",
        "min_tokens",
        "n",
        "presence_penalty",
        "priority",
        "prompt_cache_key",
        "repetition_penalty",
        "request_id",
        "safety_identifier",
        "seed",
        "service_tier",
        "session_id",
        "stop",
        "stop_sequences",
        "stop_token_ids",
        "store",
        "stream",
        "stream_interval",
        "stream_options",
        "temperature",
        "top_k",
        "top_logprobs",
        "top_p",
        "user",
    }
)
# The field that grows from one prompt to the next, by route. Routes that are not here do not generate.
REGIONS = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/messages": "messages",
    "/v1/responses": "input",
}
# With these the engine leaves a part of the prompt out: its beginning is not the beginning of the bytes.
TRUNCATING = frozenset({"truncate_prompt_tokens", "truncation_side", "truncation"})
_NOT_TRUNCATED = frozenset({b"null", b'"disabled"'})

# Beyond these nothing is looked at: the work on one body stays at a few milliseconds, whatever is in it.
MAX_REGION_BYTES = 4 << 20
MAX_PARTS = 4096
MAX_COMMAS = 65536


def _grid() -> list[int]:
    """Where long texts are cut: each part is a kilobyte, or a 16th to a 32nd of what comes before it."""
    ends = [MIN_PART]
    while ends[-1] < MAX_REGION_BYTES:
        ends.append(ends[-1] + max(MIN_PART, 1 << ends[-1].bit_length() >> 5))
    return ends


MIN_PART = 1024
_GRID = _grid()
_END = b"\0"  # of a message: no byte of JSON text

_fields = msgspec.json.Decoder(dict[str, Raw])
_items: msgspec.json.Decoder[list[Any]] = msgspec.json.Decoder(list[Raw])


class PromptKey(msgspec.Struct, frozen=True):
    """`hashes[i]` stands for the first `ends[i]` bytes of what grows, and for all that comes before it."""

    hashes: list[int]
    ends: list[int]
    num_bytes: int  # of what grows, also where it is too long to have a hash
    context_bytes: int  # of what comes before it


def fields_of(body: bytes) -> dict[str, Raw]:
    """Empty where the engine refuses it. Of a field that is there twice the last counts, as it does for the engine."""
    try:
        return _fields.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


def prompt_key(secret: bytes, path: str, query: bytes, fields: Mapping[str, Raw]) -> PromptKey | None:
    """None where leading bytes say nothing of leading tokens, or the engine refuses the body."""
    grows = REGIONS[path]
    text = _text(bytes(fields.get(grows, b"")), itemized=path != "/v1/completions")
    if text is None or (not TRUNCATING.isdisjoint(fields) and _is_cut(fields)):
        return None
    others = [(name, bytes(value)) for name, value in fields.items() if name not in HARMLESS and name != grows]
    others.sort()
    context = msgspec.msgpack.encode((path, query, others))
    ends = _ends(text)
    return PromptKey(_hashes(hash(secret + context), text, ends), ends, len(text), len(context))


def _is_cut(fields: Mapping[str, Raw]) -> bool:
    return any(bytes(fields[name]) not in _NOT_TRUNCATED for name in TRUNCATING & fields.keys())


def _text(region: bytes, *, itemized: bool) -> bytes | None:
    """A list's messages, with an end after each but the last; else what it is. None: the engine refuses it."""
    if region[:1] not in (b'"', b"["):
        return None
    if region[:1] == b'"' or not itemized or len(region) > MAX_REGION_BYTES:
        return region[:-1]  # a longer one may go on here
    if len(region) > MAX_COMMAS and region.count(b",") > MAX_COMMAS:
        return region[:-1]
    return _END.join(_items.decode(region))


def _ends(text: bytes) -> list[int]:
    """Of what comes before, of all messages and of the grid's parts."""
    size = min(len(text), MAX_REGION_BYTES)
    ends = [0, *_GRID[: bisect_left(_GRID, size)], size]
    end = text.find(_END, 0, size)
    while end >= 0 and len(ends) < MAX_PARTS:
        ends.append(end)
        end = text.find(_END, end + 1, size)
    ends.sort()
    return ends


def _hashes(root: int, text: bytes, ends: list[int]) -> list[int]:
    hashes: list[int] = []
    node, past = root, 0
    for end in ends:
        node = hash((node, text[past:end]))
        hashes.append(node)
        past = end
    return hashes
