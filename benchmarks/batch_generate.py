"""One of vLLM's own offline engines, for the batch benchmark: `python -m benchmarks.batch_generate MODEL ENGINE_ARGS`.

Speaks lines of JSON: says "ready", takes a list of prompts, answers what it took and made, and so on until its input
ends. Knows nothing of the product.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def main(model: str, engine_args: dict[str, Any]) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM writes to standard output too
    from vllm import LLM, SamplingParams

    engine = LLM(model=model, **engine_args)
    engine.generate("warm", SamplingParams(max_tokens=4), use_tqdm=False)
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        given = json.loads(line)
        engine.reset_prefix_cache()
        begun = time.perf_counter()
        asked = [SamplingParams(max_tokens=one["max_tokens"], temperature=0, ignore_eos=True) for one in given]
        outputs = engine.generate([one["text"] for one in given], asked, use_tqdm=False)
        took_s = time.perf_counter() - begun
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        prompt_tokens = sum(len(output.prompt_token_ids or ()) for output in outputs)
        cached = sum(output.num_cached_tokens or 0 for output in outputs)
        figures = {"took_s": took_s, "tokens": tokens, "prompt_tokens": prompt_tokens, "cached_tokens": cached}
        print(json.dumps(figures), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
