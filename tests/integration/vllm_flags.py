"""The installed vLLM's verdict on command lines: a JSON list of them in, a JSON list of faults out, "" for a good one.

A process of its own, for vLLM's imports warn.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys


def fault_of(argv: list[str]) -> str:
    from vllm import AsyncEngineArgs
    from vllm.reasoning import ReasoningParserManager

    from workers.engines.vllm.engine import parse_flags

    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            args = AsyncEngineArgs.from_cli_args(parse_flags(argv))
        if args.reasoning_parser:  # vLLM itself looks it up when the model is loaded
            ReasoningParserManager.get_reasoning_parser(args.reasoning_parser)
    except SystemExit:
        return told.getvalue()
    except (TypeError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    commands = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        faults = [fault_of(argv) for argv in commands]
    json.dump(faults, sys.stdout)
