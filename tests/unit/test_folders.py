"""Where engines' caches and models lie, and what is said when that is the user's home."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.config import load
from launcher.planning.folders import folders
from tests.unit.planning import planned


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"HF_HUB_CACHE": "/a"}, "/a"),
        ({"HF_HOME": "/b"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({}, "/home/me/.cache/huggingface/hub"),
    ],
)
def test_the_hub_lies_where_hugging_face_puts_it(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert str(folders(load(["+cluster=h100x2"]), environment).hub) == expected


def test_caches_lie_beside_the_runs_unless_the_site_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    beside = folders(load(["+cluster=h100x2", "runs_dir=/scratch/me/runs"]), {})
    assert beside.cache == Path("/scratch/me/runs/.cache")
    assert folders(load(["+cluster=h100x2", "cluster.cache_dir='~/c'"]), {}).cache == Path("/home/me/c")
    assert folders(load(["+cluster=h100x2"]), {}).cache == Path("runs/.cache").absolute()


def test_a_cache_in_the_home_of_a_cluster_s_user_is_no_surprise() -> None:
    def notes(*overrides: str) -> list[str]:
        return [note for note in planned(*overrides).notes if note.startswith("cluster.cache_dir")]

    home = "cluster.cache_dir=/home/user/runs/.cache"
    assert notes("+cluster=h100x2") == []
    assert "in /home/user/runs/.cache: that is in your home" in notes("+cluster=h100x2", home)[0]
    assert notes("+cluster=local", home) == [], "on a laptop it is all there is"
