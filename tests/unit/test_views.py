"""One view of the fleet out of those of the proxy's processes."""

import msgspec

from launcher.control.views import merged, sees_as_much
from workers.controller_messages import FleetView, WorkerView


def worker(name: str, phase: str = "ready") -> WorkerView:
    return WorkerView(name, name.rsplit("-", 1)[0], "any", 0, phase, "", "n1", "7", None, 1, 0)


def test_nobody_tells_anything() -> None:
    assert merged([]) is None


def test_the_run_is_ready_when_all_say_so() -> None:
    a = FleetView((worker("p-0"), worker("d-0")), True, (("p-0", "d-0"), ("p-0", "d-1")), (), ("x",), ())
    b = FleetView((worker("p-0"),), False, (("p-0", "d-0"),), (("p-0", "d-1"),), ("x", "y"), ("p-0 -> d-1: slow",))
    assert merged([a]) == a
    both = merged([a, b])
    assert both is not None
    assert not both.ready
    assert both.workers == a.workers
    assert both.proven_pairs == (("p-0", "d-0"),)
    assert both.missing_pairs == (("p-0", "d-1"),)
    assert both.refusals == ("x", "y")
    assert both.faults == ("p-0 -> d-1: slow",)
    assert merged([a, a]) == a


def test_a_proxy_that_is_to_follow_sees_as_much_when_all_who_serve_there_serve_here() -> None:
    proven = [msgspec.structs.replace(worker(name), proven=True) for name in ("p-0", "d-0")]
    now = FleetView((*proven, worker("d-1", "loading")), True)
    assert sees_as_much(now, now) and sees_as_much(FleetView(tuple(proven), True), now)
    assert not sees_as_much(FleetView((proven[0], worker("d-0")), True), now), "not proven yet"
    assert not sees_as_much(FleetView(tuple(proven), False), now)
    assert sees_as_much(now, None) and not sees_as_much(FleetView((), False), None), "nobody to be measured by"
