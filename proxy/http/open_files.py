"""The process's limit on open files, fitted to what the proxy's own limits allow.

Not just raised: a socket whose TLS handshake never ends is no connection yet, and nothing else bounds how
many there are. At the limit the server closes what it cannot take; those that it has go on.
"""

from __future__ import annotations

import logging
import resource

import msgspec

from proxy.spec import Limits

log = logging.getLogger(__name__)

# For the interpreter, logs, ZeroMQ, and connections that are told that there are too many.
RESERVED_FILES = 128
FILES_PER_WORKER = 8  # two links each, and as many again of a successor, twice over


def fit_open_files(limits: Limits, num_workers: int) -> Limits:
    """Set the soft limit; returns the limits with as many connections as fit below the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    num_files, num_connections = files_for(limits.max_connections, num_workers, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (num_files, hard))
    if num_connections < limits.max_connections:
        log.warning(
            "proxy.limits.max_connections is %d, but this node lets a process have %d files open (ulimit -Hn): "
            "%d connections are taken at once. Have the limit raised where the proxy runs, or lower the key",
            *(limits.max_connections, hard, num_connections),
        )
    return msgspec.structs.replace(limits, max_connections=num_connections)


def files_for(max_connections: int, num_workers: int, hard: int) -> tuple[int, int]:
    """(files, connections) below the hard limit."""
    reserved = RESERVED_FILES + FILES_PER_WORKER * num_workers
    num_files = min(reserved + max_connections, hard)
    return num_files, max(1, num_files - reserved)
