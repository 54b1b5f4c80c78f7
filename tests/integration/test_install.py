"""The README's pip commands for a machine without make, in a fresh environment, to the letter."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.docs import README, blocks, copy_checkout

NEEDED_GIB = 6  # 4 GB stay; pip downloads and unpacks beside them
WORKS = [
    "python -c 'import vllm, nixl, proxy; print(vllm.__version__); print(proxy.__file__)'",
    "python -m launcher +cluster=local action=plan",
]


@pytest.mark.timeout(1500)
def test_the_pip_commands_of_the_readme_install_what_works(tmp_path: Path) -> None:
    free_gib = shutil.disk_usage(tmp_path).free >> 30
    if free_gib < NEEDED_GIB:
        pytest.skip(f"a fresh installation needs {NEEDED_GIB} GiB in {tmp_path}, there are {free_gib}")
    checkout = copy_checkout(tmp_path / "sluice")
    commands = next(block for block in blocks(README) if block.heading == "Install without make").commands
    shell = subprocess.Popen(
        # It takes minutes of one core and waits for nobody: whatever runs beside it goes first.
        ["nice", "-n", "19", "bash", "-ec", "\n".join([*commands, *WORKS])],
        cwd=checkout,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = shell.communicate()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
        shutil.rmtree(checkout, ignore_errors=True)
    assert shell.returncode == 0, output[-6000:]
    assert str(checkout / "proxy" / "__init__.py") in output
    assert "prefill-0" in output and "KV goes prefill -> decode" in output


def clean_environment() -> dict[str, str]:
    """Nothing of the environment that runs the tests."""
    mine = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in mine}
    environment["PIP_NO_COMPILE"] = "false"  # pip wants it negated; most of the 30,000 files are never imported
    environment["PATH"] = f"{Path(sys.base_prefix) / 'bin'}:{os.environ['PATH']}"  # whose python3 is new enough
    return environment
