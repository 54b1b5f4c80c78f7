"""The README's installation, in a fresh environment, beside the other tests.

It takes minutes of one core and four gigabytes of disk, and waits for nobody: so it starts with the session, at the
lowest priority, and the test that judges it comes last.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.docs import README, blocks, copy_checkout

NEEDED_GIB = 6  # 4 GB stay; pip downloads and unpacks beside them
WORKS = [
    "python -c 'import vllm, nixl, proxy; print(vllm.__version__); print(proxy.__file__)'",
    "python -m launcher +cluster=local action=plan",
]
JUDGE = "test_install.py"


class Installation:
    """The README's commands and `WORKS`, in one shell that stops at the first that fails."""

    def __init__(self, folder: Path) -> None:
        self.checkout = copy_checkout(folder / "sluice")
        self._output = folder / "output.txt"
        first = next(block for block in blocks(README) if block.heading == "Install without make")
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                ["nice", "-n", "19", "bash", "-ec", "\n".join([*first.commands, *WORKS])],
                cwd=self.checkout,
                env=_clean_environment(),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def wait(self) -> tuple[int, str]:
        """Exit status and output."""
        return self._process.wait(), self._output.read_text()

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self.checkout, ignore_errors=True)


def _clean_environment() -> dict[str, str]:
    """Nothing of the environment that runs the tests."""
    mine = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in mine}
    environment["PIP_NO_COMPILE"] = "false"  # pip wants it negated; most of the 30,000 files are never imported
    environment["PATH"] = f"{Path(sys.base_prefix) / 'bin'}:{os.environ['PATH']}"  # whose python3 is new enough
    return environment


def judge_last(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name == JUDGE)


@pytest.fixture(scope="session", autouse=True)
def installation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """An Installation under way; where there is no room for one, why not; None where nobody asks."""
    if not any(item.path.name == JUDGE for item in request.session.items):
        yield None
        return
    folder = tmp_path_factory.mktemp("installation")
    free_gib = shutil.disk_usage(folder).free >> 30
    if free_gib < NEEDED_GIB:
        yield f"a fresh installation needs {NEEDED_GIB} GiB in {folder}, there are {free_gib}"
        return
    started = Installation(folder)
    try:
        yield started
    finally:
        started.end()
