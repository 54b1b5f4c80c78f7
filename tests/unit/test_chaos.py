"""What `benchmarks.chaos` makes of the streams that it saw."""

from __future__ import annotations

import pytest

from benchmarks.chaos.figures import figures
from benchmarks.chaos.users import Stream, fault_of, text_of

EVENT_AT = 100.0


def stream(asked_at: float, *after_s: float, text: str = "a b", fault: str = "", prompt: int = 0) -> Stream:
    arrivals = [asked_at + delay for delay in after_s]
    return Stream(
        prompt=prompt,
        asked_at=asked_at,
        arrivals=arrivals,
        text=text,
        fault=fault,
        ended_at=max(arrivals, default=asked_at),
    )


CALM = [stream(10.0, 0.1, 0.2, 0.4), stream(20.0, 0.2, 0.3)]


def test_pauses_and_waits_are_told_beside_those_of_the_streams_before() -> None:
    seen = figures([*CALM, stream(99.0, 0.1, 1.6, 1.7), stream(101.0, 0.9, 1.0)], EVENT_AT)
    assert (seen.streams, seen.lost, seen.failed, seen.different) == (2, 0, 0, 0) and seen.is_whole
    assert seen.calm_pause_p99_s == pytest.approx(0.2) and seen.calm_wait_p99_s == pytest.approx(0.2)
    assert seen.pause_max_s == pytest.approx(1.5) and seen.wait_max_s == pytest.approx(0.9)
    assert seen.over_s == pytest.approx(1.3), "the pause of the first"


def test_what_had_begun_is_lost_what_had_not_failed_and_another_text_is_different() -> None:
    broken = stream(101.0, 0.1, fault="closed")
    refused = stream(102.0, fault="503")
    other = stream(103.0, 0.1, text="a c")
    seen = figures([*CALM, broken, refused, other], EVENT_AT)
    assert (seen.streams, seen.lost, seen.failed, seen.different) == (3, 1, 1, 1) and not seen.is_whole


def test_nothing_is_judged_beside_streams_that_were_not_calm() -> None:
    with pytest.raises(ValueError, match="before anything had happened"):
        figures([stream(10.0, 0.1, fault="503")], EVENT_AT)
    with pytest.raises(ValueError, match="differ"):
        figures([*CALM, stream(30.0, 0.1, text="b")], EVENT_AT)


def test_an_answer_is_whole_with_its_last_event_and_without_an_error() -> None:
    head, last = b"HTTP/1.1 200 OK\r\n\r\n", b"data: [DONE]\n\n"
    event = b'data: {"choices":[{"text":"%s"}]}\n\n'
    assert fault_of(head + event % b"a" + last) == ""
    assert text_of(head + event % b"a" + event % b" b" + last) == "a b"
    assert "broken off" in fault_of(head + event % b"a")
    assert "broken off" in fault_of(head + b'data: {"error": {"message": "gone"}}\n\n' + last)
    assert "503" in fault_of(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")
