"""A tiny Llama for machines without a GPU: `python -m workers.engines.tiny_model DIR` writes it.

Owns the recipe: the same Python always writes the same files. The weights have real variance, so that
greedy output depends on the whole prompt: with a framework's default initialisation it depends on the last
token only, and a test of the KV hand-over passes on garbage. Not a model for anything but tests and trials.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VOCABULARY = 4096
SPECIAL_TOKENS = ["<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
CHAT_TEMPLATE = """\
{{ bos_token }}
{%- if tools %}<|system|>You may call these functions:
<tools>
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
</tools>
Answer with <tool_call>{"name": ..., "arguments": ...}</tool_call> to call one.
{%- endif %}
{%- for message in messages %}<|{{ message['role'] }}|>{{ message['content'] or '' }}
{%- for call in message['tool_calls'] or [] %}
{%- set function = call['function'] %}
<tool_call>{"name": {{ function['name'] | tojson }}, "arguments": {{ function['arguments'] | tojson }}}</tool_call>
{%- endfor %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""


TINY = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_key_value_heads": 4}


def write_model(folder: Path, shape: Mapping[str, int] = TINY) -> None:
    """Write the model to `folder`, whole or not at all; a complete one is left. `shape`: of its config.json."""
    if (folder / "config.json").is_file():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        write_tokenizer(unfinished)
        _write_weights(unfinished, shape)
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except OSError:
        if not (folder / "config.json").is_file():  # else another process was faster
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = sorted(Path(os.__file__).parent.glob("*.py"))[:150]  # the standard library: always there, always the same
    tokenizer.train(
        [str(path) for path in text],
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=SPECIAL_TOKENS,
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|bos|>", eos_token="<|eos|>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def _write_weights(folder: Path, shape: Mapping[str, int]) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        num_attention_heads=8,
        **shape,
        max_position_embeddings=8192,
        bos_token_id=SPECIAL_TOKENS.index("<|bos|>"),
        eos_token_id=SPECIAL_TOKENS.index("<|eos|>"),
        tie_word_embeddings=False,
    )
    model: Any = LlamaForCausalLM(config).float()
    for name, weights in model.named_parameters():
        if weights.dim() > 1:
            # Sharp attention: a change anywhere in the prompt must reach the next token.
            gain = 4.0 if "q_proj" in name or "k_proj" in name else 2.0
            torch.nn.init.normal_(weights, std=gain / weights.shape[-1] ** 0.5)
    model.save_pretrained(folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m workers.engines.tiny_model DIR")
    write_model(Path(sys.argv[1]))
