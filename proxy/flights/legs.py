"""Which requests may be split over a prefill and a decode worker, and what the proxy reads of a body.

Pure. Everything that a hand-over does not carry exactly runs whole on one worker; so does everything
unknown. The host enforces the same below the OpenAI layer: this rule only avoids the detour.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from proxy.routes import Route

_NULL = msgspec.Raw(b"null")


class BodyFields(msgspec.Struct):
    """The few fields that are read; types as loose as clients are, for the engine does the judging."""

    model: Any = None
    stream: Any = None
    n: Any = None
    best_of: Any = None
    use_beam_search: Any = None
    prompt_logprobs: Any = None
    echo: Any = None
    prompt: Any = None  # a text is left to the engine: TEXT
    prompt_embeds: Any = None
    background: Any = None
    previous_response_id: Any = None


class _Whole(BodyFields):
    """As it is read of a body that was not taken apart."""

    prompt: msgspec.Raw = _NULL


TEXT = ""  # in place of any
_READ = frozenset(BodyFields.__struct_fields__) - {"prompt"}
_NOT_YET: Mapping[str, msgspec.Raw] = {}
_decoder = msgspec.json.Decoder(_Whole)
_decode = msgspec.json.Decoder().decode
_QUOTE = ord('"')
# Other modalities are served whole: *_url, *_embeds, input_audio. A false match only costs the split.
_TYPED_PART = b'"type"'
_MEDIA = (b'_url"', b'_embeds"', b'"input_audio"')


class BadBody(ValueError):
    """The body is not a JSON object; the message says where."""


def read_body(body: bytes, taken_apart: Mapping[str, msgspec.Raw] = _NOT_YET) -> BodyFields:
    """Of what was taken apart already, only what is read is looked at again. Raises BadBody."""
    try:
        if taken_apart:
            fields = BodyFields(**{name: _decode(value) for name, value in taken_apart.items() if name in _READ})
            fields.prompt = _prompt(taken_apart.get("prompt", _NULL))
        else:
            fields = _decoder.decode(body)
            fields.prompt = _prompt(fields.prompt)
        return fields
    except msgspec.ValidationError:
        raise BadBody("the request body must be a JSON object") from None
    except msgspec.DecodeError as fault:
        raise BadBody(f"the request body is not valid JSON: {fault}") from None
    except UnicodeDecodeError:
        raise BadBody("the request body is not valid UTF-8") from None
    except RecursionError:
        raise BadBody("the request body is nested too deeply") from None


def _prompt(value: msgspec.Raw) -> Any:
    """Of a text nothing but that it is one: making it costs as much as all else here."""
    return TEXT if memoryview(value)[0] == _QUOTE else _decode(value)


def whole_because(route: Route, fields: BodyFields, body: bytes) -> str | None:
    """Why this request must run on one worker; None where it may be split."""
    if not route.split:
        return f"{route.path} is not split"
    if fields.n not in (None, 1) or fields.best_of not in (None, 1):
        return "several sequences"
    if fields.use_beam_search:
        return "beam search"
    if fields.prompt_logprobs is not None or fields.echo:
        return "log probabilities of the prompt"
    if not _one_prompt(fields.prompt):
        return "several prompts"
    if fields.prompt_embeds is not None:
        return "prompt embeddings"
    return "multimodal" if fields.prompt is None and _has_media(body) else None


def _has_media(body: bytes) -> bool:
    """Most bodies cost one search: the parts of a message have types, a message of text alone has none."""
    return _TYPED_PART in body and any(kind in body for kind in _MEDIA)


def _one_prompt(prompt: Any) -> bool:
    """A string, or one list of token ids; chat has none."""
    if prompt is None or isinstance(prompt, str):
        return True
    return isinstance(prompt, list) and bool(prompt) and all(type(token) is int for token in prompt)


def stateful_because(fields: BodyFields) -> str | None:
    """What only a server that remembers could do."""
    if fields.background:
        return "background"
    return "previous_response_id" if fields.previous_response_id is not None else None
