"""Where an engine keeps what it compiles and tunes: by engine version and device, shared by all who have both.

Pure. What is in there can be made again; what was made for another GPU or version must not be found.
"""

from __future__ import annotations

import re
from pathlib import PurePath

from workers.agent.preflight import EngineFacts
from workers.spec import WorkerSpec


def engine_cache(spec: WorkerSpec, facts: EngineFacts) -> str:
    version = facts.version or spec.engine.version
    engine = f"{spec.engine.kind}-{version}" if version else spec.engine.kind
    device = facts.gpus[0].name if facts.gpus else f"cpu-{facts.machine}"
    return str(PurePath(spec.cache_dir) / folder_name(engine) / folder_name(device))


def folder_name(words: str) -> str:
    """NVIDIA H100 80GB HBM3 -> nvidia-h100-80gb-hbm3"""
    return re.sub(r"[^a-z0-9.]+", "-", words.lower()).strip("-.")
