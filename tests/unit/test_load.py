"""What a host tells each proxy of its load, and when."""

from workers.host.load import LoadReports, Work
from workers.protocol import Load


def test_a_lone_proxy_hears_with_each_beat() -> None:
    reports = LoadReports()
    work = {"a": Work(running=1, waiting=1, decodes=2, prefill_tokens=300, pinned_blocks=4)}
    (told,) = reports.due(work, 7, 0.5, ["a"], beat=True)
    assert told == ("a", Load(1, 1, 4, 300, 7, kv_used=0.5))
    assert reports.due({"a": Work(running=2)}, 7, 0.5, ["a"], beat=False) == []
    assert reports.due({"a": Work(running=2)}, 7, 0.5, ["a"], beat=True) == [("a", Load(2, 0, 0, 0, 7, kv_used=0.5))]


def test_anothers_share_is_told_at_once_and_only_to_those_it_is_new_to() -> None:
    reports = LoadReports()
    both = ["a", "b"]
    reports.due({}, 0, 0.0, both, beat=True)
    work = {"a": Work(running=3, decodes=2, prefill_tokens=500, pinned_blocks=9)}
    (told,) = reports.due(work, 0, 0.0, both, beat=False)
    assert told == ("b", Load(3, 0, 9, 500, other_decodes=2, other_prefill_tokens=500, other_pinned_blocks=9))
    assert reports.due(work, 0, 0.0, both, beat=False) == []


def test_the_work_of_one_that_has_gone_is_anothers_until_it_ends() -> None:
    reports = LoadReports()
    work = {"gone": Work(waiting=2, decodes=2), "a": Work(running=1, decodes=1)}
    ((_, load),) = reports.due(work, 0, 0.0, ["a"], beat=True)
    assert (load.running, load.waiting, load.other_decodes) == (1, 2, 2)


def test_a_new_proxy_is_told_before_the_next_beat() -> None:
    reports = LoadReports()
    reports.due({}, 0, 0.0, ["a"], beat=True)
    assert [proxy for proxy, _ in reports.due({}, 0, 0.0, ["a", "b"], beat=False)] == ["b"]


def test_what_nobody_uses_is_free_whatever_the_engine_last_said() -> None:
    ((_, load),) = LoadReports().due({}, 0, 0.9, ["a"], beat=True)
    assert load.kv_used == 0.0
