"""What it costs to know where the KV lies: `python -m benchmarks.decisions [key=value ...]`.

Three parts. `decisions`: the time of one decision for a long prompt, by the number of workers, in the proxy's cores.
`requests`: the CPU of a real proxy per request with a long prompt, for each policy, before engines that do nothing,
all in turns within every repeat. `dynamo`: the same of the Dynamo frontend in its KV mode, which tokenizes, as it comes
and with its fastest tokenizer; it is installed from the package index. Owns the experiment and its figures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import msgspec

from benchmarks import report
from benchmarks.arguments import Count, chosen, counts
from benchmarks.command import command
from benchmarks.decision_time import Case, decision_figures
from benchmarks.direct import engine_spec
from benchmarks.measure import CommonOptions, Part, measure, parts
from benchmarks.peer_programs import KV_PEERS, PeerFault, install
from benchmarks.peers import cache_folder
from benchmarks.processes import ALWAYS_SPLIT, FLEETS, Fleet, fleet
from benchmarks.report import say
from benchmarks.targets import Target, floor_engines, peer
from proxy.routing.router import POLICIES

PARTS = ("decisions", "requests", "dynamo")
BASE = "least_loaded"
FRONTEND = "frontend_us_per_request"


class Options(CommonOptions, frozen=True, kw_only=True):
    repeats: Count = 5
    policies: str = f"{BASE},kv"
    workers: str = "8,64,512"
    prompt_tokens: Count = 32_768
    decisions: Count = 200
    block_size: Count = 16
    parts: str = ",".join(PARTS)
    venvs: str = msgspec.field(default_factory=cache_folder)


# ---------------------------------------------------------------- one decision


def all_decisions(options: Options, policies: list[str], sizes: list[int]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for policy in policies:
        for size in sizes:
            say(f"decisions of {policy} among {size} workers")
            case = Case(
                num_workers=size,
                num_tokens=options.prompt_tokens,
                block_size=options.block_size,
                policy=policy,
                seed=options.seed,
            )
            found = decision_figures(case, options.decisions)
            figures |= {f"{policy}.{size}_workers.{name}": value for name, value in found.items()}
        first, last = (f"{policy}.{size}_workers.place_p50_us" for size in (sizes[0], sizes[-1]))
        figures[f"{policy}.place_p50_growth"] = figures[last] / figures[first]
        figures[f"{policy}.workers_growth"] = sizes[-1] / sizes[0]
    return figures


# ---------------------------------------------------------------- one request


def long_prompts(options: Options) -> Part:
    return next(part for part in parts(options) if part.name == "prompts")


def repeat(
    options: Options, proxies: Mapping[str, Fleet], peers: Mapping[str, Target], number: int
) -> dict[str, float]:
    """Who is first in one repeat is last in the next."""
    part, figures = long_prompts(options), {}
    shift = number % len(proxies)
    for policy, running in (list(proxies.items()) * 2)[shift : shift + len(proxies)]:
        pids = {"proxy": running.proxy_pids, "hosts": running.hosts}
        sample = measure(part, options, running.endpoint, pids, options.seed + number)
        for process in pids:
            figures[f"{policy}.{process}_us_per_request"] = sample.per_unit_us(process, part)
    for name, target in peers.items():
        sample = measure(part, options, target.endpoint, {"frontend": target.relay}, options.seed + number)
        figures[f"{name}.{FRONTEND}"] = sample.per_unit_us("frontend", part)
    return figures | ratios(figures, list(proxies))


def ratios(figures: Mapping[str, float], policies: list[str]) -> dict[str, float]:
    """Of each policy to the base, and of Dynamo's frontend to our proxy."""
    found = {}
    for policy in policies:
        for process in ("proxy", "hosts"):
            name = f"{process}_us_per_request"
            if policy != BASE and f"{BASE}.{name}" in figures:
                found[f"{policy}.{process}_to_{BASE}"] = figures[f"{policy}.{name}"] / figures[f"{BASE}.{name}"]
        for name in (name for name in KV_PEERS if f"{name}.{FRONTEND}" in figures):
            ours = figures[f"{policy}.proxy_us_per_request"]
            found[f"{name}.frontend_to_proxy_with_{policy}"] = figures[f"{name}.{FRONTEND}"] / ours
    return found


def start_peers(stack: ExitStack, options: Options, folder: Path) -> dict[str, Target]:
    """Says why one is left out."""
    floor, started = stack.enter_context(floor_engines(options)), {}
    for name, program in KV_PEERS.items():
        try:
            programs, own = install(program, Path(options.venvs).expanduser()), folder / name
            own.mkdir()
            started[name] = stack.enter_context(peer(program, "whole", programs, own, floor))
        except PeerFault as fault:
            say(f"{name} is left out: {fault}")
    return started


def all_requests(options: Options, policies: list[str], *, beside_dynamo: bool) -> Iterator[dict[str, float]]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sluice-bench-")))
        say("starting what is measured")
        engine = engine_spec(options.step_ms, options.block_size)
        proxies = {}
        for policy in policies:
            routing = msgspec.structs.replace(ALWAYS_SPLIT, policy=policy)
            proxies[policy] = stack.enter_context(fleet(folder / policy, FLEETS["whole"], engine, routing=routing))
        peers = start_peers(stack, options, folder) if beside_dynamo else {}
        say("warming up")
        repeat(options, proxies, peers, 0)
        for number in range(options.repeats):
            say(f"repeat {number + 1} of {options.repeats}")
            yield repeat(options, proxies, peers, number + 1)


# ---------------------------------------------------------------- the whole


def run(options: Options) -> None:
    policies = chosen("policies", options.policies, sorted(POLICIES))
    wanted = chosen("parts", options.parts, PARTS)
    sizes = counts("workers", options.workers)
    figures = all_decisions(options, policies, sizes) if "decisions" in wanted else {}
    runs = []
    if "requests" in wanted:
        runs = list(all_requests(options, policies, beside_dynamo="dynamo" in wanted))
        figures |= report.medians(runs)
    versions = {name: program.version for name, program in KV_PEERS.items() if f"{name}.{FRONTEND}" in figures}
    result = report.report("decisions", figures, versions)
    report.publish(
        Path(options.output),
        result,
        {"options": options, "repeats": runs},
        report.table(["", "figure"], [[name, f"{value:.2f}"] for name, value in figures.items()]),
    )


if __name__ == "__main__":
    command(Options, run)
