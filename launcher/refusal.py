"""The one error of a configuration that cannot run: all faults at once, each with its config key."""

from __future__ import annotations

from collections.abc import Sequence


class Refused(Exception):
    """Each fault reads `key: what is wrong; what to do`."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)
