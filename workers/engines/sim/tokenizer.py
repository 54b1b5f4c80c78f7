"""The simulated engine's tokenizer, vocabulary, chat template and stop strings. Pure and cheap.

A token is a space and up to three bytes of the UTF-8 text, or up to four bytes of a longer word; its id is
those bytes behind a leading 1, which makes it reversible. So texts that share words share tokens, and what
was generated, three-letter words, comes back as the same tokens in the next turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

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


class StopScanner:
    """Text up to the first stop string; holds back what may be the beginning of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._keep = max(map(len, stop), default=1) - 1
        self._pending = ""

    def push(self, text: str, *, last: bool) -> tuple[str, str | None]:
        """Returns the text that is safe to show, and the stop string that ended it."""
        self._pending += text
        found = [(at, stop) for stop in self._stop if (at := self._pending.find(stop)) >= 0]
        if found:
            at, stop = min(found)
            return self._pending[:at], stop
        safe = len(self._pending) if last else max(0, len(self._pending) - self._keep)
        text, self._pending = self._pending[:safe], self._pending[safe:]
        return text, None
