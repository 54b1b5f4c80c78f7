"""The README's pip commands for a machine without make, in a fresh environment, to the letter."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
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
    first = next(block for block in blocks(README) if block.heading == "Install without make")
    try:
        output = bash([*first.commands, *WORKS], checkout)
        assert str(checkout / "proxy" / "__init__.py") in output
        assert "prefill-0" in output and "KV goes prefill -> decode" in output
    finally:
        shutil.rmtree(checkout)


def bash(commands: list[str], folder: Path) -> str:
    """In one shell that stops at the first that fails, with nothing of the environment that runs this test."""
    mine = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in mine}
    environment["PIP_NO_COMPILE"] = "false"  # pip wants it negated; most of the 30,000 files are never imported
    environment["PATH"] = f"{Path(sys.base_prefix) / 'bin'}:{os.environ['PATH']}"  # whose python3 is new enough
    answer = subprocess.run(
        ["bash", "-ec", "\n".join(commands)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert answer.returncode == 0, f"{answer.stdout[-3000:]}\n{answer.stderr[-3000:]}"
    return answer.stdout
