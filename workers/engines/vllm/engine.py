"""The vLLM adapter: an engine in this process's event loop, its OpenAI app, and what lies below HTTP.

Owns the engine's client and the life of its processes. With `vllm_calls` and `vllm_leases` it is the only
place that knows vLLM's private API. Knows no proxy, no socket and no Slurm.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import msgspec

from workers.engines import AsgiApp, Placement
from workers.engines.vllm.args import PUSH_CONNECTOR, engine_argv, engine_environment, engine_id, installed
from workers.host.calls import Call
from workers.protocol import Capabilities
from workers.spec import EngineSpec

POLL_INTERVAL_S = 0.002  # of an engine that steps every millisecond as long as a lease is open


class VllmEngine:
    """An engine that has loaded its model."""

    def __init__(
        self, client: Any, app: AsgiApp, *, capabilities: Capabilities, own_id: str, patience_s: float, pushes: bool
    ) -> None:
        self.app = app
        self.version = installed().version
        self.capabilities = capabilities
        self._client = client
        self._own_id = own_id
        self._patience_s = patience_s
        self._pushes = pushes
        self._release_elsewhere = client.notify_kv_transfer_request_rejected

    def kv_tokens_received(self) -> int:
        """vLLM counts these when the first token that was computed on them is out."""
        samples = _own_metric("vllm:prompt_tokens_by_source_total")
        return int(sum(value for labels, value in samples if labels["source"] == "external_kv_transfer"))

    def kv_used(self) -> float:
        return max((value for _, value in _own_metric("vllm:kv_cache_usage_perc")), default=0.0)

    def alive(self) -> bool:
        return not self._client.errored

    async def respond(self) -> None:
        """Any question to the engine's process will do: it answers between two steps. If it has died, so be it."""
        from vllm.v1.engine.exceptions import EngineDeadError

        with contextlib.suppress(EngineDeadError):
            await self._client.is_sleeping()

    async def cancel(self, call: Call) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        call.cancelled = True  # whatever its app still asks for is refused from here on
        if not call.engine_ids:
            return
        try:
            await self._client.abort(call.engine_ids, internal=True)
            await self._end_leases(call.engine_ids)
            if self._pushes and call.ticket_used:
                await self._end_receiving(call.engine_ids)
        except EngineDeadError:
            return  # nothing of the call runs any more, nor of any other

    async def release(self, params: bytes) -> None:
        ticket = msgspec.json.decode(params)
        request_id = ticket["remote_request_id"]
        if ticket["remote_engine_id"] == self._own_id:
            await self._end_leases([request_id])
        else:
            await self._release_elsewhere(f"{request_id}-release", ticket)

    async def num_leases(self) -> int:
        """Requests whose blocks wait to be read; an idle engine's gauges are old, this is not."""
        counts: list[int] = await self._client.collective_rpc("sluice_num_leases")
        return max(counts)

    async def _end_leases(self, request_ids: Sequence[str]) -> None:
        """Returns once no worker of the engine knows these requests.

        It follows the abort in the engine's input queue. A finish that crosses an abort leaves a lease that
        nobody was told about: its request id is ours all the same.
        """
        async with asyncio.timeout(self._patience_s):
            while any(await self._client.collective_rpc("sluice_end_leases", args=(list(request_ids),))):  # noqa: ASYNC110
                await asyncio.sleep(POLL_INTERVAL_S)  # the engine has no event for it

    async def _end_receiving(self, request_ids: Sequence[str]) -> None:
        """Returns once nothing is written into the blocks of these aborted requests, which frees them.

        Until then the holder of their ticket must not be told to release it: it would not write, and these blocks
        would wait for ever. Where it is gone, its lease has ended when the patience has.
        """
        try:
            async with asyncio.timeout(self._patience_s):
                while any(await self._client.collective_rpc("sluice_receiving", args=(list(request_ids),))):  # noqa: ASYNC110
                    await asyncio.sleep(POLL_INTERVAL_S)  # the engine has no event for it
        except TimeoutError:
            await self._client.collective_rpc("sluice_give_up_receiving", args=(list(request_ids),))


def _own_metric(name: str) -> list[tuple[dict[str, str], float]]:
    """(labels, value) of vLLM's own Prometheus series in this process."""
    from prometheus_client import REGISTRY

    metrics = REGISTRY.restricted_registry([name]).collect()
    return [(s.labels, s.value) for metric in metrics for s in metric.samples if s.name == name]


@asynccontextmanager
async def start(
    spec: EngineSpec, placement: Placement, imported: Callable[[], None] = lambda: None
) -> AsyncIterator[VllmEngine]:
    """Load the model and serve until the context ends. The event loop stays free while it loads."""
    args, config = await asyncio.to_thread(_configure, spec, placement)
    imported()
    client = await asyncio.to_thread(_load, args, config)
    try:
        yield await _serve(client, args, spec, placement)
    finally:
        client.shutdown(timeout=0)


def run_headless(spec: EngineSpec, placement: Placement) -> None:
    """A further node of a multi-node engine: blocks until it is killed, as it does not notice that rank 0 is gone."""
    with _agent_signals_blocked():
        args = _parse(spec, placement)
        from vllm.entrypoints.cli.serve import run_headless as run

        args.api_server_count = 0
        run(args)


def _configure(spec: EngineSpec, placement: Placement) -> tuple[argparse.Namespace, Any]:
    """All of vLLM's imports are made here."""
    with _agent_signals_blocked():
        args = _parse(spec, placement)
        from vllm import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM  # noqa: F401

        engine_args = AsyncEngineArgs.from_cli_args(args)
        config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
        if installed().cpu and not config.additional_config:
            from workers.engines.vllm.spin import Spin

            config.additional_config = Spin()
        return args, config


def _load(args: argparse.Namespace, config: Any) -> Any:
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    with _agent_signals_blocked():
        return AsyncLLM.from_vllm_config(
            config, usage_context=UsageContext.OPENAI_API_SERVER, enable_log_requests=args.enable_log_requests
        )


@contextmanager
def _agent_signals_blocked() -> Iterator[None]:
    """vLLM's processes end themselves on SIGTERM, which Slurm sends to every process of a step, long before the
    agent has drained. They install that handler themselves, but inherit which signals are blocked.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _parse(spec: EngineSpec, placement: Placement) -> argparse.Namespace:
    """The environment must be complete before vLLM is imported."""
    cpu = installed().cpu
    argv = engine_argv(spec, placement, cpu=cpu)
    os.environ.update(engine_environment(spec, placement, os.environ, cpu=cpu))
    return parse_flags(argv)


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """By vLLM's own parser and with its own checks: SystemExit or an error in its words."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.launchers.launcher import validate_api_server_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    args: argparse.Namespace = make_arg_parser(FlexibleArgumentParser()).parse_args(argv)
    validate_parsed_serve_args(args)
    validate_api_server_args(args)
    return args


async def _serve(client: Any, args: argparse.Namespace, spec: EngineSpec, placement: Placement) -> VllmEngine:
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app

    await client.reset_mm_cache()  # dummy data of the start
    if installed().cpu:
        await client.collective_rpc("sluice_use_cpus", args=(sorted(os.sched_getaffinity(0)),))
    tasks = await client.get_supported_tasks()
    app = build_app(args, tasks, client.model_config)
    engine = VllmEngine(
        client,
        app,
        capabilities=await _capabilities(client, spec, args, tasks),
        own_id=engine_id(placement),
        patience_s=spec.handoff.lease_s if spec.handoff is not None else 60.0,
        pushes=_pushes(spec),
    )
    _report_calls(client)
    await init_app_state(client, app.state, args, tasks)
    return engine


def _pushes(spec: EngineSpec) -> bool:
    return spec.handoff is not None and spec.handoff.connector == PUSH_CONNECTOR


def _report_calls(client: Any) -> None:
    from workers.engines.vllm.calls import reporting, reporting_assign, resuming

    async def refuse(*args: Any, **kwargs: Any) -> None:
        """vLLM's app releases the ticket in a body that it refuses; the only tickets there are a stranger's."""

    client.generate = reporting(client.generate)
    client.encode = reporting(client.encode)
    core = client.engine_core
    core.add_request_async = resuming(core.add_request_async, client.output_processor.request_states)
    client.input_processor.assign_request_id = reporting_assign(client.input_processor.assign_request_id)
    client.notify_kv_transfer_request_rejected = refuse


async def _capabilities(client: Any, spec: EngineSpec, args: argparse.Namespace, tasks: Sequence[str]) -> Capabilities:
    config = client.vllm_config
    block_size = config.cache_config.block_size
    kv_format = (await client.collective_rpc("sluice_kv_format"))[0]
    # Each stage of a pipeline has some layers: it can write its part, but not read or be read by layer.
    one_stage = spec.pipeline_parallel == 1
    return Capabilities(
        models=spec.served_names + tuple(module.name for module in args.lora_modules or ()),
        max_model_len=config.model_config.max_model_len,
        block_size=block_size,
        num_blocks=config.cache_config.num_gpu_blocks,
        max_num_seqs=config.scheduler_config.max_num_seqs,
        dp_ranks=1,
        can_prefill=bool(kv_format) and (one_stage or _pushes(spec)),
        can_decode=bool(kv_format) and one_stage,
        kv_format=f"{kv_format[:16]}/{block_size}" if kv_format else "",
        generates="generate" in tasks,
    )
