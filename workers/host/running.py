"""The record of one call in progress on a host.

Owns nothing: it is `host` that makes and ends it.
"""

from __future__ import annotations

import asyncio

import msgspec

from workers.host.answer import Answer
from workers.host.calls import Call
from workers.links.link import Link
from workers.protocol import Submit

LegKey = tuple[Link, int]  # a proxy's number for it, by link


class Running(msgspec.Struct, eq=False):
    """One call in progress. `reported`: the proxy has its final word."""

    proxy: str
    submit: Submit
    link: Link
    call: Call
    answer: Answer
    task: asyncio.Task[None] | None = None
    cancelled: bool = False
    computed: bool = False  # and the proxy knows
    reported: bool = False
