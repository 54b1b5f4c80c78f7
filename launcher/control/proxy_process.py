"""The proxy as a process that a controller keeps: which one, its spec, and where its words go.

Owns the names: the proxy of a controller that follows another one is the next in number, so that both live for a while.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from launcher.control.kept_process import KeptProcess
from launcher.job import Plan
from launcher.rundir import Owner, RunDir
from proxy.spec import ProxySpec
from workers.spec import read_spec, write_json


def name_of(plan: Plan, owner: Owner) -> str:
    return owner.proxy or plan.proxy.proxy


def next_name(proxy: str) -> str:
    return _numbered(proxy, 1)


def name_before(proxy: str) -> str:
    return _numbered(proxy, -1)


def _numbered(proxy: str, step: int) -> str:
    base, _, number = proxy.rpartition("-")
    return f"{base}-{int(number) + step}"


def write_spec(run: RunDir, plan: Plan, name: str, *, any_port: bool = False) -> Path:
    """`any_port`: the configured one is taken by the proxy that is to be followed."""
    path = run.proxy_spec(name)
    port = 0 if any_port else plan.proxy.http_port
    write_json(path, msgspec.structs.replace(plan.proxy, proxy=name, http_port=port))
    return path


def renew_spec(run: RunDir, plan: Plan, name: str) -> None:
    """For its next start. The port stays as it is."""
    before = read_spec(run.proxy_spec(name), ProxySpec)
    write_spec(run, plan, name, any_port=before.http_port == 0)


def proxy_process(run: RunDir, plan: Plan, name: str) -> KeptProcess:
    """A proxy of an earlier start has no file any more: nobody would find it."""
    log_file = run.log_dir(plan.proxy.proxy) / f"{name}.log"
    return KeptProcess("proxy", run.proxy_spec(name), log_file, lambda: any(run.proxies.glob(f"{name}.*.json")))
