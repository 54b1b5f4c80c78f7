"""The fields of the installed vLLM's requests are those that somebody has looked at."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.live import SOURCE

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(120)]


def test_vllm_has_no_field_that_nobody_has_looked_at(golden: Callable[[str, str], None]) -> None:
    """Does the rendered prompt depend on a new one? If it cannot, `proxy.prefixes.prompt_key` may call it harmless."""
    told = subprocess.run(
        [sys.executable, "-m", "tests.integration.vllm_fields"], cwd=SOURCE, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    golden("vllm_request_fields.json", told.stdout)
