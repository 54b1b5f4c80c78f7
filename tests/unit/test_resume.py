"""resume: which differences make a run another run."""

from __future__ import annotations

from launcher.resume import changes


def test_every_leaf_that_differs_is_named_by_its_key() -> None:
    old = {"pools": {"decode": {"replicas": 1, "role": "decode"}}, "run": "a", "gone": True, "args": [1, 2]}
    new = {"pools": {"decode": {"replicas": 2, "role": "decode"}}, "run": "a", "args": [1, 3]}
    assert list(changes(old, new)) == [
        "args.1: is 2, asked for 3",
        "gone: is true, asked for null",
        "pools.decode.replicas: is 1, asked for 2",
    ]
    assert list(changes(old, old)) == []


def test_a_long_value_is_cut() -> None:
    [told] = changes({"setup": "x" * 500}, {"setup": None})
    assert told.endswith("..., asked for null") and len(told) < 100
