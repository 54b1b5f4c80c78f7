"""A real Slurm of three nodes with four fake GPUs each, on this machine, for the tests marked `slurm`.

Needs root and the packages slurm-wlm and munge (tests/install_slurm.sh), but no systemd, no cgroups, no
accounting and no system-wide configuration: the daemons, the munge key and socket, the ports and all state
are its own, so that several live side by side. Also a small command: python -m tests.onebox FOLDER [networks], which
with the second word gives each node a network of its own.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.onebox_networks import Networks

NODES = ("n1", "n2", "n3")
GPUS_PER_NODE = 4
COMMANDS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "setpriv")
START_TIMEOUT_S = 60.0

# Facts that took time to find: GPU files must be character devices, or CUDA_VISIBLE_DEVICES stays empty;
# cred_expire=6 lets a requeued job start after 7 s instead of 121; config_overrides lets a machine of two
# cores claim eight per node.
SLURM_CONF = """\
ClusterName=onebox
SlurmctldHost={host}({here})
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=6
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool.%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=2,bf_resolution=1,sched_interval=2,batch_sched_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=8
SlurmdTimeout=20
MinJobAge=120
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
NodeName=n[1-3] NodeHostname={host} NodeAddr={addresses} Port=[{first}-{last}] CPUs=8 RealMemory=20000 \
Gres=gpu:fake:4 State=UNKNOWN
PartitionName=gpu Nodes=n[1-3] Default=YES MaxTime=INFINITE State=UP PriorityTier=10
PartitionName=low Nodes=n[1-3] MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=15
PartitionName=lowest Nodes=n[1-3] MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
"""
GRES_CONF = "AutoDetect=off\nNodeName=n[1-3] Name=gpu Type=fake Flags=nvidia_gpu_env File={folder}/dev/nvidia[0-3]\n"
CGROUP_CONF = "CgroupAutomount=no\nConstrainCores=no\nConstrainDevices=no\nConstrainRAMSpace=no\n"


def why_not() -> str | None:
    """Why this machine cannot run one, in one line; None where it can."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    lacking = [command for command in COMMANDS if shutil.which(command, path=path) is None]
    if lacking:
        return f"a real Slurm needs {', '.join(lacking)} (packages slurm-wlm and munge)"
    if os.geteuid() != 0:
        return "a real Slurm on one machine needs root"
    return None


class OneBox:
    """One such Slurm. `start` and `stop` may each be called once."""

    def __init__(self, folder: Path, networks: Networks | None = None) -> None:
        self.folder = folder.resolve()
        self._networks = networks
        self.conf = self.folder / "slurm.conf"
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._helpers: set[int] = set()  # that the daemons start for themselves

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.conf)}

    def start(self) -> None:
        if self._networks is not None:
            self._networks.start()
        self._write_files()
        self._munged()
        self._daemon("slurmctld", "-D")
        for number, node in enumerate(NODES, 1):
            inside = () if self._networks is None else self._networks.inside(number)
            self._daemon("slurmd", "-N", node, "-D", inside=inside)
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.ask("sinfo", "-h", "-N", "-p", "gpu", "-o", "%t").split() != ["idle"] * len(NODES):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the one-box Slurm did not come up; see {self.folder}/log")
            time.sleep(0.2)
        self._helpers = set(self.processes())

    def stop(self) -> None:
        """Cancel its jobs, end its daemons and whatever they left, all by process id."""
        if self.jobs():
            self.ask("scancel", "--state=RUNNING,PENDING,SUSPENDED")
            deadline = time.monotonic() + 30
            while self.jobs() and time.monotonic() < deadline:
                time.sleep(0.2)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for pid in [*self.processes(), *self._helpers]:  # slurmstepd outlives slurmd
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._networks is not None:
            self._networks.stop()

    def ask(self, *command: str) -> str:
        """What a Slurm command prints; nothing while the controller does not answer."""
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **self.environment})
        return done.stdout.strip()

    def jobs(self) -> list[str]:
        """The ids of all jobs that have not ended."""
        return self.ask("squeue", "--noheader", "--format=%i").split()

    def processes(self) -> list[int]:
        """Everything that runs under this Slurm: processes that its jobs left are among them."""
        sign = f"SLURM_CONF={self.conf}".encode()
        daemons = {daemon.pid for daemon in self._daemons} | self._helpers | {os.getpid()}
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) in daemons:
                continue
            with contextlib.suppress(OSError):  # ended meanwhile
                if sign in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def await_quiet(self) -> None:
        """Returns once nothing runs under it any more but its daemons."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while left := self.processes():
            if time.monotonic() > deadline:
                raise AssertionError("processes outlived their jobs: " + "; ".join(map(_command_line, left)))
            time.sleep(0.2)

    def _write_files(self) -> None:
        for name in ("state", "log", "dev", *(f"spool.{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        for index in range(GPUS_PER_NODE):
            os.mknod(self.folder / "dev" / f"nvidia{index}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        port = _free_ports(1 + len(NODES))
        host = socket.gethostname().split(".")[0]
        here, addresses = "127.0.0.1", "127.0.0.1"
        if self._networks is not None:
            here, addresses = self._networks.here, self._networks.addresses
        names = {"host": host, "here": here, "addresses": addresses, "folder": self.folder}
        self.conf.write_text(SLURM_CONF.format(port=port, first=port + 1, last=port + len(NODES), **names))
        (self.folder / "gres.conf").write_text(GRES_CONF.format(folder=self.folder))
        (self.folder / "cgroup.conf").write_text(CGROUP_CONF)

    def _munged(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        options = {"key-file": key, "log-file": self.folder / "log/munged.log"}
        options |= {name: self.folder / f"munge.{name}" for name in ("socket", "pid-file", "seed-file")}
        self._daemon("munged", "--foreground", "--force", *(f"--{name}={path}" for name, path in options.items()))
        deadline = time.monotonic() + START_TIMEOUT_S
        while not options["socket"].exists():
            if time.monotonic() > deadline:
                raise RuntimeError(f"munged did not come up; see {self.folder}/log")
            time.sleep(0.05)

    def _daemon(self, *command: str, inside: Sequence[str] = ()) -> None:
        """In its own session: a Ctrl-C for the tests must not take it away before its jobs. Tests that are killed
        take it along all the same."""
        environment = {**os.environ, **self.environment, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
        with (self.folder / "log" / f"{command[0]}.out").open("ab") as log:
            daemon = subprocess.Popen(
                [*inside, "setpriv", "--pdeathsig", "TERM", *command],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        self._daemons.append(daemon)


def _command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return f"{pid} " + Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    return str(pid)


def _free_ports(count: int) -> int:
    """The first of `count` ports in a row, below the kernel's own range."""
    while True:
        first = random.randrange(10_000, 30_000)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first


@contextlib.contextmanager
def running_onebox(folder: Path, networks: Networks | None = None) -> Iterator[OneBox]:
    box = OneBox(folder, networks)
    try:
        box.start()
        yield box
    finally:
        box.stop()


@pytest.fixture(scope="session")
def onebox_daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneBox]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with running_onebox(tmp_path_factory.mktemp("onebox")) as box:
        yield box


@pytest.fixture
def onebox(onebox_daemons: OneBox, monkeypatch: pytest.MonkeyPatch) -> Iterator[OneBox]:
    """The session's Slurm, chosen by the environment; a test must leave no job and no process in it."""
    for name, value in onebox_daemons.environment.items():
        monkeypatch.setenv(name, value)
    yield onebox_daemons
    assert onebox_daemons.jobs() == []
    onebox_daemons.await_quiet()


def main() -> None:
    networks = Networks(len(NODES)) if sys.argv[2:] == ["networks"] else None
    with running_onebox(Path(sys.argv[1]), networks) as box:
        links = "" if networks is None else f" ONEBOX_LINKS={networks.links}"
        print(f"export SLURM_CONF={box.conf}{links}   # Ctrl-C stops it", flush=True)
        ends = {signal.SIGINT, signal.SIGTERM}
        signal.pthread_sigmask(signal.SIG_BLOCK, ends)
        signal.sigwait(ends)


if __name__ == "__main__":
    main()
