"""Whom Prometheus should scrape: the answer of /metrics/targets, in its HTTP service-discovery format.

Pure. All targets are this proxy's own address, as the asking Prometheus has called it: workers open no port, their
metrics come through the proxy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from proxy.errors import BadRequest
from proxy.fleet.worker import Worker

_HOST = re.compile(r"[A-Za-z0-9._-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")


def targets_json(host: str, *, tls: bool, run: str, proxy: str, workers: Iterable[Worker]) -> list[dict[str, Any]]:
    """Workers that are up: the others have nothing to tell. Of two lives of one, the younger, as at its own path."""
    shared = {"run": run, "__scheme__": "https" if tls else "http"}
    up = {worker.key[0]: worker for worker in sorted(workers, key=lambda worker: worker.key) if worker.up}
    labels = [{**shared, "proxy": proxy, "__metrics_path__": "/metrics"}]
    for name, worker in up.items():
        placed = {"pool": worker.pool, "worker": name, "role": worker.role, "node": worker.node}
        labels.append({**shared, **placed, "__metrics_path__": f"/workers/{name}/metrics"})
    return [{"targets": [host], "labels": each} for each in labels]


def asked_host(headers: Mapping[bytes, bytes]) -> str:
    """The Host header, with its port. Raises BadRequest."""
    host = headers.get(b"host", b"").decode("latin-1")
    if not _HOST.fullmatch(host):
        raise BadRequest("send a Host header: the targets are named by it")
    return host
