"""The doctor's own eyes and hands: peers that knock, files of the kernel, the table."""

from __future__ import annotations

import io
import socket
import threading
from pathlib import Path

import pytest
from rich.console import Console

from launcher.site.check_files import Hca
from launcher.site.facts import Interface
from launcher.site.finding import Report, fault, ok
from launcher.site.node_facts import can_rdma, hcas, num_free_ports, num_gpu_files, scratch
from launcher.site.peers import knock, knock_on_all, listening
from launcher.site.probe import interfaces
from launcher.site.table import show
from workers.agent.network import NUM_PORTS, bindable_port

LO = Interface(name="lo", address="127.0.0.1")


def test_a_peer_is_one_that_knows_the_token() -> None:
    with listening([LO], "t0ken") as endpoints:
        address, port = endpoints["lo"]
        assert address == "127.0.0.1" and knock(address, port, "t0ken") == ""
        assert knock(address, port, "other") == "somebody else answers there"
        assert knock_on_all(endpoints, "t0ken", [LO]) == {"lo": ""}
        assert knock_on_all(endpoints, "t0ken", []) == {"lo": "this node has no such interface"}
        with socket.create_connection((address, port)) as silent:
            assert knock(address, port, "t0ken") == ""  # nobody waits for a stranger
            silent.sendall(b"t")
    assert "refused" in knock(address, port, "t0ken")


def test_a_stranger_on_the_port_is_no_peer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:

        def answer() -> None:
            connection, _ = stranger.accept()
            with connection:
                connection.recv(5)
                connection.sendall(b"hello")

        thread = threading.Thread(target=answer)
        thread.start()
        assert knock(*stranger.getsockname(), "t0ken") == "somebody else answers there"
        thread.join()


def test_the_loopback_is_among_the_interfaces() -> None:
    assert [each.address for each in interfaces() if each.name == "lo"] == ["127.0.0.1"]


def test_adapters_as_the_kernel_tells_them(tmp_path: Path) -> None:
    for name, state in (("mlx5_0", "4: ACTIVE"), ("mlx5_1", "1: DOWN")):
        port = tmp_path / "infiniband" / name / "ports" / "1"
        port.mkdir(parents=True)
        (port / "state").write_text(f"{state}\n")
        (port / "rate").write_text("400 Gb/sec (4X NDR)\n")
    (port / "link_layer").write_text("Ethernet\n")
    first, second = hcas(tmp_path / "infiniband")
    assert first == Hca(name="mlx5_0:1", state="ACTIVE", rate="400 Gb/sec (4X NDR)", link="")
    assert (second.state, second.link) == ("DOWN", "Ethernet")
    assert hcas(tmp_path / "none") == []


def test_a_port_that_somebody_holds_is_not_free() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", bindable_port("127.0.0.1", "test-site-probe", 0, "head")))
        assert 0 < num_free_ports() < NUM_PORTS


def test_devices(tmp_path: Path) -> None:
    assert not can_rdma(tmp_path) and num_gpu_files(tmp_path) == 0
    (tmp_path / "infiniband").mkdir()
    for name in ("infiniband/uverbs0", "nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert can_rdma(tmp_path) and num_gpu_files(tmp_path) == 2


def test_scratch_space_is_told_once_per_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path))
    monkeypatch.setenv("LOCAL_SCRATCH", str(tmp_path / "not there"))
    found = scratch(f"/dev/sda1 / ext4 rw 0 0\n/dev/nvme0 {tmp_path} xfs rw 0 0\n")
    [own] = [each for each in found if each.kind == "xfs"]
    assert own.path == str(tmp_path) and own.free_bytes > 0
    assert len(found) == len({each.kind for each in found}) == 2


@pytest.mark.parametrize("terminal", [True, False])
def test_the_table(terminal: bool) -> None:
    findings = (ok("slurm", "version [24.05]"), fault("gres", "refused", "set it", "cluster.gres=gpu"))
    report = Report(cluster="mine", slurm_version="24.05", submitted=False, jobs=(), findings=findings)
    output = io.StringIO()
    show(report, Console(file=output, force_terminal=terminal, width=100, soft_wrap=True, highlight=False))
    text = output.getvalue()
    assert "version [24.05]" in text and "-> set it" in text
    assert text.endswith("1 fault, 0 warnings; to set:\n  cluster.gres=gpu\n")
