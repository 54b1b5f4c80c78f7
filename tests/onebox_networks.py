"""A network namespace for each node of the one-box Slurm, on a bridge of this machine: each node's link can be cut.

Owns namespaces, bridge and addresses: 10.NET.0.1 here, 10.NET.0.(10 + node) on `eth0` there. Needs root.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Sequence


class Networks:
    """`start` and `stop` may each be called once."""

    def __init__(self, num_nodes: int) -> None:
        self._net = random.randrange(64, 255)
        self._nodes = range(1, num_nodes + 1)
        self._bridge = f"onebox{self._net}"

    @property
    def here(self) -> str:
        """This machine, as the nodes see it."""
        return f"10.{self._net}.0.1"

    @property
    def addresses(self) -> str:
        """Of the nodes, in Slurm's notation."""
        return f"10.{self._net}.0.[11-{10 + len(self._nodes)}]"

    @property
    def links(self) -> str:
        """The link to a node is called this and the node's name."""
        return self._bridge

    def start(self) -> None:
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("address", "add", f"{self.here}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        for node in self._nodes:
            name, link = self._name(node), f"{self.links}n{node}"
            _ip("netns", "add", name)
            _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", link, "master", self._bridge, "up")
            _ip("-n", name, "address", "add", f"10.{self._net}.0.{10 + node}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", "eth0", "up")

    def stop(self) -> None:
        for node in self._nodes:
            _ip("netns", "delete", self._name(node))
        _ip("link", "delete", self._bridge)

    def inside(self, node: int) -> Sequence[str]:
        """What goes before a command that is to run there."""
        return ("nsenter", f"--net=/run/netns/{self._name(node)}")

    def _name(self, node: int) -> str:
        return f"{self._bridge}-n{node}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
