"""API keys: found by their hashes, replaced while they serve, and what each class may do."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import msgspec
import pytest

from proxy.auth import ApiKeys, authorize
from proxy.errors import Forbidden, Unauthorized
from proxy.routes import find


def write(path: Path, **keys: str) -> None:
    """name=class; the key itself is `sk-NAME`."""
    rows = [{"name": n, "hash": hashlib.sha256(f"sk-{n}".encode()).hexdigest(), "class": c} for n, c in keys.items()]
    path.write_text(json.dumps(rows))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "api_keys.json"
    write(path, alice="user", grafana="reader")
    return path


def name(keys: ApiKeys, authorization: bytes | None) -> str | None:
    key = keys.identify(authorization)
    return key.name if key else None


def test_a_key_is_found_by_its_hash(path: Path) -> None:
    keys = ApiKeys(path)
    assert name(keys, b"Bearer sk-alice") == "alice"
    assert name(keys, b"bearer  sk-grafana ") == "grafana"


@pytest.mark.parametrize(
    "authorization",
    [None, b"", b"Bearer", b"Bearer ", b"Bearer sk-alic", b"Bearer sk-alice2", b"Basic sk-alice", b"sk-alice", b"\xff"],
)
def test_anything_else_is_nobody(path: Path, authorization: bytes | None) -> None:
    assert name(ApiKeys(path), authorization) is None


def test_a_key_may_come_as_anthropics_clients_send_it(path: Path) -> None:
    keys = ApiKeys(path)

    def name(authorization: bytes | None, x_api_key: bytes) -> str | None:
        key = keys.identify(authorization, x_api_key)
        return key.name if key else None

    assert name(None, b"sk-alice") == name(None, b" sk-alice ") == "alice"
    assert name(None, b"") is name(None, b"sk-alic") is name(None, b"Bearer sk-alice") is None
    assert name(b"Bearer sk-grafana", b"sk-alice") == "grafana"
    assert name(b"Bearer sk-wrong", b"sk-alice") is name(b"Basic x", b"sk-alice") is None, "Authorization decides"


def test_the_hash_itself_is_not_a_key(path: Path) -> None:
    assert name(ApiKeys(path), b"Bearer " + hashlib.sha256(b"sk-alice").hexdigest().encode()) is None


def test_keys_change_while_they_serve(path: Path) -> None:
    keys = ApiKeys(path)
    assert not keys.reload_if_changed()
    alice = keys.identify(b"Bearer sk-alice")
    assert alice is not None and keys.of_hash(alice.hash) is alice and keys.of_hash(None) is None
    write(path, bob="user")
    assert keys.reload_if_changed()
    assert keys.of_hash(alice.hash) is None
    assert (name(keys, b"Bearer sk-bob"), name(keys, b"Bearer sk-alice")) == ("bob", None)
    assert not keys.reload_if_changed()


def test_a_broken_or_missing_file_changes_nothing_and_is_told_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = ApiKeys(path)
    with caplog.at_level(logging.ERROR):
        path.write_text('[{"name": "half')
        assert not keys.reload_if_changed() and not keys.reload_if_changed()
        path.unlink()
        assert not keys.reload_if_changed() and not keys.reload_if_changed()
    assert len(caplog.records) == 2
    assert name(keys, b"Bearer sk-alice") == "alice"
    write(path, bob="user")
    assert keys.reload_if_changed() and name(keys, b"Bearer sk-bob") == "bob"


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"name": "a", "hash": "sk-plain-text", "class": "user"}, "hash"),
        ({"name": "a", "hash": "0" * 64, "class": "root"}, "class"),
        ({"name": "a", "hash": "0" * 64}, "class"),
        ({"name": "a", "hash": "0" * 64, "class": "user", "key": "sk"}, "key"),
    ],
)
def test_a_bad_file_at_the_start_names_the_field(path: Path, row: dict[str, str], field: str) -> None:
    path.write_text(json.dumps([row]))
    with pytest.raises(msgspec.ValidationError, match=field):
        ApiKeys(path)


READER_ROUTES = ["/metrics", "/metrics/targets", "/fleet", "/overview", "/workers/decode-0/metrics"]


@pytest.mark.parametrize("route", ["/health", "/ready"])
def test_probes_are_free(route: str) -> None:
    authorize(find("GET", route), None)


@pytest.mark.parametrize("route", [*READER_ROUTES, "/v1/models"])
def test_everything_else_needs_a_key(route: str) -> None:
    with pytest.raises(Unauthorized, match="Authorization: Bearer"):
        authorize(find("GET", route), None)


def test_classes(path: Path) -> None:
    keys = ApiKeys(path)
    user, reader = keys.identify(b"Bearer sk-alice"), keys.identify(b"Bearer sk-grafana")
    for route in READER_ROUTES:
        authorize(find("GET", route), user)
        authorize(find("GET", route), reader)
    for method, route in [("GET", "/v1/models"), ("POST", "/v1/completions"), ("POST", "/tokenize")]:
        authorize(find(method, route), user)
        with pytest.raises(Forbidden, match="grafana"):
            authorize(find(method, route), reader)
