"""`action=connect` as its users have it: OpenAI's client on one local port while the proxy dies and moves."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest

from launcher.rundir import Endpoint, RunDir
from launcher.scheduler.local import descendants
from tests.docs import How, shown_as
from tests.launching import Launch, command, environment, launch, nothing_left
from tests.live import API_KEY, Live, live, parent_of, sim_engine, wait_for
from workers.links.proxy_file import read_proxies
from workers.spec import write_json

ARGUMENTS = ("+cluster=local", "engine=sim", "run=demo")
# Stands in for ssh where there is no host to log in to: the forward is made on this machine, commands run here.
SSH = f"""#!{sys.executable}
import asyncio, os, sys
from launcher.connect.relay import Relay
arguments = sys.argv[1:]
if "-L" not in arguments:
    os.execvp("sh", ["sh", "-c", arguments[-1]])
port, host, target = arguments[arguments.index("-L") + 1].split(":")
async def forward():
    await Relay(lambda: (host, int(target)), lambda works: None).serve(int(port))
    await asyncio.Event().wait()
asyncio.run(forward())
"""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    run = RunDir(tmp_path / "runs" / "demo")
    with nothing_left(run):
        yield run


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Connected:
    def __init__(self, folder: Path, *arguments: str, **changes: str) -> None:
        self.port = free_port()
        self.output_file = folder / "connect.txt"
        arguments = ("action=connect", "run=demo", f"port={self.port}", *arguments)
        with self.output_file.open("wb") as output:
            self.process = subprocess.Popen(
                command(*arguments), cwd=folder, env={**environment(), **changes}, stdout=output, stderr=output
            )

    @property
    def output(self) -> str:
        return self.output_file.read_text()

    def client(self, key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, timeout=60)

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0, self.output


@contextmanager
def connected(folder: Path, *arguments: str, **changes: str) -> Iterator[Connected]:
    made = Connected(folder, *arguments, **changes)
    try:
        yield made
        below = descendants(made.process.pid)
        made.end()
        assert "Traceback" not in made.output
        wait_for(lambda: not any(parent_of(pid) for pid in below), "what it started to end")
    finally:
        if made.process.poll() is None:
            made.process.terminate()  # what it started goes with it
            made.process.wait(20)


def says(client: openai.OpenAI) -> str:
    answer = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "Hello"}], max_tokens=8)
    return str(answer.choices[0].message.content)


def test_one_port_serves_while_the_proxy_is_killed_and_started_again(tmp_path: Path, run: RunDir) -> None:
    missing = launch(tmp_path, "action=connect", "run=demo")
    assert missing.returncode == 2 and "no such run" in missing.stderr
    with Launch(tmp_path, *ARGUMENTS) as launched:
        url = launched.wait_ready()
        with connected(tmp_path) as local:
            wait_for(lambda: f"/v1 -> {url}; models tiny; key in {run.keys / 'api_key'}" in local.output, "its word")
            taken = launch(tmp_path, "action=connect", "run=demo", f"port={local.port}")
            assert taken.returncode == 2 and f"port: {local.port} cannot be opened" in taken.stderr
            with local.client((run.keys / "api_key").read_text()) as client:
                before = says(client)
                [file] = read_proxies(run.proxies)
                proxy = parent_of(file.pid)
                assert proxy is not None
                for pid in (proxy, file.pid):
                    os.kill(pid, signal.SIGKILL)
                assert [says(client) for _ in range(3)] == [before] * 3
        launched.interrupt()
        assert launched.wait() == 0
    with connected(tmp_path) as local, local.client("no key") as client:
        wait_for(lambda: " -> " in local.output, "its port")
        with pytest.raises(openai.APIConnectionError):
            client.with_options(max_retries=0, timeout=3).models.list()
        assert re.search(r"cannot be reached: action=status run=demo .*ssh -N -L \d+:\S+ LOGIN", local.output)


def serves(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Live, Live]]:
    """Two endpoints, of which one takes the other's place."""
    engine = {"decode-0": sim_engine()}
    changes = {"pairs": ()}
    with live(tmp_path / "one", engine, **changes) as first, live(tmp_path / "two", engine, **changes) as second:
        yield first, second


def test_over_one_hop_it_follows_the_endpoint_that_the_other_side_tells(tmp_path: Path, two: tuple[Live, Live]) -> None:
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(SSH)
    ssh.chmod(stat.S_IRWXU)
    there = RunDir(tmp_path / "there" / "demo")
    there.path.mkdir(parents=True)
    path = f"{ssh.parent}:{os.environ['PATH']}"
    with connected(tmp_path, f"runs_dir={tmp_path / 'there'}", "ssh=login", PATH=path) as local:
        wait_for(lambda: "has no endpoint at login" in local.output, "what is missing")
        for run in two:
            endpoint = Endpoint(url=f"{run.url}/v1", api_key_file="/there/key", models=("tiny",))
            write_json(there.endpoint, endpoint)
            told = f"/v1 -> {endpoint.url} over login; models tiny; key in login:/there/key"
            wait_for(lambda told=told: told in local.output, "the tunnel")
            with local.client(API_KEY) as client:
                assert says(client)
                assert run.metric("sluice_requests_total") > 0
    [shown] = [command for command in shown_as(How.CONNECTED) if command.startswith("ssh ")]
    url, port = httpx.URL(two[0].url), free_port()
    shown = shown.replace("8000", str(port)).replace("HOST:PORT", f"{url.host}:{url.port}")
    with subprocess.Popen(shlex.split(shown), env={**environment(), "PATH": path}) as tunnel:
        try:
            wait_for(lambda: serves(port) or tunnel.poll() is not None, "the tunnel")
            assert tunnel.poll() is None
        finally:
            tunnel.terminate()
