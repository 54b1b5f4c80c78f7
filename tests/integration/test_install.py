"""The README's pip commands for a machine without make, in a fresh environment, to the letter."""

from __future__ import annotations

import pytest

from tests.installing import Installation


@pytest.mark.timeout(1500)
def test_the_pip_commands_of_the_readme_install_what_works(installation: Installation | str) -> None:
    if isinstance(installation, str):
        pytest.skip(installation)
    status, output = installation.wait()
    assert status == 0, output[-6000:]
    assert str(installation.checkout / "proxy" / "__init__.py") in output
    assert "prefill-0" in output and "KV goes prefill -> decode" in output
