"""How the proxy shows its fleet: to people as JSON at /fleet, to the controller as FleetView, to Prometheus.

Pure: reads the cores, changes nothing. Owns the shape of /fleet.
"""

from __future__ import annotations

from typing import Any

from proxy.fleet.fleet import Fleet
from proxy.fleet.turns import Turns
from proxy.fleet.worker import Key, Pair, Worker
from proxy.flights.flights import Flights
from proxy.monitoring.snapshot import Gauge
from proxy.routing.explain import decision_json
from workers.controller_messages import FleetView, JobView, WorkerView


def fleet_json(
    fleet: Fleet,
    flights: Flights,
    turns: Turns,
    jobs: tuple[JobView, ...],
    strangers: tuple[str, ...],
    run: str,
    *,
    now: float,
    unix: float,
) -> dict[str, Any]:
    """Seconds and unix times; a job without a worker yet is listed with its Slurm state."""
    return {
        "run": run,
        "ready": fleet.ready,
        "serving": fleet.serving,
        "queued": len(flights.queue),
        "queued_tokens": sum(flight.demand.num_tokens for flight in flights.queue),
        "open_requests": len(flights.open),
        "open_tickets": len(flights.tickets),
        "workers": [_worker_json(worker, turns, now, unix) for worker in fleet.workers.values()],
        "jobs": [_job_json(job) for job in jobs],
        "pairs": [_pair_json(fleet, pair) for pair in fleet.expected_pairs()],
        "decisions": [decision_json(request_id, route) for request_id, route in flights.decided],
        "refusals": [*fleet.refusals, *strangers],
    }


def _worker_json(worker: Worker, turns: Turns, now: float, unix: float) -> dict[str, Any]:
    capabilities = worker.capabilities
    return {
        "worker": worker.key[0],
        "generation": worker.key[1],
        "pool": worker.pool,
        "role": worker.role,
        "phase": worker.phase,
        "detail": worker.detail,
        "leaving": worker.leaving,
        "node": worker.node,
        "gpus": worker.gpus,
        "job": worker.job,
        "time_left_s": None if worker.end_time is None else round(worker.end_time - unix),
        "heard_s_ago": None if worker.load_at is None else round(now - worker.load_at, 1),
        "running": worker.load.running,
        "waiting": worker.load.waiting,
        "prefill_tokens": worker.prefill_tokens,
        "decodes": worker.num_decodes,
        "pinned_blocks": worker.load.pinned_blocks,
        "kv_used": worker.load.kv_used,
        "kv_tokens_received": worker.load.kv_tokens_received,
        "kv_blocks": capabilities.num_blocks if capabilities else None,
        "max_model_len": capabilities.max_model_len if capabilities else None,
        "stages": {stage: round(seconds, 2) for stage, seconds in worker.stages},
        "turn": turn_words(turns, worker.key),
        "max_prefill_tokens": worker.caps.max_prefill_tokens,
        "max_decodes": worker.caps.max_decodes,
        "up": worker.up,
        "pressure": pressure_json(worker, now),
    }


def pressure_json(worker: Worker, now: float) -> dict[str, Any]:
    """What moving roles looks at."""
    rates, capabilities = worker.rates, worker.capabilities
    return {
        "worker": worker.key[0],
        "queue_s": worker.queue_s(now),
        "computed_s": rates.computed_s,
        "decodes": worker.num_decodes,
        "held_tokens": worker.held_tokens,
        "running": worker.load.running,
        "max_running": capabilities.max_num_seqs if capabilities else 1,
        "kv_used": worker.load.kv_used,
        "prompt_each_s": rates.prefill.each_s,
        "step_s": rates.step.fixed_s,
        "step_each_s": rates.step.each_s,
    }


def _job_json(job: JobView) -> dict[str, Any]:
    return {name: getattr(job, name) for name in job.__struct_fields__}


def _pair_json(fleet: Fleet, pair: Pair) -> dict[str, Any]:
    prefill, decode = pair
    return {
        "prefill": None if prefill is None else prefill[0],
        "decode": decode[0],
        "proven": pair in fleet.proven,
        "fault": fleet.unproven.get(pair, ""),
    }


def turn_words(turns: Turns, key: Key) -> str:
    """Of a worker's turn to read its model; nothing of one that neither has nor wants it."""
    before = turns.before(key)
    return "its turn" if turns.reads(key) else "" if before is None else f"{before} before it" if before else "next"


def fleet_view(fleet: Fleet, turns: Turns) -> FleetView:
    expected = fleet.expected_pairs()
    return FleetView(
        workers=tuple(_worker_view(fleet, worker, turns) for worker in fleet.workers.values()),
        ready=fleet.ready,
        proven_pairs=tuple(_names(pair) for pair in expected if pair in fleet.proven),
        missing_pairs=tuple(_names(pair) for pair in expected if pair not in fleet.proven),
        refusals=tuple(fleet.refusals),
        faults=tuple(f"{_pair_name(pair)}: {fleet.unproven[pair]}" for pair in expected if pair in fleet.unproven),
    )


def _worker_view(fleet: Fleet, worker: Worker, turns: Turns) -> WorkerView:
    return WorkerView(
        worker=worker.key[0],
        pool=worker.pool,
        role=worker.role,
        generation=worker.key[1],
        phase=worker.phase,
        detail=worker.detail,
        node=worker.node,
        job=worker.job,
        end_time=worker.end_time,
        running=worker.load.running,
        waiting=worker.load.waiting,
        stages=worker.stages,
        turn=turn_words(turns, worker.key),
        proven=fleet.tried(worker),
    )


def _names(pair: Pair) -> tuple[str, str]:
    return ("" if pair[0] is None else pair[0][0], pair[1][0])


def _pair_name(pair: Pair) -> str:
    prefill, decode = _names(pair)
    return f"{prefill or 'whole'} -> {decode}"


def gauges(fleet: Fleet, flights: Flights, process: str, num_connections: int) -> list[Gauge]:
    workers = list(fleet.workers.values())
    per_worker: list[Gauge] = [
        ("sluice_worker_up", "1 while the worker takes requests.", [(_label(w.key), float(w.up)) for w in workers]),
        ("sluice_worker_running", "Running, by the host.", [(_label(w.key), w.load.running) for w in workers]),
        ("sluice_worker_waiting", "Waiting, by the host.", [(_label(w.key), w.load.waiting) for w in workers]),
        ("sluice_worker_kv_used", "Part of the KV cache in use.", [(_label(w.key), w.load.kv_used) for w in workers]),
        (
            "sluice_worker_max_prefill_tokens",
            "Cap of prompt tokens in flight; 0: it only decodes.",
            [(_label(w.key), w.caps.max_prefill_tokens) for w in workers],
        ),
        (
            "sluice_worker_max_decodes",
            "Cap of answers at once; 0: it only prefills.",
            [(_label(w.key), w.caps.max_decodes) for w in workers],
        ),
        (
            "sluice_worker_pinned_blocks",
            "KV blocks held for unread tickets.",
            [(_label(w.key), w.load.pinned_blocks) for w in workers],
        ),
        (
            "sluice_worker_end_time_seconds",
            "Unix time at which Slurm ends its job.",
            [(_label(w.key), w.end_time) for w in workers if w.end_time is not None],
        ),
    ]
    return [
        ("sluice_open_tickets", "Tickets neither read nor released.", [({}, len(flights.tickets))]),
        ("sluice_queued_requests", "Requests that wait for a worker.", [({}, len(flights.queue))]),
        ("sluice_open_requests", "Requests not yet ended.", [({}, len(flights.open))]),
        ("sluice_connections", "Open client connections, by process.", [({"process": process}, num_connections)]),
        *[gauge for gauge in per_worker if gauge[2]],
    ]


def _label(key: Key) -> dict[str, str]:
    return {"worker": key[0], "generation": str(key[1])}
