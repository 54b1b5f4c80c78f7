"""Slurm's short form of node names: the forms that squeue prints."""

import pytest

from launcher.scheduler.hostlist import expand_hostlist


@pytest.mark.parametrize(
    ("short", "names"),
    [
        ("", ()),
        ("n1", ("n1",)),
        ("n[1-3]", ("n1", "n2", "n3")),
        ("gpu[08-10,12],login", ("gpu08", "gpu09", "gpu10", "gpu12", "login")),
        ("rack[1-2]n[1-2]-ib", ("rack1n1-ib", "rack1n2-ib", "rack2n1-ib", "rack2n2-ib")),
        ("a-1,b[099-101]", ("a-1", "b099", "b100", "b101")),
    ],
)
def test_a_list_is_written_out(short: str, names: tuple[str, ...]) -> None:
    assert expand_hostlist(short) == names
