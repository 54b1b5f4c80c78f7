"""The page is one file, needs nothing else, and its policy lets nothing else in; integration/test_page.py uses it."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from zipfile import ZipFile

import pytest

from launcher.rundir import RunDir, code_hash, snapshot_code
from proxy.http.page import FILE, content_security_policy, page
from tests.docs import copy_checkout, shell

HTML = FILE.read_text()


def policy() -> dict[str, str]:
    directives = content_security_policy(HTML.encode()).decode().split("; ")
    return {name: rest for name, _, rest in (directive.partition(" ") for directive in directives)}


@pytest.mark.parametrize("tag", ["script", "style"])
def test_the_policy_allows_this_page_s_own_code_only(tag: str) -> None:
    [code] = re.findall(rf"<{tag}>(.*?)</{tag}>", HTML, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert policy()[f"{tag}-src"] == f"'sha256-{digest}'"
    assert HTML.count(f"<{tag}") == 1


def test_the_policy_forbids_the_rest() -> None:
    assert policy()["default-src"] == "'none'"
    assert policy()["connect-src"] == "'self'"
    assert {policy()[name] for name in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert "unsafe" not in str(policy())


def test_nothing_is_fetched_from_elsewhere() -> None:
    """Addresses in it are names of SVG's own language."""
    assert set(re.findall(r"https?://[^'\" )]+", HTML)) == {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"(?:src|href)=\"(?!#|data:)", HTML)
    assert not re.findall(r"url\(|@import|import\(", HTML)


def test_no_markup_is_made_from_text() -> None:
    """What workers say of themselves is shown, never run."""
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|\son\w+=|\sstyle=", HTML)


def luminance(colour: str) -> float:
    """WCAG 2's relative luminance of #rrggbb."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read_on_what_it_stands_on(scheme: int) -> None:
    """At least 4.5 to 1, as WCAG's level AA asks."""
    named = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", re.findall(r":root \{(.*?)\}", HTML, re.DOTALL)[scheme]))
    grounds = ["paper", "box", *(name for name in named if name.endswith("-wash"))]
    pairs = [(text, ground) for text in ("ink", "soft", "good", "warn", "bad") for ground in grounds]
    pairs += [(role, ground) for role in ("prefill", "decode", "any") for ground in (f"{role}-wash", "box")]
    for text, ground in pairs:
        dark, light = sorted((luminance(named[text]), luminance(named[ground])))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def test_it_is_answered_with_headers_that_keep_it_to_itself() -> None:
    status, headers, body = page()
    assert (status, body) == (200, HTML.encode())
    named = dict(headers)
    assert named[b"content-type"] == b"text/html; charset=utf-8"
    assert named[b"x-content-type-options"] == b"nosniff" and named[b"referrer-policy"] == b"no-referrer"


def test_it_is_installed(tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path / "sluice")
    answer = shell("pip wheel --quiet --no-deps --no-build-isolation --wheel-dir . .", checkout)
    assert answer.returncode == 0, answer.stderr
    [wheel] = checkout.glob("*.whl")
    assert ZipFile(wheel).read(f"proxy/http/{FILE.name}").decode() == HTML


def test_it_goes_into_the_snapshot_that_jobs_run_from(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "demo")
    run.create()
    snapshot_code(run)
    assert (run.code_dir(code_hash()) / "proxy" / "http" / FILE.name).read_text() == HTML
