"""The page at /: one file, and a policy that lets it load and do nothing but what stands in it.

The page is for everyone, its data are not: it asks for a key and sends it with each request for /overview.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from proxy.errors import Response

FILE = Path(__file__).with_suffix(".html")


def page() -> Response:
    """Reads the file: once, at the start."""
    html = FILE.read_bytes()
    headers = (
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-security-policy", content_security_policy(html)),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cross-origin-opener-policy", b"same-origin"),
        (b"cross-origin-resource-policy", b"same-origin"),
        (b"cache-control", b"no-cache"),
    )
    return 200, headers, html


def content_security_policy(html: bytes) -> bytes:
    """Only the page's own script and style, by their hashes; requests only to this proxy; in no frame."""
    return b"; ".join(
        (
            b"default-src 'none'",
            b"script-src " + _hashes(html, b"script"),
            b"style-src " + _hashes(html, b"style"),
            b"connect-src 'self'",
            b"img-src data:",  # its icon
            b"base-uri 'none'",
            b"form-action 'none'",
            b"frame-ancestors 'none'",
            b"require-trusted-types-for 'script'",
        )
    )


def _hashes(html: bytes, tag: bytes) -> bytes:
    found = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), html, re.DOTALL)
    assert found, f"the page has no {tag.decode()}"
    return b" ".join(b"'sha256-%b'" % base64.b64encode(hashlib.sha256(each).digest()) for each in found)
