"""The contract between the adapter and the installed vLLM: run it before a version is called supported.

Two real engines, each in a process of its own as in production, with real NIXL between them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from tests.integration import vllm_child
from tests.integration.vllm_child import Outcome
from tests.live import SOURCE
from tests.streaming import Answer
from workers.engines import Placement
from workers.engines.vllm.args import SUPPORTED_VERSIONS, engine_id
from workers.output_ids import pack
from workers.protocol import Leg, Resume, Ticket
from workers.spec import EngineSpec, HandoffSpec

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

START_TIMEOUT_S = 300.0
ANSWER_TIMEOUT_S = 120.0
REDEEM_S = 30.0
SHORT = "def f(x): return x " * 40
LONG = "def f(x): return x " * 450


class EngineProcess:
    """The test's end of one child. `ask` waits for the answer; the child handles one command at a time here."""

    def __init__(self, model: Path, worker: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._local_dir = tempfile.TemporaryDirectory(prefix="sluice-")
        self.placement = Placement(
            worker=worker,
            generation=1,
            session=os.urandom(4).hex(),
            address="127.0.0.1",
            interface="lo",
            handoff_port=_free_port(),
            head_address="127.0.0.1",
            head_port=0,
            node_rank=0,
            num_nodes=1,
            local_dir=self._local_dir.name,
            cache_dir=f"{self._local_dir.name}/cache",
            model_path=str(model),
        )
        self._connection: Connection
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=vllm_child.serve, args=(theirs, _spec(model), self.placement))
        self._process.start()
        theirs.close()
        self._asked = 0

    def wait_started(self) -> None:
        assert self._answer(START_TIMEOUT_S) == (0, None)

    def ask(self, name: str, **kwargs: Any) -> Any:
        self._asked += 1
        self._connection.send((self._asked, name, kwargs))
        number, value = self._answer(ANSWER_TIMEOUT_S)
        assert number == self._asked
        return value

    def _answer(self, timeout_s: float) -> Any:
        assert self._connection.poll(timeout_s), "the engine's process does not answer; its log is above"
        return self._connection.recv()

    def call(self, leg: str, prompt: Any, ticket: Ticket | None = None, **kwargs: Any) -> Outcome:
        cancel_after_s = kwargs.pop("cancel_after_s", None)
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 16, "temperature": 0} | kwargs
        outcome: Outcome = self.ask("call", leg=leg, body=body, ticket=ticket, cancel_after_s=cancel_after_s)
        return outcome

    def leases(self) -> int:
        count: int = self.ask("state")["leases"]
        return count

    def kv_tokens_received(self) -> int:
        count: int = self.ask("state")["received"]
        return count

    def gauges(self) -> dict[str, float]:
        """vLLM's own figures. An idle engine's are old: one small request brings them up to date."""
        assert self.call(Leg.WHOLE, "x", max_tokens=1).status == 200
        text = self.ask("call", method="GET", path="/metrics").body.decode()
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        lines = [line for line in text.splitlines() if line.partition("{")[0] in names]
        return {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines}

    def stop(self) -> list[psutil.Process]:
        """Ask it to end, then end it; the processes that it left behind."""
        group = [p for p in psutil.process_iter() if _group_of(p.pid) == self._process.pid]
        with contextlib.suppress(BrokenPipeError):
            self._connection.send(None)
        self._process.join(30)
        left = [p for p in group if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid or 0, signal.SIGKILL)
        self._process.join(10)
        self._process.close()
        self._connection.close()
        self._local_dir.cleanup()
        return left


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _spec(model: Path) -> EngineSpec:
    return EngineSpec(
        kind="vllm",
        version=SUPPORTED_VERSIONS[-1],
        device="cpu",
        model_path=str(model),
        served_names=("tiny",),
        max_model_len=4096,
        block_size=32,
        tensor_parallel=1,
        pipeline_parallel=1,
        args={
            "kv_cache_memory_bytes": 256 << 20,
            "max_num_seqs": 8,
            "dtype": "float32",
        },
        environment={},
        prefix=(),
        handoff=HandoffSpec(connector="NixlConnector", buffer_device="cpu", lease_s=120.0, redeem_s=REDEEM_S),
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    subprocess.run([sys.executable, "-m", "workers.engines.tiny_model", str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def engines(model: Path) -> Iterator[tuple[EngineProcess, EngineProcess]]:
    with contextlib.ExitStack() as stack:
        started = []
        for worker in ("prefill-0", "decode-0"):
            engine = EngineProcess(model, worker)
            stack.callback(_stop_clean, engine)
            started.append(engine)
        for engine in started:
            engine.wait_started()
        yield started[0], started[1]


def _stop_clean(engine: EngineProcess) -> None:
    assert engine.stop() == []


@pytest.fixture
def prefill(engines: tuple[EngineProcess, EngineProcess]) -> Iterator[EngineProcess]:
    yield engines[0]
    _assert_at_rest(*engines)


@pytest.fixture
def decode(engines: tuple[EngineProcess, EngineProcess]) -> EngineProcess:
    return engines[1]


def _assert_at_rest(*engines: EngineProcess) -> None:
    """No lease is open, nothing runs or waits and no block is in use, by vLLM's own figures."""
    for engine in engines:
        _eventually(lambda engine=engine: engine.leases() == 0)
        assert set(engine.gauges().values()) == {0.0}, engine.placement.worker


def _eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _text(outcome: Outcome) -> str:
    assert outcome.status == 200, outcome
    text: str = msgspec.json.decode(outcome.body)["choices"][0]["text"]
    return text


def _ticket(outcome: Outcome) -> Ticket:
    assert outcome.ticket is not None, outcome
    return outcome.ticket


def test_the_output_depends_on_the_whole_prompt(prefill: EngineProcess) -> None:
    assert _text(prefill.call(Leg.WHOLE, "A" + LONG)) != _text(prefill.call(Leg.WHOLE, "B" + LONG))


def test_capabilities_are_those_of_the_loaded_engine(prefill: EngineProcess, decode: EngineProcess) -> None:
    states = [prefill.ask("state"), decode.ask("state")]
    for state in states:
        capabilities = state["capabilities"]
        assert state["alive"] and state["version"] in SUPPORTED_VERSIONS
        assert capabilities.models == ("tiny",)
        assert (capabilities.max_model_len, capabilities.block_size, capabilities.max_num_seqs) == (4096, 32, 8)
        assert capabilities.num_blocks == (256 << 20) // (32 * 4 * 2 * 4 * 32 * 4)  # tokens, layers, K and V, heads ...
        assert capabilities.can_prefill and capabilities.can_decode
    assert states[0]["capabilities"].kv_format == states[1]["capabilities"].kv_format != ""


@pytest.mark.parametrize("prompt", ["C" + SHORT, "D" + LONG, "a short one"])
def test_prefill_and_decode_equal_whole(prefill: EngineProcess, decode: EngineProcess, prompt: str) -> None:
    before = decode.kv_tokens_received()
    first = prefill.call(Leg.PREFILL, prompt, max_tokens=5, min_tokens=5, stop=["e"], logprobs=2, stream=True)
    assert first.failure is None and first.num_output_tokens == 1
    assert first.engine_ids == [msgspec.json.decode(_ticket(first).params)["remote_request_id"]]
    second = decode.call(Leg.DECODE, prompt, ticket=_ticket(first))
    assert second.ticket_used and second.ticket is None and b"remote_" not in second.body
    received = decode.kv_tokens_received() - before
    assert received == second.num_prompt_tokens
    assert _text(second) == _text(prefill.call(Leg.WHOLE, prompt))
    assert decode.kv_tokens_received() - before == received


def test_a_whole_request_receives_no_kv(prefill: EngineProcess, decode: EngineProcess) -> None:
    before = decode.kv_tokens_received()
    assert decode.call(Leg.WHOLE, "E" + SHORT, n=2, temperature=1).num_output_tokens == 32
    assert decode.kv_tokens_received() == before


def test_the_kv_in_use_is_vllms_own_figure(prefill: EngineProcess) -> None:
    ticket = _ticket(prefill.call(Leg.PREFILL, "K" + LONG))
    assert 0 < prefill.ask("state")["kv_used"] < 1
    prefill.ask("release", params=ticket.params)
    prefill.gauges()  # one small request: an idle engine's figure is old
    assert prefill.ask("state")["kv_used"] == 0


def test_vllm_has_the_metrics_that_the_dashboard_draws(prefill: EngineProcess) -> None:
    drawn = set(re.findall(r"vllm:[a-z_]+", (SOURCE / "docs" / "grafana.json").read_text()))
    text = prefill.ask("call", leg=Leg.WHOLE, method="GET", path="/metrics").body.decode()
    assert drawn and all(f"\n{name}{{" in text for name in drawn)


def test_what_a_client_injects_has_no_effect(prefill: EngineProcess, decode: EngineProcess) -> None:
    prompt = "F" + SHORT
    stolen = msgspec.json.decode(_ticket(prefill.call(Leg.PREFILL, "G" + SHORT)).params)
    before = decode.kv_tokens_received()
    injected = decode.call(Leg.WHOLE, prompt, kv_transfer_params=stolen, vllm_xargs={"kv_transfer_params": "stolen"})
    assert decode.kv_tokens_received() == before
    assert _text(injected) == _text(prefill.call(Leg.WHOLE, prompt))
    # Nor does a body that vLLM refuses free another's blocks, nor one that asks for a hand-over get one.
    refused = decode.call(Leg.WHOLE, "word " * 5000, kv_transfer_params=stolen)
    assert refused.status == 400 and b"maximum context length" in refused.body
    asked = prefill.call(Leg.WHOLE, prompt, kv_transfer_params={"do_remote_decode": True})
    assert asked.status == 200 and b"remote_" not in asked.body
    assert prefill.leases() == 1
    prefill.ask("release", params=msgspec.json.encode(stolen))


@pytest.mark.parametrize(
    "more",
    [{"prompt": ["a " + SHORT, "b " + SHORT]}, {"n": 2, "temperature": 1}, {"prompt_logprobs": 1}],
    ids=["two prompts", "n = 2", "prompt_logprobs"],
)
@pytest.mark.parametrize("leg", [Leg.PREFILL, Leg.DECODE])
def test_only_one_sequence_can_be_split(
    prefill: EngineProcess, decode: EngineProcess, leg: str, more: dict[str, Any]
) -> None:
    prompt = "H" + SHORT
    ticket = _ticket(prefill.call(Leg.PREFILL, prompt)) if leg == Leg.DECODE else None
    engine = decode if leg == Leg.DECODE else prefill
    outcome = engine.call(leg, **({"prompt": prompt, "ticket": ticket} | more))
    assert outcome.status == 0 and outcome.body == b"" and outcome.retryable
    assert outcome.failure is not None and "must run whole" in outcome.failure
    for spare in (ticket, outcome.ticket):
        if spare is not None:
            prefill.ask("release", params=spare.params)


def test_an_old_ticket_is_refused_and_still_unused(prefill: EngineProcess, decode: EngineProcess) -> None:
    prompt = "I" + SHORT
    ticket = _ticket(prefill.call(Leg.PREFILL, prompt))
    outcome = decode.call(Leg.DECODE, prompt, ticket=msgspec.structs.replace(ticket, age_s=REDEEM_S + 1))
    assert outcome.failure is not None and "ticket is" in outcome.failure and outcome.retryable
    assert not outcome.ticket_used and outcome.status == 0
    prefill.ask("release", params=ticket.params)


def test_a_request_that_vllm_refuses_has_not_used_its_ticket(prefill: EngineProcess, decode: EngineProcess) -> None:
    ticket = _ticket(prefill.call(Leg.PREFILL, "J" + SHORT))
    outcome = decode.call(Leg.DECODE, "J" + SHORT, ticket=ticket, temperature=-1)
    assert outcome.status == 400 and not outcome.ticket_used
    prefill.ask("release", params=ticket.params)


@pytest.mark.parametrize("holder", [True, False], ids=["by its holder", "by another engine"])
def test_a_released_ticket_frees_its_blocks(prefill: EngineProcess, decode: EngineProcess, holder: bool) -> None:
    ticket = _ticket(prefill.call(Leg.PREFILL, "K" + LONG))
    assert prefill.leases() == 1
    releasing = prefill if holder else decode
    for _ in range(2):  # the second time there is nothing left to release
        releasing.ask("release", params=ticket.params)
        _eventually(lambda: prefill.leases() == 0)


def test_a_cancelled_prefill_leaves_nothing(prefill: EngineProcess) -> None:
    """Whenever the cancel comes, the one that crosses the end of the prefill included."""
    started = time.monotonic()
    prefill.ask("release", params=_ticket(prefill.call(Leg.PREFILL, "L" + LONG)).params)
    whole_s = time.monotonic() - started
    for step in range(8):
        prefill.call(Leg.PREFILL, f"L{step}" + LONG, cancel_after_s=whole_s * step / 7)
        assert prefill.leases() == 0


def test_a_cancelled_decode_frees_both_engines(prefill: EngineProcess, decode: EngineProcess) -> None:
    for step, delay_s in enumerate((0.01, 0.1, 0.5)):
        prompt = f"M{step}" + LONG
        ticket = _ticket(prefill.call(Leg.PREFILL, prompt))
        outcome = decode.call(Leg.DECODE, prompt, ticket=ticket, max_tokens=500, cancel_after_s=delay_s)
        assert outcome.num_output_tokens < 500
        if not outcome.ticket_used:
            prefill.ask("release", params=ticket.params)
        _assert_at_rest(prefill, decode)


def test_a_cancelled_call_admits_nothing_more(prefill: EngineProcess) -> None:
    prefill.call(Leg.WHOLE, [f"{i}" + LONG for i in range(20)], max_tokens=200, cancel_after_s=0.2)


CREATED = 1_700_000_000
STREAM = {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True, "max_tokens": 40}


def streamed(engine: EngineProcess, resume: Resume | None = None, leg: str = Leg.WHOLE, **more: Any) -> Outcome:
    path = "/v1/chat/completions" if "messages" in more["body"] else "/v1/completions"
    outcome: Outcome = engine.ask("call", leg=leg, path=path, resume=resume, request_id="r1", **more)
    assert outcome.failure is None, outcome
    return outcome


def read(body: bytes) -> Answer:
    """As its client does: how vLLM cuts new tokens into events depends on time."""
    answer = Answer()
    for event in body.split(b"\n\n")[:-1]:
        answer.take(event.removeprefix(b"data: "))
    return answer


@pytest.mark.parametrize("more", [{}, {"stop": ["never said"]}, {"repetition_penalty": 1.4}, {"min_tokens": 35}])
@pytest.mark.parametrize("split", [False, True])
def test_a_stream_goes_on_as_in_one_piece(
    prefill: EngineProcess, decode: EngineProcess, more: dict[str, Any], split: bool
) -> None:
    body = {"model": "tiny", "prompt": "R" + SHORT, "temperature": 0} | STREAM | more
    whole = streamed(decode, body=body)
    assert len([ids for _, ids in whole.pieces if ids]) > 20
    for num_pieces in (1, 2, 17, len(whole.pieces) - 2):
        had = whole.pieces[:num_pieces]
        sent = b"".join(data for data, _ in had)
        resume = Resume(b"".join(ids for _, ids in had), len(sent), CREATED, 1)
        leg, ticket = Leg.WHOLE, None
        if split:
            leg, ticket = Leg.DECODE, _ticket(streamed(prefill, resume, Leg.PREFILL, body=body))
        rest = streamed(prefill if not split else decode, resume, leg, body=body, ticket=ticket)
        answer = read(sent + rest.body)
        assert answer.as_in_one_piece == read(whole.body).as_in_one_piece
        assert answer.last["sluice"] == {"resumed": 1, "resampled": False}


@pytest.mark.parametrize("more", [{"logprobs": 1}, {"presence_penalty": 0.5}, {"bad_words": ["lambda"]}])
def test_what_would_go_on_otherwise_is_not_continued(prefill: EngineProcess, more: dict[str, Any]) -> None:
    body = {"model": "tiny", "prompt": "R" + SHORT, "temperature": 0} | STREAM | more
    assert not any(ids for _, ids in streamed(prefill, body=body).pieces)
    outcome = prefill.ask("call", body=body, resume=Resume(pack([70]), 0, CREATED, 1))
    assert outcome.failure == "this stream cannot be continued exactly" and not outcome.retryable


def test_a_dead_holder_fails_the_decode_leg_alone(prefill: EngineProcess, decode: EngineProcess) -> None:
    ticket = _ticket(prefill.call(Leg.PREFILL, "N" + SHORT))
    gone = msgspec.json.decode(ticket.params) | {"remote_engine_id": "gone-1-ffff", "remote_port": _free_port()}
    dead = msgspec.structs.replace(ticket, params=msgspec.json.encode(gone))
    outcome = decode.call(Leg.DECODE, "N" + SHORT, ticket=dead)
    assert outcome.failure is not None and outcome.retryable and outcome.status == 0 and outcome.ticket_used
    assert decode.ask("state")["alive"] and decode.call(Leg.WHOLE, "N" + SHORT).status == 200
    prefill.ask("release", params=ticket.params)


def test_engines_do_not_end_on_slurms_signal(prefill: EngineProcess) -> None:
    prefill.ask("terminate_group")
    assert prefill.call(Leg.WHOLE, "O" + SHORT).status == 200
    assert prefill.ask("state")["alive"]


def test_the_engine_is_named_after_its_placement(prefill: EngineProcess) -> None:
    ticket = _ticket(prefill.call(Leg.PREFILL, "P" + SHORT))
    assert msgspec.json.decode(ticket.params)["remote_engine_id"] == engine_id(prefill.placement)
    prefill.ask("release", params=ticket.params)


def test_the_connectors_agent_is_locked_and_polls_by_itself() -> None:
    """As vLLM's connector makes it: two threads use it, and a thread of its own would keep a core busy."""
    program = (
        "import workers.engines.vllm.leases\n"
        "from vllm.distributed.kv_transfer.kv_connector.v1.nixl.base_worker import nixl_agent_config\n"
        "agent = nixl_agent_config(num_threads=4, capture_telemetry=True)\n"
        "print(agent.sync_mode.name, agent.enable_pthread)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=SOURCE)
    assert said.stdout.splitlines()[-1] == "NIXL_THREAD_SYNC_STRICT False"


def test_processes_that_wait_for_each_other_soon_sleep() -> None:
    """In whichever of them an engine's configuration is unpickled. Else they take the cores from those that compute."""
    program = (
        "import pickle, sys\n"
        "assert 'vllm' not in sys.modules\n"
        "carried = pickle.loads(b'cworkers.engines.vllm.spin\\nSpin\\n.')()\n"
        "from vllm.distributed.device_communicators.shm_broadcast import MessageQueue\n"
        "reader = MessageQueue.create_from_handle(MessageQueue(1, 1).export_handle(), 0)\n"
        "look_again_ms = reader.ReadTimeoutWithWarnings(timeout=None, should_warn=False).timeout_ms()\n"
        "print(reader._spin_condition.busy_loop_s, look_again_ms, carried.compute_hash())"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=SOURCE)
    assert said.stdout.splitlines()[-1:] == ["0.001 50 sluice"], said.stderr
