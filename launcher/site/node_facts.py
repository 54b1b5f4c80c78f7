"""What a compute node has: adapters, scratch space, ports, GPU files. Reads files of the kernel, judges nothing."""

from __future__ import annotations

import os
import re
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from launcher.site.check_files import Hca, Scratch
from workers.agent.network import FIRST_PORT, NUM_PORTS
from workers.staging.mounts import free_bytes, mount_of, parse_mounts

HCAS = Path("/sys/class/infiniband")
DEVICES = Path("/dev")
PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
SCRATCH_VARIABLES = ("SLURM_TMPDIR", "TMPDIR", "LOCAL_SCRATCH", "LOCALSCRATCH", "SCRATCH_LOCAL", "JOBFS")
SCRATCH_FOLDERS = ("/local", "/localscratch", "/scratch/local", "/nvme", "/raid", "/dev/shm")


def hcas(folder: Path = HCAS) -> list[Hca]:
    return [
        Hca(
            name=f"{port.parent.parent.name}:{port.name}",
            state=_word(port / "state").rpartition(": ")[2],  # 4: ACTIVE
            rate=_word(port / "rate"),
            link=_word(port / "link_layer"),
        )
        for port in sorted(folder.glob("*/ports/*"))
    ]


def can_rdma(devices: Path = DEVICES) -> bool:
    verbs = list((devices / "infiniband").glob("uverbs*"))
    return any(os.access(path, os.R_OK | os.W_OK) for path in verbs)


def scratch(mounts: str) -> list[Scratch]:
    """Folders of this node that one may write to, each file system once."""
    table = parse_mounts(mounts)
    found: dict[str, Scratch] = {}
    for folder in _scratch_folders():
        mount = mount_of(table, str(folder.resolve()))
        if mount is not None and mount.point not in found and folder.is_dir() and os.access(folder, os.W_OK):
            found[mount.point] = Scratch(path=str(folder), kind=mount.kind, free_bytes=free_bytes(folder))
    return list(found.values())


def _scratch_folders() -> Iterator[Path]:
    yield Path(tempfile.gettempdir())
    yield from (Path(os.environ[name]) for name in SCRATCH_VARIABLES if os.environ.get(name))
    yield from map(Path, SCRATCH_FOLDERS)


def ephemeral_from() -> int:
    return int(PORT_RANGE.read_text().split()[0])


def num_free_ports() -> int:
    """Of those that engines take by number, on any address: each is bound and left again."""
    return sum(map(_is_free, range(FIRST_PORT, FIRST_PORT + NUM_PORTS)))


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def num_gpu_files(devices: Path = DEVICES) -> int:
    """Confined by cgroups, others' cannot be opened."""
    return sum(_opens(path) for path in devices.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name))


def _opens(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError:
        return False
    return True


def _word(path: Path) -> str:
    """Drivers leave out what they do not have."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
