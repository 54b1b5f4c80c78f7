"""A Slurm of three nodes on this machine for the length of a benchmark, where none is at hand.

It is that of the tests, run as the command that it is: this needs root and Slurm's packages.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import processes


class NoSlurm(SystemExit):
    """Told as it is."""


@contextmanager
def own_slurm(folder: Path) -> Iterator[None]:
    process = processes.start("tests.onebox", str(folder), output=subprocess.PIPE)
    try:
        assert process.stdout is not None
        said = process.stdout.readline().decode()
        if not said.startswith("export SLURM_CONF="):
            raise NoSlurm("no Slurm came up on this machine (tests/install_slurm.sh); choose cluster=NAME on a site's")
        os.environ["SLURM_CONF"] = said.partition("=")[2].split()[0]
        yield
    finally:
        os.environ.pop("SLURM_CONF", None)
        processes.end([process])
