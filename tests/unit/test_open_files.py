"""The limit on open files follows from the proxy's own limits."""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterator

import pytest

from proxy.http.open_files import FILES_PER_WORKER, RESERVED_FILES, files_for, fit_open_files
from proxy.spec import Limits


@pytest.fixture(autouse=True)
def limit_put_back() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    ("hard", "num_files", "num_connections"),
    [
        (1 << 20, RESERVED_FILES + 2 * FILES_PER_WORKER + 1000, 1000),
        (1000, 1000, 1000 - RESERVED_FILES - 2 * FILES_PER_WORKER),
        (64, 64, 1),
    ],
)
def test_connections_fit_below_the_hard_limit(hard: int, num_files: int, num_connections: int) -> None:
    assert files_for(1000, 2, hard) == (num_files, num_connections)


def test_the_soft_limit_is_what_the_connections_need(caplog: pytest.LogCaptureFixture) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert fit_open_files(Limits(max_connections=100), 1).max_connections == 100
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (100 + RESERVED_FILES + FILES_PER_WORKER, hard)
    assert not caplog.records


def test_a_hard_limit_that_is_too_low_is_told(caplog: pytest.LogCaptureFixture) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with caplog.at_level(logging.WARNING):
        fitted = fit_open_files(Limits(max_connections=hard), 0)
    assert fitted.max_connections == hard - RESERVED_FILES
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    assert "proxy.limits.max_connections" in caplog.text and f"{hard - RESERVED_FILES} connections" in caplog.text
