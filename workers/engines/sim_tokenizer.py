"""The simulated engine's tokenizer, chat template and vocabulary. Pure, reversible, and cheap.

A token is a space and up to three bytes, or up to four bytes of a longer word, of the UTF-8 text; its id
is those bytes behind a leading 1. So texts that share words share tokens, and generated text, which is
made of three-letter words, comes back as the same tokens in the next turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_PIECES = re.compile(rb" [^ ]{0,3}|[^ ]{1,4}").findall
_WORDS = [
    int.from_bytes(b"\x01 " + bytes((a, b, c)))
    for a in b"bdfghklmnprstvwz"
    for b in b"aeiou"
    for c in b"bdfglmnprstvwxz"
]


def encode(text: str) -> list[int]:
    return [int.from_bytes(b"\x01" + piece) for piece in _PIECES(text.encode())]


def decode(token_ids: Iterable[int]) -> str:
    """Raises ValueError naming the first id that is none of ours."""
    return b"".join(map(_piece, token_ids)).decode(errors="replace")


def _piece(token_id: int) -> bytes:
    data = token_id.to_bytes((token_id.bit_length() + 7) // 8) if 1 << 8 <= token_id < 2 << 32 else b""
    if data[:1] != b"\x01":
        raise ValueError(f"Token id {token_id} is out of vocabulary")
    return data[1:]


def next_token(state: int) -> int:
    """The rule that stands for the model: always a word, so that any output is valid text."""
    return _WORDS[(state >> 16) % len(_WORDS)]


def render_chat(messages: Iterable[tuple[str, str]]) -> str:
    """The chat template: roles and contents, then the assistant's turn."""
    return "".join(f"<|{role}|> {content} <|end|>\n" for role, content in messages) + "<|assistant|>"
