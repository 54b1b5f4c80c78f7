"""One sequence of the simulated engine: its tokens, its place in the KV memory and the hash of it all.

Pure. Knows what its blocks should contain and notices where they do not; the scheduler moves it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from workers.engines.sim.blocks import chain


@dataclass(slots=True, eq=False)
class Sequence:
    id: int
    tokens: list[int]
    num_prompt: int
    end: int  # number of tokens at which it is complete
    salt: int
    hold: bool
    remote: bool  # until its KV has arrived or was given up
    keys: list[int] = field(default_factory=list)  # of the full blocks of `tokens`
    state: int = 0  # hash of all of `tokens`
    taint: int = 0  # 0: every block contains what it should
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    seen: bool = False  # it was scheduled before

    def extend_hash(self, block_size: int) -> None:
        """Take `tokens` not hashed yet into `keys` and `state`; all but the last few come block by block."""
        while (start := len(self.keys) * block_size) + block_size <= len(self.tokens):
            self.keys.append(chain(self.keys[-1] if self.keys else 0, self.tokens[start : start + block_size]))
        self.state = self.keys[-1] if self.keys else 0
        for token in self.tokens[start:]:
            self.state = chain(self.state, (token,))

    def append(self, token: int, block_size: int) -> None:
        self.tokens.append(token)
        if len(self.tokens) % block_size == 0:
            self.extend_hash(block_size)
        else:
            self.state = chain(self.state, (token,))

    def compare(self, contents: list[int], expected: list[int]) -> None:
        """Let every difference change what this sequence will say, as wrong KV does."""
        for content, key in zip(contents, expected, strict=True):
            if content != key:
                self.taint = chain(self.taint, (content ^ key,))
