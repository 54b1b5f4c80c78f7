"""The tickets a prefill worker has handed out: their blocks count until read, released or expired."""

from hypothesis import given
from hypothesis import strategies as st

from workers.host.tickets import TicketBook
from workers.protocol import Ticket

LEASE_S = 120.0


def ticket(name: str, num_blocks: int = 4) -> Ticket:
    return Ticket(name, "prefill-0", 0, b"{}", num_blocks, 16 * num_blocks)


def test_granted_blocks_are_pinned_until_the_ticket_is_closed() -> None:
    book = TicketBook(LEASE_S)
    book.grant(ticket("a", 4), "p0", 0.0)
    book.grant(ticket("b", 3), "p0", 0.0)
    assert book.num_blocks == 7
    book.close("a")
    assert book.num_blocks == 3


def test_closing_twice_is_fine() -> None:
    book = TicketBook(LEASE_S)
    book.grant(ticket("a", 4), "p0", 0.0)
    book.close("a")
    book.close("a")
    book.close("never heard of")
    assert book.num_blocks == 0


def test_a_lease_ends_at_its_time_and_not_before() -> None:
    book = TicketBook(LEASE_S)
    book.grant(ticket("a", 4), "p0", 0.0)
    book.grant(ticket("b", 3), "p0", 50.0)
    book.expire(LEASE_S - 0.1)
    assert book.num_blocks == 7
    book.expire(LEASE_S)
    assert book.num_blocks == 3
    book.close("a")  # its reader was late
    book.expire(LEASE_S + 50.0)
    assert book.num_blocks == 0


def test_the_tickets_of_a_proxy_that_has_gone_are_taken_once() -> None:
    book = TicketBook(LEASE_S)
    for name, proxy in (("a", "p0"), ("b", "p1"), ("c", "p0")):
        book.grant(ticket(name), proxy, 0.0)
    assert [taken.id for taken in book.take_of("p0")] == ["a", "c"]
    assert book.take_of("p0") == []
    assert book.num_blocks == 4


STEPS = st.one_of(
    st.tuples(st.just("grant"), st.integers(1, 50)),
    st.tuples(st.just("close"), st.integers(0, 20)),
    st.tuples(st.just("wait"), st.integers(1, 100)),
    st.tuples(st.just("gone"), st.integers(0, 1)),
)


@given(st.lists(STEPS, max_size=40))
def test_whatever_happens_exactly_the_open_tickets_blocks_are_pinned(steps: list[tuple[str, int]]) -> None:
    book, now = TicketBook(LEASE_S), 0.0
    still_open: dict[str, tuple[Ticket, str, float]] = {}
    for number, (step, value) in enumerate(steps):
        if step == "grant":
            granted = ticket(str(number), value)
            still_open[granted.id] = (granted, f"p{number % 2}", now + LEASE_S)
            book.grant(granted, f"p{number % 2}", now)
        elif step == "close":
            still_open.pop(str(value), None)
            book.close(str(value))
        elif step == "wait":
            now += value
            still_open = {id: entry for id, entry in still_open.items() if entry[2] > now}
            book.expire(now)
        else:
            theirs = [entry[0] for entry in still_open.values() if entry[1] == f"p{value}"]
            assert book.take_of(f"p{value}") == theirs
            still_open = {id: entry for id, entry in still_open.items() if entry[0] not in theirs}
        assert book.num_blocks == sum(entry[0].num_blocks for entry in still_open.values())
