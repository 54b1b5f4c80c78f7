"""Which network carries a run: interfaces that reach the other nodes, RDMA adapters, and a transfer that was tried.

Pure. Judges what the nodes of one check job reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from launcher.schema import Config
from launcher.site.check_files import Hca, NodeReport
from launcher.site.checks import Outcome
from launcher.site.finding import Finding, fault, listed, ok, warning

MUCH_FASTER = 4  # worth a line in the configuration
FABRICS = re.compile(r"ib|hsn|opa|roce")
ACTIVE = "ACTIVE"


def fabric_findings(outcome: Outcome, config: Config) -> Iterator[Finding]:
    yield from _interface(outcome, config)
    yield from _from_here(outcome, config)
    yield from _adapters(outcome.reports[0], config)
    yield from _transfers(outcome)


def _interface(outcome: Outcome, config: Config) -> Iterator[Finding]:
    head = outcome.reports[0]
    key, chosen = _chosen(outcome, config)
    names = [each.name for each in head.interfaces]
    topic = f"network {outcome.name}"
    if chosen not in names:
        # Without any the preflight says so.
        if chosen:
            yield fault(topic, f"{head.node} has no {chosen}; it has {listed(names)}", f"set {key} to one of them")
        return
    if len(outcome.reports) == 1:
        yield ok(topic, f"{_words(head, chosen)} is there; one node tells nothing of its peers")
        return
    reached = [name for name in names if not any(report.peers.get(name, "not tried") for report in outcome.reports[1:])]
    best = max(reached, key=lambda name: _speed(head, name), default="")
    seen = f"between nodes: {listed(_words(head, name) for name in reached)}"
    if chosen not in reached:
        why = next(
            report.peers.get(chosen, "not tried") for report in outcome.reports[1:] if report.peers.get(chosen, "-")
        )
        todo = f"set cluster.interface={best}" if best else "ask the site which interface joins compute nodes"
        setting = f"cluster.interface={best}" if best else ""
        yield fault(topic, f"{chosen} does not reach the other node ({why}); {seen}", todo, setting)
    elif _speed(head, best) >= MUCH_FASTER * _speed(head, chosen) and best != chosen and _speed(head, chosen):
        yield warning(topic, f"{seen}; {chosen} is used", f"set cluster.interface={best}", f"cluster.interface={best}")
    else:
        yield ok(topic, f"{seen}; {chosen} is used")


def _chosen(outcome: Outcome, config: Config) -> tuple[str, str]:
    """The key and the interface: the proxy's where no worker runs."""
    assert config.cluster is not None
    of_cluster = config.cluster.interface or outcome.reports[0].default_interface
    if outcome.checked.check.worker is None:
        return "controller.interface", config.controller.interface or of_cluster
    return "cluster.interface", of_cluster


def _speed(report: NodeReport, name: str) -> int:
    """Of equal or unknown ones a fabric's name wins; a loopback is nobody's fabric."""
    interface = next(each for each in report.interfaces if each.name == name)
    if interface.address.startswith("127."):
        return 0
    return 2 * (interface.speed_mbit or 1) + bool(FABRICS.match(name))


def _words(report: NodeReport, name: str) -> str:
    interface = next(each for each in report.interfaces if each.name == name)
    speed = f" {interface.speed_mbit / 1000:g} Gb/s" if interface.speed_mbit else ""
    return f"{name} {interface.address}{speed}"


def _from_here(outcome: Outcome, config: Config) -> Iterator[Finding]:
    """`action=status` asks the proxy itself where it can be reached, and reads a file where it cannot."""
    if outcome.reached is None or config.cluster is None or not outcome.checked.check.partition:
        return
    topic = f"reach {outcome.name}"
    reached = [name for name, why in outcome.reached.items() if not why]
    _, chosen = _chosen(outcome, config)
    if chosen in reached:
        yield ok(topic, f"this machine reaches the nodes over {chosen}")
    else:
        why = outcome.reached.get(chosen, "no such interface")
        yield warning(
            topic,
            f"this machine does not reach the nodes over {chosen} ({why}); it does over {listed(reached)}",
            "action=status then shows status.json and its age, and clients need an ssh tunnel: see docs/security.md",
        )


def _adapters(head: NodeReport, config: Config) -> Iterator[Finding]:
    active = [each for each in head.hcas if each.state == ACTIVE]
    if not head.hcas:
        yield ok("adapters", f"{head.node} has no RDMA adapter: KV goes over TCP")
        return
    seen = f"{head.node} has {listed(map(_adapter, head.hcas))}"
    if not head.can_rdma:
        yield warning(
            "adapters",
            f"{seen}, but /dev/infiniband cannot be opened: KV goes over TCP",
            "ask the site for access to /dev/infiniband/uverbs* in jobs",
        )
        return
    given = config.cluster is not None and "UCX_NET_DEVICES" in config.cluster.environment
    if len(active) < len(head.hcas) and active and not given:
        setting = f"cluster.environment.UCX_NET_DEVICES='{','.join(each.name for each in active)}'"
        yield warning("adapters", f"{seen}: UCX may try those that are not active", f"set {setting}", setting)
    else:
        yield ok("adapters", seen)


def _adapter(hca: Hca) -> str:
    return f"{hca.name} {hca.link} {hca.rate} {hca.state.lower()}".strip()


def _transfers(outcome: Outcome) -> Iterator[Finding]:
    for report in outcome.reports:
        transfer = report.engine.transfer if report.engine else None
        if transfer is None:
            continue
        topic = f"KV {outcome.name}"
        between = f"within {report.node}" if report.rank == 0 else f"from {outcome.reports[0].node} to {report.node}"
        if transfer.fault:
            todo = (
                "KV cannot be handed over: look at UCX's own words in the job's log; UCX_NET_DEVICES in"
                " cluster.environment names the devices it may take, UCX_TLS the transports"
            )
            yield fault(topic, f"NIXL {between}: {transfer.fault}", todo)
        else:
            yield ok(topic, f"NIXL moved memory {between} at {transfer.gib_per_s:.1f} GiB/s")
