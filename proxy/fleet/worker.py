"""One worker as this process of the proxy sees it: what it says of itself, and the work it has been given.

Owns the record; it is `fleet` that makes and ends it, and `flights` that moves the work.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from proxy.fleet.rates import Rates
from proxy.spec import PoolCaps
from workers.agent.lifecycle import DRAINING, READY, STOPPED
from workers.protocol import Capabilities, Load
from workers.stages import PROOF, REGISTER, StageTimes

# (worker, generation): two generations of a worker may live at once.
Key = tuple[str, int]
# A peer of the link layer: its socket identity.
Peer = bytes
# What must have been proven: KV from the first to the second; without a first, a whole completion.
Pair = tuple[Key | None, Key]
# The same for other processes of this proxy, who may see another incarnation (name, generation, incarnation).
Life = tuple[str, int, str]
Proof = tuple[Life | None, Life]


@dataclass(slots=True)
class Worker:
    """One life of one worker, and the work that this proxy has given it."""

    key: Key
    pool: str
    role: str
    incarnation: str
    caps: PoolCaps
    agent: Peer | None = None
    host: Peer | None = None
    phase: str = ""
    detail: str = ""
    node: str = ""
    job: str = ""
    end_time: float | None = None
    gpus: tuple[int, ...] = ()
    capabilities: Capabilities | None = None
    load: Load = field(default_factory=lambda: Load(0, 0, 0, 0))
    load_at: float | None = None  # when the host said so
    prefill_tokens: int = 0  # to compute, of prompts given and not yet through
    num_prompts: int = 0  # these prompts
    num_decodes: int = 0
    held_tokens: int = 0  # of these decodes' prompts
    begun_tokens: int = 0  # of these, where the first token is there
    begun_tokens_told: int = 0  # as many when the host last told its load, which counts their KV
    pinned_blocks: int = 0  # of open tickets that it holds for us
    last_chosen: int = 0  # for turns among equals
    computing_since: float = 0.0  # the first of these prompts: when it came, or the one before it was through
    rates: Rates = field(default_factory=Rates)
    agent_stages: StageTimes = ()  # of its start, as its agent tells them
    ready_at: float | None = None
    up_at: float | None = None
    proven_at: float | None = None
    told_to_leave: bool = False  # it takes nothing new: a successor does

    @property
    def life(self) -> Life:
        return (*self.key, self.incarnation)

    @property
    def up(self) -> bool:
        return self.answers and self.phase == READY and not self.told_to_leave

    @property
    def answers(self) -> bool:
        """What has been promised a place here still gets its answer."""
        return self.agent is not None and self.host is not None and self.phase in (READY, DRAINING)

    @property
    def leaving(self) -> bool:
        """It ends because somebody wants it to."""
        return self.told_to_leave or self.phase in (DRAINING, STOPPED)

    @property
    def stages(self) -> StageTimes:
        """Of its start: what its agent told, then what only a proxy can see."""
        stages = self.agent_stages
        if self.ready_at is not None and self.up_at is not None:
            stages = (*stages, (REGISTER, self.up_at - self.ready_at))
        if self.up_at is not None and self.proven_at is not None:
            stages = (*stages, (PROOF, self.proven_at - self.up_at))
        return stages

    def queue_s(self, now: float) -> float:
        """Until the prompts that it has been given are computed."""
        prefill = self.rates.prefill
        tokens_s = prefill.each_s * (self.prefill_tokens + self.load.other_prefill_tokens)
        if not self.num_prompts:
            return tokens_s
        work_s = prefill.fixed_s * self.num_prompts + tokens_s
        return max(0.0, work_s - (now - self.computing_since))

    # What this proxy has given it, and by the host's last word what others have.

    @property
    def all_prefill_tokens(self) -> int:
        return self.prefill_tokens + self.load.other_prefill_tokens

    @property
    def all_decodes(self) -> int:
        return self.num_decodes + self.load.other_decodes

    @property
    def all_pinned_blocks(self) -> int:
        return self.pinned_blocks + self.load.other_pinned_blocks
