"""Batches as users run them: input files, the command, and what must hold of its output."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.launching import command

WORDS = [f"word{number}" for number in range(200)]


def openai_line(number: int, seed: int = 0, **body: Any) -> dict[str, Any]:
    """Half of them share a long beginning; lengths are mixed."""
    rng = random.Random(seed * 1_000_003 + number)
    shared = " ".join(WORDS[:60]) if number % 2 else ""
    text = f"{shared} {' '.join(rng.choices(WORDS, k=rng.randrange(3, 40)))}"
    fields = {"model": "tiny", "max_tokens": rng.randrange(1, 64), "temperature": 0, **body}
    chat = number % 3 > 0
    prompt: dict[str, Any] = {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
    url = "/v1/chat/completions" if chat else "/v1/completions"
    return {"custom_id": f"r{number}", "method": "POST", "url": url, "body": {**fields, **prompt}}


def write_lines(path: Path, lines: Sequence[Any]) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def text_of(line: dict[str, Any]) -> str:
    """The generated text: what must not depend on when and where it was made."""
    choice = line["response"]["body"]["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    assert isinstance(text, str)
    return text


def texts(path: Path) -> dict[str, str]:
    """By custom_id; each of them once."""
    lines = read_lines(path)
    found = {line["custom_id"]: text_of(line) for line in lines}
    assert len(found) == len(lines), "a request has two results"
    return found


def is_engine(pid: int, worker: str) -> bool:
    arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return any(b"engine_process" in part for part in arguments) and any(worker.encode() in part for part in arguments)


def batch_arguments(input_: Path, output: Path, *more: str) -> tuple[str, ...]:
    return ("action=batch", f"batch.input={input_}", f"batch.output={output}", *more)


def batch_command(run: str, input_: Path, output: Path, *more: str) -> list[str]:
    return command(f"run={run}", *batch_arguments(input_, output, *more))
