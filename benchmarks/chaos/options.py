"""What `python -m benchmarks.chaos` can be asked for."""

from __future__ import annotations

import msgspec

from benchmarks.arguments import Count, Duration

ALL = "all"
OWN_SLURM = "onebox"
SIMULATED = "sim"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    rows: str = ALL  # names, with commas
    cluster: str = OWN_SLURM  # without SLURM_CONF this one is started: a Slurm of three nodes on this machine
    engine: str = SIMULATED  # any other is a real one: vllm, or vllm_cpu
    users: Count = 16  # each reads one stream after the other
    tokens: Count = 100  # of each stream
    step_ms: Duration = 20.0
    prompt_words: Count = 200
    replicas: Count = 2  # of each role
    generations: Count = 5  # hand-overs of each worker, where a row says so
    kill_controller: bool = False  # again and again, while the row's event lasts
    outage_s: Duration = 60.0  # of Slurm, or of the run folder
    soak_s: Duration = 1800.0  # of the row of that name, which all rows are without
    calm_s: Duration = 8.0  # before anything happens: what is normal
    seed: Count = 1  # of moments that are left to chance
    output: str = "bench-results"
