"""More requests than a run can serve in time, over real connections: who is answered, and what the others are told."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from proxy.spec import Deadlines, PoolCaps
from tests.live import API_KEY, Live, live, sim_engine

OTHER_KEY = "sk-test-other"
TOKENS = 40
NUM_FLOOD, NUM_OTHER = 120, 4
STEP = {"timing": {"prefill_ms": [0, 0, 1], "decode_ms": [0, 0, 10]}}
BODY = {"model": "tiny", "prompt": "word " * 20, "max_tokens": TOKENS, "ignore_eos": True}


def ask(run: Live, key: str) -> httpx.Response:
    with run.client(key) as client:
        return client.post("/v1/completions", json=BODY)


def add_key(path: Path) -> None:
    entry = {"name": "other", "hash": hashlib.sha256(OTHER_KEY.encode()).hexdigest(), "class": "user"}
    path.write_text(json.dumps([*json.loads(path.read_text()), entry]))


def test_a_flood_is_told_early_when_to_come_again_and_others_are_served(tmp_path: Path) -> None:
    """Two places and 0.4 s an answer: 120 of them take 24 s, and nobody may wait for more than 8."""
    pools = {"decode": PoolCaps(max_prefill_tokens=65536, max_decodes=2)}
    changes: dict[str, Any] = {"pools": pools, "pairs": (), "deadlines": Deadlines(queue_s=8.0)}
    with live(tmp_path / "run", {"decode-0": sim_engine(args={"num_blocks": 2048, **STEP})}, **changes) as run:
        add_key(tmp_path / "run" / "keys" / "api_keys.json")
        assert [ask(run, API_KEY).status_code for _ in range(12)] == [200] * 12, "its speed is known after these"
        while ask(run, OTHER_KEY).status_code == 401:
            pass  # keys are read again every few seconds
        with ThreadPoolExecutor(NUM_FLOOD + NUM_OTHER) as pool:
            flood = [pool.submit(ask, run, API_KEY) for _ in range(NUM_FLOOD)]
            others = [pool.submit(ask, run, OTHER_KEY) for _ in range(NUM_OTHER)]
            answers = [future.result() for future in flood]
            assert [future.result().status_code for future in others] == [200] * NUM_OTHER
    early = [answer for answer in answers if answer.status_code == 429]
    assert early and {answer.json()["error"]["code"] for answer in early} == {"too_busy"}
    assert all(1 <= int(answer.headers["retry-after"]) < 60 for answer in early)
    assert sum(answer.status_code == 200 for answer in answers) > 2 * NUM_OTHER
