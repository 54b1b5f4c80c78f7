"""The stages of a worker's start, and how long each took.

Pure: times are arguments. The agent enters the stages one after the other; an engine may tell how much of the
current one went into parts of it. What a proxy and the controller see of the start is added by them.
"""

from __future__ import annotations

StageTimes = tuple[tuple[str, float], ...]  # (stage, seconds), in order

QUEUE = "queue"  # in Slurm's queue; the controller's word
ENVIRONMENT = "environment"  # from the job's start to the agent's: prolog, cluster.setup, imports
PREFLIGHT = "preflight"
TURN = "turn"  # until it was this worker's to read the model
STAGING = "staging"  # the model, to a disk of the node
IMPORT = "import"  # the engine's own modules
LOAD = "load"  # its processes, and what of the rest it does not tell apart
WEIGHTS = "weights"
COMPILE = "compile"
WARM_UP = "warm-up"
REGISTER = "register"  # until the proxy has the engine's link
PROOF = "proof"  # until a real completion has gone through it
ORDER = (QUEUE, ENVIRONMENT, PREFLIGHT, TURN, STAGING, IMPORT, LOAD, WEIGHTS, COMPILE, WARM_UP, REGISTER, PROOF)


class StageClock:
    """One start of one worker."""

    def __init__(self) -> None:
        self._ended: dict[str, float] = {}
        self._current: tuple[str, float] | None = None
        self._parts: dict[str, float] = {}

    @property
    def times(self) -> StageTimes:
        """Of the stages that have ended, in order."""
        return tuple(self._ended.items())

    def add(self, name: str, seconds: float) -> None:
        """A stage that was over before the clock ran."""
        self._ended[name] = max(0.0, seconds)

    def enter(self, name: str, now: float) -> None:
        self.end(now)
        self._current = (name, now)

    def tell(self, part: str, seconds: float) -> None:
        """So much of the current stage was this. Each rank of an engine may say so: the slowest counts."""
        self._parts[part] = max(seconds, self._parts.get(part, 0.0))

    def end(self, now: float) -> None:
        if self._current is None:
            return
        name, since = self._current
        self._ended[name] = max(0.0, now - since - sum(self._parts.values()))
        self._ended |= self._parts
        self._current, self._parts = None, {}


def in_words(times: StageTimes) -> str:
    """preflight 2.1 s, import 9.0 s, load 20.3 s"""
    return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in times)
