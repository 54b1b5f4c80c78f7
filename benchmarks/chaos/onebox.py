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

CONF = "SLURM_CONF"
LINKS = "ONEBOX_LINKS"


class NoSlurm(SystemExit):
    """Told as it is."""


@contextmanager
def own_slurm(folder: Path, *, networks: bool) -> Iterator[None]:
    """With `networks` each node has one of its own, whose link is LINKS and the node's name."""
    process = processes.start("tests.onebox", str(folder), *["networks"] * networks, output=subprocess.PIPE)
    said: dict[str, str] = {}
    try:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        said = dict(word.split("=", 1) for word in line.partition("#")[0].split() if "=" in word)
        if CONF not in said:
            raise NoSlurm("no Slurm came up on this machine (tests/install_slurm.sh); choose cluster=NAME on a site's")
        os.environ.update(said)
        yield
    finally:
        for name in said:
            del os.environ[name]
        processes.end([process])
