"""What a leg may ask of the engine, and what a call learns from it."""

from dataclasses import dataclass, field

import pytest

from tests.unit.proxies import ticket
from workers.host.calls import Call, CallRefused
from workers.protocol import Leg, Ticket

REDEEM_S = 30.0
TICKET = ticket("t", ("prefill-0", 0))


@dataclass
class Scene:
    """A call that was received at 100 s, its clock, and how often it said that something changed."""

    leg: str
    ticket: Ticket | None = None
    now: float = 100.0
    num_changes: int = 0
    call: Call = field(init=False)

    def __post_init__(self) -> None:
        self.call = Call("req-1", self.leg, self.ticket, self.now, REDEEM_S, lambda: self.now, self.count)

    def count(self) -> None:
        self.num_changes += 1


def aged(age_s: float) -> Ticket:
    return Ticket("t", "prefill-0", 0, b"{}", 2, 32, age_s=age_s)


def test_a_ticket_serves_one_generate() -> None:
    scene = Scene(Leg.DECODE, TICKET)
    scene.call.begin(500, 1)
    assert scene.call.ticket_used
    with pytest.raises(CallRefused, match="must run whole") as refused:
        scene.call.begin(500, 1)
    assert scene.call.failure is refused.value and refused.value.retryable
    assert (scene.call.num_generates, scene.call.num_prompt_tokens, scene.num_changes) == (1, 500, 2)


@pytest.mark.parametrize(("leg", "held"), [(Leg.DECODE, TICKET), (Leg.DECODE, None), (Leg.PREFILL, None)])
def test_several_sequences_are_refused_before_the_engine_is_touched(leg: str, held: Ticket | None) -> None:
    call = Scene(leg, held).call
    with pytest.raises(CallRefused, match="more than one sequence") as refused:
        call.begin(500, 2)
    assert refused.value.retryable
    assert (call.num_generates, call.open_prefill_tokens, call.ticket_used) == (0, 0, False)


@pytest.mark.parametrize(("age_s", "waited_s", "fresh"), [(29.0, 0.9, True), (29.0, 1.1, False), (31.0, 0.0, False)])
def test_a_tickets_age_counts_from_its_grant_and_on_this_host(age_s: float, waited_s: float, fresh: bool) -> None:
    scene = Scene(Leg.DECODE, aged(age_s))
    scene.now += waited_s
    if fresh:
        scene.call.begin(32, 1)
        assert scene.call.ticket_used and scene.call.failure is None
    else:
        with pytest.raises(CallRefused, match=rf"ticket is {age_s + waited_s:.1f} s old, limit 30 s") as refused:
            scene.call.begin(32, 1)
        assert refused.value.retryable and not scene.call.ticket_used


def test_a_whole_leg_is_never_refused() -> None:
    scene = Scene(Leg.WHOLE)
    for num_sequences in (1, 4, 1):
        scene.call.begin(100, num_sequences)
    assert (scene.call.num_generates, scene.call.num_prompt_tokens) == (3, 300)
    assert scene.call.failure is None and not scene.call.ticket_used and scene.num_changes == 3


def test_the_first_failure_counts() -> None:
    scene = Scene(Leg.WHOLE)
    first = CallRefused("the prefill worker died", retryable=True)
    scene.call.fail(first)
    scene.call.fail(CallRefused("deadline passed", retryable=False, status=504))
    assert scene.call.failure is first
    assert scene.num_changes == 1


def test_prefill_tokens_are_open_until_each_generate_has_its_first_output() -> None:
    call = Scene(Leg.WHOLE).call
    call.begin(300, 1)
    call.begin(200, 1)
    assert call.open_prefill_tokens == 500
    call.output(1, 64, 300)
    assert (call.open_prefill_tokens, call.num_cached_tokens) == (200, 64)
    call.output(1, 0, 0)
    assert call.open_prefill_tokens == 200
    call.output(1, 32, 200)
    assert (call.open_prefill_tokens, call.num_cached_tokens, call.num_output_tokens) == (0, 96, 3)


def test_only_the_first_output_opens_the_gate() -> None:
    scene = Scene(Leg.WHOLE)
    scene.call.begin(10, 1)
    assert not scene.call.good_output
    for _ in range(3):
        scene.call.output(1, 0, 0)
    assert scene.call.good_output and scene.num_changes == 2, "its beginning, and the gate"


@pytest.mark.parametrize("params", [b"{}", None])
def test_a_grant_is_told_with_its_time(params: bytes | None) -> None:
    scene = Scene(Leg.PREFILL)
    scene.now = 107.0
    scene.call.granted(params)
    assert (scene.call.ticket_params, scene.call.granted_at, scene.num_changes) == (params, 107.0, 1)
