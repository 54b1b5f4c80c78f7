"""logs: following a worker over its lives."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from launcher import logs


class Seen(Exception):
    """Enough."""


def test_following_goes_on_with_new_files_and_does_not_repeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "1_0_log.out", tmp_path / "2_0_log.out"
    first.write_text("".join(f"line {number}\n" for number in range(30)))

    def write(path: Path, text: str, at: int) -> None:
        with path.open("a") as file:
            file.write(text)
        os.utime(path, (at, at))

    turns = iter(
        [
            lambda: write(first, "last words\n", 1),
            lambda: write(second, "a new life\n", 2),
            lambda: (write(first, "an echo\n", 3), write(second, "goes on\n", 4)),
        ]
    )

    def sleep(_: float) -> None:
        turn = next(turns, None)
        if turn is None:
            raise Seen
        turn()

    monkeypatch.setattr(logs.time, "sleep", sleep)
    output = io.BytesIO()
    with pytest.raises(Seen):
        logs.follow(tmp_path, output)
    text = output.getvalue().decode()
    assert text.startswith("line 10\n") and text.count("line 29\n") == 1
    assert text.endswith(
        "line 29\nlast words\n\n==> 2_0_log.out <==\na new life\n\n==> 1_0_log.out <==\nan echo\n"
        "\n==> 2_0_log.out <==\ngoes on\n"
    )
