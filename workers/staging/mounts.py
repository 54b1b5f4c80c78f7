"""Where a folder lies, whether other nodes see it too, and what room it has: by the kernel's table of mounts.

Pure but for the two that ask this machine. Owns which types of file system nodes share, and which are a node's own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePath

import msgspec

SHARED_TYPES = (
    *("9p", "afs", "beegfs", "ceph", "cifs", "daos", "gfs2", "glusterfs", "gpfs", "juicefs", "lustre", "moosefs"),
    *("nfs", "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "quobyte", "smb3", "virtiofs", "wekafs"),
)
LOCAL_TYPES = ("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs")


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    device: str
    point: str
    kind: str

    @property
    def shared(self) -> bool | None:
        """None: the type does not tell."""
        kind = self.kind.removeprefix("fuse.")
        return True if kind in SHARED_TYPES else False if kind in LOCAL_TYPES else None


def parse_mounts(text: str) -> list[Mount]:
    """/proc/mounts: spaces in names are written \\040."""
    mounts = []
    for line in text.splitlines():
        device, point, kind = (re.sub(r"\\(\d{3})", _octal, word) for word in line.split()[:3])
        mounts.append(Mount(device=device, point=point, kind=kind))
    return mounts


def mount_of(mounts: Sequence[Mount], path: str) -> Mount | None:
    """Where a resolved path lies. Of two on one point the later hides the earlier."""
    inside = [mount for mount in mounts if PurePath(path).is_relative_to(mount.point)]
    return max(reversed(inside), key=lambda mount: len(PurePath(mount.point).parts), default=None)


def _octal(found: re.Match[str]) -> str:
    return chr(int(found[1], 8))


def mount_at(path: Path) -> Mount | None:
    """Of this machine, now."""
    return mount_of(parse_mounts(Path("/proc/self/mounts").read_text()), str(path.resolve()))


def free_bytes(folder: Path) -> int:
    """What may still be written; nothing where no file can be made any more."""
    figures = os.statvfs(folder)
    no_inodes = figures.f_files > 0 and figures.f_favail == 0
    return 0 if no_inodes else figures.f_bavail * figures.f_frsize
