"""The phases of a worker's life, as a table. An illegal step is an error that tells the story.

Pure. The agent is the only one who moves its worker; everyone else reads.
"""

from __future__ import annotations

STARTING = "starting"  # the agent is up and checks its surroundings
LOADING = "loading"  # the engine's process loads the model
READY = "ready"  # the engine answers
DRAINING = "draining"  # nothing new; what runs is finished
STOPPED = "stopped"  # ended as asked
FAILED = "failed"  # ended by itself

NEXT: dict[str, frozenset[str]] = {
    STARTING: frozenset({LOADING, STOPPED, FAILED}),
    LOADING: frozenset({READY, STOPPED, FAILED}),
    READY: frozenset({DRAINING, STOPPED, FAILED}),
    DRAINING: frozenset({STOPPED, FAILED}),
    STOPPED: frozenset(),
    FAILED: frozenset(),
}


class IllegalStep(RuntimeError):
    """A bug of ours: the message is the whole story so far."""


class Lifecycle:
    """The phase of one worker and how it came to be."""

    def __init__(self) -> None:
        self.story: list[tuple[str, str]] = [(STARTING, "")]

    @property
    def phase(self) -> str:
        return self.story[-1][0]

    @property
    def detail(self) -> str:
        return self.story[-1][1]

    @property
    def ended(self) -> bool:
        return not NEXT[self.phase]

    def step(self, phase: str, detail: str = "") -> None:
        """Move to `phase`, or stay in it with a new detail. Raises IllegalStep."""
        if phase != self.phase and phase not in NEXT[self.phase]:
            told = " -> ".join(p if not d else f"{p} ({d})" for p, d in self.story)
            raise IllegalStep(f"{told}: no step to {phase} ({detail})")
        self.story.append((phase, detail))
