"""A tiny model that says one text from its first to its last word, whatever it is asked.

For what a random model never does by itself: it thinks, and calls tools. Each piece of the text is a token of its own,
and the weights are such that each token is followed by the next one: nothing else of a prompt counts, so this says
nothing about caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from workers.engines.tiny_model import SPECIAL_TOKENS, write_tokenizer

HIDDEN_SIZE = 256
FIRST, LAST = SPECIAL_TOKENS.index("<|assistant|>"), SPECIAL_TOKENS.index("<|eos|>")


def write_reciting_model(folder: Path, pieces: Sequence[str], unsaid: Sequence[str] = ()) -> None:
    """`pieces`: none twice. `unsaid`: further tokens, which a parser looks for."""
    import torch
    from tokenizers import AddedToken
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    assert len(set(pieces)) == len(pieces)
    folder.mkdir(parents=True)
    write_tokenizer(folder)
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in (*pieces, *unsaid)])
    tokenizer.save_pretrained(folder)

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN_SIZE,
        intermediate_size=HIDDEN_SIZE,
        num_hidden_layers=1,
        num_attention_heads=8,
        max_position_embeddings=8192,
        bos_token_id=SPECIAL_TOKENS.index("<|bos|>"),
        eos_token_id=LAST,
        tie_word_embeddings=False,
    )
    model: Any = LlamaForCausalLM(config).float()
    layer, words, said = model.model.layers[0], model.model.embed_tokens.weight, model.lm_head.weight
    with torch.no_grad():
        for silent in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight, said):
            silent.zero_()
        words.copy_(torch.nn.functional.normalize(torch.randn_like(words), dim=1))
        for token, following in pairwise([FIRST, *map(tokenizer.convert_tokens_to_ids, pieces), LAST]):
            said[following] = words[token]
    model.save_pretrained(folder)
