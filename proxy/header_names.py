"""The names of Sluice's own HTTP headers, for the proxy and for its clients here. Nothing else: imports nothing."""

from __future__ import annotations

# Of a request.
EXPLAIN = b"x-sluice-explain"  # its answer is to tell the decision's numbers
POLICY = b"x-sluice-policy"  # another than the run's
WORKER = b"x-sluice-worker"  # where it is to run: for operators

# Of an answer.
REQUEST_ID = b"x-sluice-request-id"
PREFILL = b"x-sluice-prefill"
DECODE = b"x-sluice-decode"
WAITED_S = b"x-sluice-waited-s"  # for a place; to batches
CACHED_TOKENS = b"x-sluice-cached-tokens"  # of the prompt; to batches

# From the proxy to the batches' process.
SECRET = b"x-sluice-secret"
CLIENT = b"x-sluice-client"
