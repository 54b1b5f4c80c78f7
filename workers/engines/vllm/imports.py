"""`python -m workers.engines.vllm.imports`: imports what the adapter imports, and says how long that took.

Loads no model and starts no process. What breaks here would break every worker's load, minutes later.
"""

from __future__ import annotations

import importlib
import sys
import time

import msgspec

MARK = "SLUICE-IMPORTS "
MODULES = (
    "vllm.v1.engine.async_llm",
    "vllm.entrypoints.launchers.app",
    "vllm.entrypoints.launchers.api_server.app_state",
    "vllm.entrypoints.launchers.cli_args",
)


class Imports(msgspec.Struct, frozen=True, kw_only=True):
    seconds: float
    fault: str = ""


def import_all() -> Imports:
    started = time.monotonic()
    fault = ""
    try:
        for module in MODULES:
            importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 (whatever a binary package raises on a foreign node is the fact)
        fault = f"{type(error).__name__}: {error}"
    return Imports(seconds=time.monotonic() - started, fault=fault)


if __name__ == "__main__":
    sys.stdout.write(MARK + msgspec.json.encode(import_all()).decode() + "\n")
