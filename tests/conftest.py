"""Golden files: what leaves the process is compared with what reviewers have seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from tests.installing import installation, judge_last  # noqa: F401  (fixture)
from tests.onebox import onebox, onebox_daemons  # noqa: F401  (fixtures)

# How long an example takes says more about who else uses the machine.
settings.register_profile("sluice", deadline=None)
settings.load_profile("sluice")

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-goldens", action="store_true", help="write tests/golden instead of comparing with it")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    judge_last(items)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """golden(name, text) fails where the text differs from tests/golden/name."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-goldens"):
            path.write_text(text)
        assert path.read_text() == text, f"{name} changed; if that is meant, run pytest --update-goldens"

    return check
