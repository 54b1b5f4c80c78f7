"""One view of the fleet out of those of the proxy's processes."""

from launcher.control.views import merged
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
