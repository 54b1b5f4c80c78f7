"""From one line of input to one request, or to what is wrong with it, in OpenAI's words.

Pure. Owns which lines are understood: OpenAI's batch lines, and plain lines with a prompt or messages, whose further
keys are the body's. A body travels on byte for byte where it is complete.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
LEAD_BYTES = 4096  # by which requests are compared for a shared beginning
DEFAULT_OUTPUT_TOKENS = 256
MAX_ID_CHARS = 512

Raw = msgspec.Raw
_NOTHING = Raw(b"")


class Request(msgspec.Struct, frozen=True):
    """`lead`: what its prompt begins with."""

    ordinal: int
    key: bytes
    custom_id: str
    url: str
    body: bytes
    lead: bytes
    max_tokens: int


class BadLine(msgspec.Struct, frozen=True):
    """`custom_id`: where the line has one that can be read."""

    ordinal: int
    key: bytes
    code: str
    message: str
    custom_id: str | None = None


class Defaults(msgspec.Struct, frozen=True):
    """Of bodies: which model, and what plain lines do not say themselves. `url`: the only one that lines may have."""

    model: str
    parameters: dict[str, Any] = {}
    url: str | None = None


class _Line(msgspec.Struct):
    custom_id: Any = None
    method: Any = None
    url: Any = None
    body: Raw = _NOTHING
    prompt: Raw = _NOTHING
    messages: Raw = _NOTHING


class _Body(msgspec.Struct):
    model: Any = None
    stream: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    prompt: Raw = _NOTHING
    messages: Raw = _NOTHING
    input: Raw = _NOTHING


class _Wrong(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_body = msgspec.json.Decoder(_Body).decode
_INPUT_OF = {URLS[0]: "messages", URLS[1]: "prompt", URLS[2]: "input"}


def read_line(text: bytes, ordinal: int, defaults: Defaults) -> Request | BadLine:
    custom_id = None
    try:
        try:
            line = _decode_line(text)
        except msgspec.DecodeError as error:
            raise _Wrong("invalid_json_line", f"not a JSON object: {error}") from None
        custom_id = _custom_id(line, ordinal)
        url, raw = (line.url, bytes(line.body)) if line.body or line.url is not None else _plain(line, text, defaults)
        if line.body or line.url is not None:
            _check_form(line)
        if url != (defaults.url or url):
            raise _Wrong("invalid_url", f"url must be the batch's endpoint, {defaults.url}, not {url}")
        return _request(ordinal, custom_id, url, raw, defaults)
    except _Wrong as wrong:
        return bad_line(ordinal, text, wrong.code, str(wrong), custom_id)


def bad_line(ordinal: int, text: bytes, code: str, message: str, custom_id: str | None = None) -> BadLine:
    return BadLine(ordinal, _key(ordinal, b"", text), code, message, custom_id)


def _custom_id(line: _Line, ordinal: int) -> str:
    given = line.custom_id
    if given is None and line.url is None and not line.body:
        return f"request-{ordinal + 1}"
    if not isinstance(given, str) or not 0 < len(given) <= MAX_ID_CHARS:
        raise _Wrong("invalid_custom_id", f"custom_id must be a string of 1 to {MAX_ID_CHARS} characters")
    return given


def _check_form(line: _Line) -> None:
    if line.method != "POST":
        raise _Wrong("invalid_method", f"method must be POST, not {line.method!r}")
    if line.url not in URLS:
        raise _Wrong("invalid_url", f"url must be one of {', '.join(URLS)}, not {line.url!r}")
    if not line.body:
        raise _Wrong("missing_body", "body is missing")


def _plain(line: _Line, text: bytes, defaults: Defaults) -> tuple[str, bytes]:
    if bool(line.prompt) == bool(line.messages):
        raise _Wrong("invalid_request", "needs either custom_id, method, url and body, or a prompt, or messages")
    fields = {**defaults.parameters, **msgspec.json.decode(text)}
    fields.pop("custom_id", None)
    return URLS[0] if line.messages else URLS[1], msgspec.json.encode(fields)


def _request(ordinal: int, custom_id: str, url: str, raw: bytes, defaults: Defaults) -> Request:
    try:
        body = _decode_body(raw)
    except msgspec.DecodeError as error:
        raise _Wrong("invalid_body", f"body is not a JSON object: {error}") from None
    if body.stream:
        raise _Wrong("invalid_request", "body.stream: a batch has whole answers; leave it out")
    prompt: Raw = getattr(body, _INPUT_OF[url])
    if not prompt:
        raise _Wrong("invalid_request", f"body.{_INPUT_OF[url]} is missing")
    if body.model is None:
        inside = raw.strip()[1:]
        raw = b'{"model":%b,%b' % (msgspec.json.encode(defaults.model), inside)
    lead = url.encode() + bytes(memoryview(prompt)[:LEAD_BYTES])
    asked = body.max_completion_tokens or body.max_tokens
    max_tokens = asked if isinstance(asked, int) and asked > 0 else DEFAULT_OUTPUT_TOKENS
    return Request(ordinal, _key(ordinal, url.encode(), raw), custom_id, url, raw, lead, max_tokens)


def _key(ordinal: int, url: bytes, content: bytes) -> bytes:
    """Content, parameters and ordinal: results of other ones are never taken for this one's."""
    digest = hashlib.blake2b(b"%d\0%b\0" % (ordinal, url), digest_size=16)
    digest.update(content)
    return digest.digest()
