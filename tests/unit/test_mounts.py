"""mounts: where a folder lies, and whether other nodes see it."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.staging.mounts import mount_at, mount_of, parse_mounts

MOUNTS = """\
proc /proc proc rw,relatime 0 0
/dev/sda1 / ext4 rw,relatime 0 0
tmpfs /tmp tmpfs rw 0 0
nfs1:/export/home /home nfs4 rw,vers=4.2 0 0
10.0.0.1@o2ib:/work /scratch/my\\040work lustre rw,flock 0 0
/dev/sdb1 /mnt ext4 rw 0 0
weka /mnt wekafs rw 0 0
sshfs#x /odd fuse.sshfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind", "shared"),
    [
        ("/home/ann/runs", "nfs4", True),
        ("/homes/ann", "ext4", False),
        ("/scratch/my work/runs", "lustre", True),
        ("/mnt/runs", "wekafs", True),
        ("/tmp", "tmpfs", False),
        ("/odd/x", "fuse.sshfs", None),
    ],
)
def test_where_a_folder_lies(path: str, kind: str, shared: bool | None) -> None:
    mount = mount_of(parse_mounts(MOUNTS), path)
    assert mount is not None and (mount.kind, mount.shared) == (kind, shared)


def test_this_machine_has_a_root() -> None:
    mount = mount_at(Path("/"))
    assert mount is not None and mount.point == "/"
