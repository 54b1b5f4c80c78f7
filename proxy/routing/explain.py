"""A decision in words and numbers: as headers of the answer, and for people who look at the fleet.

Pure. Owns the names; the numbers are the router's own.
"""

from __future__ import annotations

from typing import Any

import msgspec

from proxy.errors import BadRequest, Headers
from proxy.header_names import CACHED_TOKENS, DECODE, POLICY, PREFILL, WAITED_S
from proxy.routing.demand import Demand, Reason, Route
from proxy.routing.router import POLICIES
from proxy.spec import RoutingSpec


def headers_of(route: Route, demand: Demand) -> Headers:
    """Who served; where its client asks for it also what the router expected: `x-sluice-route-...`."""
    served_by = [(DECODE, route.decode.key[0].encode())]
    if route.prefill is not None:
        served_by.insert(0, (PREFILL, route.prefill.key[0].encode()))
    if demand.explain:
        served_by += [(f"x-sluice-route-{name}".encode(), _text(value)) for name, value in _told(route.reason)]
    return tuple(served_by)


def headers_for_batch(waited_s: float, cached_tokens: int) -> Headers:
    """From the first a batch learns how many requests are enough. The second is complete when the answer begins at
    its end, as a batch's do: engines do not tell it in theirs."""
    return (WAITED_S, b"%.3f" % waited_s), (CACHED_TOKENS, b"%d" % cached_tokens)


def _told(reason: Reason) -> list[tuple[str, Any]]:
    values = [(name, getattr(reason, name)) for name in Reason.__struct_fields__]
    return [(name.replace("_", "-"), value) for name, value in values if value is not None]


def _text(value: Any) -> bytes:
    return (f"{value:.4f}" if isinstance(value, float) else str(value)).encode()


def decision_json(request_id: str, route: Route) -> dict[str, Any]:
    names = {"prefill": None if route.prefill is None else route.prefill.key[0], "decode": route.decode.key[0]}
    return {"request": request_id, **names, **msgspec.to_builtins(route.reason)}


def policy_of(asked: bytes | None, spec: RoutingSpec) -> str | None:
    """The policy that a request names for itself. Raises BadRequest."""
    if asked is None:
        return None
    policy = asked.decode("latin-1")
    if not spec.allow_override:
        raise BadRequest(f"{POLICY.decode()}: this run does not let requests choose; see routing.allow_override")
    if policy not in POLICIES:
        raise BadRequest(f"{POLICY.decode()}: unknown policy {policy!r}; known: {', '.join(sorted(POLICIES))}")
    return policy
