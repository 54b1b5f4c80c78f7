"""What is known of a request's prompt when it arrives, and what its engine tells of it later.

Pure. Joins a body's keys and the memory of earlier prompts; a prompt that is token ids already needs neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from proxy.flights.flight import LegRecord
from proxy.prefixes.prefix_index import marks_of
from proxy.prefixes.prompt_key import HARMLESS, REGIONS, PromptKey, Raw, prompt_key
from proxy.prefixes.prompt_trace import Known, PromptBook
from proxy.spec import ProxySpec
from workers.digest.chains import Hasher
from workers.kv_messages import PromptTrace
from workers.protocol import Capabilities

# Besides these and what is harmless, a field may change what the engine computes for token ids.
_WITH_TOKEN_IDS = HARMLESS | {"model", "prompt"}


class Seen(msgspec.Struct, frozen=True):
    """With a `key` something can be learnt from the engine: it is to tell the prompt's blocks."""

    known: Known | None
    key: PromptKey | None


NOTHING_SEEN = Seen(None, None)


class Prompts:
    def __init__(self, spec: ProxySpec, secret: bytes, hasher: Hasher) -> None:
        self._hasher = hasher
        self.book = PromptBook(spec.limits.max_prompt_trace_bytes, spec.routing.bytes_per_token)
        self._secret = secret
        self._own_models = spec.models

    def look(
        self, path: str, query: bytes, fields: Mapping[str, Raw], model: Any, prompt: Any, loaded: Capabilities
    ) -> Seen:
        """`fields` are the body's, of which two are read already; `loaded` is what any engine says of itself."""
        if path not in REGIONS:
            return NOTHING_SEEN
        if isinstance(prompt, list) and path == "/v1/completions":
            return self._look_at_ids(fields, model, prompt, loaded)
        key = prompt_key(self._secret, path, query, fields)
        return NOTHING_SEEN if key is None else Seen(self.book.find(key, loaded.block_size), key)

    def _look_at_ids(self, fields: Mapping[str, Raw], model: Any, ids: list[Any], loaded: Capabilities) -> Seen:
        """The engine takes them as they are. An adapter's blocks have the adapter in their hashes."""
        own = model is None or model in self._own_models
        if not own or len(ids) > loaded.max_model_len or not fields.keys() <= _WITH_TOKEN_IDS:
            return NOTHING_SEEN
        try:
            hashes = self._hasher.chain(ids, loaded.block_size)
        except TypeError:  # several prompts, or no tokens
            return NOTHING_SEEN
        return Seen(Known(len(ids), hashes, marks_of(hashes)), None)

    def traced(self, leg: LegRecord | None, trace: PromptTrace) -> None:
        """The word of the worker that computes it. None: the leg is over."""
        if leg is not None and leg.flight.prompt is not None and leg.worker.capabilities is not None:
            block_size = leg.worker.capabilities.block_size
            self.book.learn(leg.flight.prompt, trace.chain, trace.num_prompt_tokens, block_size)
