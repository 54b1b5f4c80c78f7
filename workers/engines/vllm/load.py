"""How vLLM reads weights: the words that each supported version knows for it.

Pure, and imports neither torch nor vllm: the launcher checks a plan with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

FORMAT, STRATEGY, EXTRA = "load_format", "safetensors_load_strategy", "model_loader_extra_config"

STRATEGIES = {"0.32.0": ("lazy", "eager", "prefetch", "torchao")}
FORMATS = {
    "0.32.0": (
        *("auto", "hf", "dummy", "fastsafetensors", "instanttensor", "ipc_cache", "mistral", "modelexpress"),
        *("npcache", "pt", "runai_streamer", "runai_streamer_sharded", "safetensors", "sharded_state", "tensorizer"),
    )
}


def load_faults(args: Mapping[str, Any], version: str) -> Iterator[tuple[str, str]]:
    """(flag, what is wrong with it). Of a version that is not in the tables nothing is known."""
    for flag, tables in ((FORMAT, FORMATS), (STRATEGY, STRATEGIES)):
        known = tables.get(version)
        if known is not None and flag in args and args[flag] not in known:
            yield flag, f"vLLM {version} knows no {args[flag]!r}; known: {', '.join(known)}"
    extra = args.get(EXTRA)
    if isinstance(extra, Mapping) and extra.get("enable_multithread_load") and args.get(STRATEGY, "lazy") != "lazy":
        yield STRATEGY, f"{args[STRATEGY]} does not go with {EXTRA}.enable_multithread_load; use one of the two"
