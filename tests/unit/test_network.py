"""Addresses and ports of this node."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.agent.network import FIRST_PORT, NUM_PORTS, NetworkFault, address_of, bindable_port, derived_port


def test_the_address_of_an_interface() -> None:
    assert address_of("lo") == "127.0.0.1"


def test_an_unknown_interface_lists_those_that_would_do() -> None:
    with pytest.raises(
        NetworkFault, match=r"^cluster\.interface: .* has no interface ib9 .* set it to one of "
    ) as told:
        address_of("ib9")
    would_do = str(told.value).rpartition("set it to one of ")[2].split(", ")
    assert "lo" in would_do and all(address_of(name) for name in would_do)
    with pytest.raises(NetworkFault, match=r"^controller\.interface: "):
        address_of("ib9", "controller.interface")


@given(st.text(max_size=20), st.integers(0, 2000), st.integers(0, 63), st.sampled_from(["handoff", "head"]))
def test_a_derived_port_is_always_the_same_and_below_the_ephemeral_ones(
    job: str, worker_index: int, attempt: int, use: str
) -> None:
    port = derived_port(job, worker_index, attempt, use)
    assert port == derived_port(job, worker_index, attempt, use)
    assert FIRST_PORT <= port < FIRST_PORT + NUM_PORTS <= 32_768


def test_jobs_workers_attempts_and_uses_are_apart() -> None:
    ports = {
        derived_port("7", 0, 0, "head"),
        derived_port("8", 0, 0, "head"),
        derived_port("7", 1, 0, "head"),
        derived_port("7", 0, 1, "head"),
        derived_port("7", 0, 0, "handoff"),
    }
    assert len(ports) == 5


def test_a_taken_port_is_skipped_and_none_left_is_a_fault() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", bindable_port("127.0.0.1", "test-network", 0, "head")))
        taken = holder.getsockname()[1]
        other = bindable_port("127.0.0.1", "test-network", 0, "head")
        assert other != taken
        assert other in {derived_port("test-network", 0, attempt, "head") for attempt in range(64)}
        with pytest.raises(NetworkFault, match=r"none of 1 ports .* on 127\.0\.0\.1 \(Address already in use\);"):
            bindable_port("127.0.0.1", "test-network", 0, "head", attempts=1)


def test_no_port_of_an_address_that_is_not_this_node_s_and_what_to_do() -> None:
    with pytest.raises(NetworkFault, match=r"on 203\.0\.113\.9 .*; see what holds them .* cluster\.sbatch\.exclude"):
        bindable_port("203.0.113.9", "test-network", 0, "handoff", attempts=2)
