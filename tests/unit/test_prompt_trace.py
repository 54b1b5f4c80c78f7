"""What is learnt of prompts: the next one that begins alike is known by its bytes, as deep as the two are alike."""

from __future__ import annotations

import json
import tracemalloc
from array import array
from typing import Any
from zlib import crc32

from hypothesis import given
from hypothesis import strategies as st

from proxy.prefixes.prefix_index import PrefixIndex
from proxy.prefixes.prompt_key import PromptKey, fields_of, prompt_key
from proxy.prefixes.prompt_trace import NODE_BYTES, PromptBook, num_shared
from workers.digest.chains import Hasher, pack

HASHER = Hasher(b"secret")
BLOCK = 16
BYTES_PER_TOKEN = 4.0


def book(max_bytes: int = 1 << 24) -> PromptBook:
    return PromptBook(max_bytes, BYTES_PER_TOKEN)


def key_of(*messages: str, **fields: Any) -> PromptKey:
    body = json.dumps({"messages": messages, **fields}).encode()
    key = prompt_key(b"secret", "/v1/chat/completions", b"", fields_of(body))
    assert key is not None
    return key


def tokens(*messages: str) -> list[int]:
    """A template and a tokenizer: a token per word, and two around each message."""
    return [crc32(word.encode()) for text in messages for word in ("<s>", *text.split(), "</s>")]


def chain_of(*messages: str) -> array[int]:
    return HASHER.chain(tokens(*messages), BLOCK)


def learn(to: PromptBook, *messages: str) -> None:
    to.learn(key_of(*messages), pack(chain_of(*messages)), len(tokens(*messages)), BLOCK)


def known(to: PromptBook, *messages: str) -> list[int]:
    return list(to.find(key_of(*messages), BLOCK).chain)


def words(letter: str, count: int) -> str:
    return " ".join(letter * (1 + number % 7) for number in range(count))


def test_a_prompt_is_known_whole_when_it_comes_again() -> None:
    learnt = book()
    learn(learnt, words("a", 500))
    found = learnt.find(key_of(words("a", 500)), BLOCK)
    assert found.chain == chain_of(words("a", 500))
    assert found.num_tokens == 502


def test_a_conversation_that_grows_is_known_up_to_the_last_prompt() -> None:
    learnt = book()
    messages = [words(letter, 60 + 41 * number) for number, letter in enumerate("abcdefgh")]
    for number in range(1, len(messages)):
        learn(learnt, *messages[:number])
        assert known(learnt, *messages[: number + 1]) == list(chain_of(*messages[:number]))


def test_of_an_unknown_prompt_only_the_length_is_guessed() -> None:
    key = key_of(words("a", 500))
    found = book().find(key, BLOCK)
    assert not found.chain
    assert found.num_tokens == int((key.num_bytes + key.context_bytes) / BYTES_PER_TOKEN)


def test_where_two_prompts_part_is_exact_once_both_are_known() -> None:
    """The first guess goes by bytes, and these words are not all of one length."""
    learnt = book()
    system = words("s", 300)
    learn(learnt, system, words("abcdefghijklmnop", 90))
    assert known(learnt, system, "z") != list(chain_of(system))
    learn(learnt, system, words("b", 200))
    assert len(tokens(system)) // BLOCK == 18
    assert known(learnt, system, "z") == list(chain_of(system, "z")[:18])


def test_a_template_that_writes_prompts_anew_is_noticed() -> None:
    """It tells the date, and the date has changed: the prompt learnt last counts."""
    learnt = book()
    system, first, second = words("s", 300), words("a", 100), words("b", 100)

    def learn_on(day: str, *messages: str) -> array[int]:
        ids = [ord(day), *tokens(*messages)]
        learnt.learn(key_of(*messages), pack(HASHER.chain(ids, BLOCK)), len(ids), BLOCK)
        return HASHER.chain(ids, BLOCK)

    learn_on("1", system, first)
    whole = learn_on("2", system, first, second)
    assert known(learnt, system, first, second, "and more") == list(whole)
    learn_on("2", system, "another")
    learn_on("2", system, "a third")
    assert known(learnt, system, "a fourth")[:18] == list(whole[:18])


def test_the_ratio_of_bytes_and_tokens_is_learnt() -> None:
    learnt = book()
    text = words("a", 3000)
    for number in range(40):
        learn(learnt, str(number), text)
    new = words("b", 3000)
    assert abs(learnt.find(key_of(new), BLOCK).num_tokens - 3002) < 150
    assert learnt.find(key_of("0", text, new), BLOCK).num_tokens > 5900


def test_an_image_does_not_tell_how_long_texts_are() -> None:
    learnt = book()
    learnt.learn(key_of("x" * 1_000_000), b"", 300, BLOCK)
    assert learnt.bytes_per_token == BYTES_PER_TOKEN


def test_new_prompts_with_the_same_beginning_are_promised_together_before_anything_is_learnt() -> None:
    learnt, index, target = book(), PrefixIndex(), (("decode-0", 0), 0)
    shared = words("s", 2000)
    one, two = (learnt.find(key_of(shared, text), BLOCK) for text in (words("a", 900), words("b", 900)))
    index.promise(target, one.marks)
    blocks = index.leading(two.chain, two.marks)[target]
    assert abs(blocks * BLOCK * BYTES_PER_TOKEN - len(shared)) < 2 * BLOCK * BYTES_PER_TOKEN
    learn(learnt, shared, words("a", 900))
    blocks = index.leading((), learnt.find(key_of(shared, "c"), BLOCK).marks)[target]
    assert abs(blocks - len(tokens(shared)) // BLOCK) <= 2


def test_another_block_size_is_learnt_anew() -> None:
    learnt = book()
    text = words("a", 500)
    learn(learnt, text)
    other = HASHER.chain(tokens(text), 64)
    learnt.learn(key_of(text), pack(other), len(tokens(text)), 64)
    learnt.learn(key_of(text), pack(other), len(tokens(text)), 64)
    found = learnt.find(key_of(text), 64)
    assert found.chain == other


def test_the_longest_unused_is_forgotten() -> None:
    learnt = book(100_000)
    for number in range(1000):
        learn(learnt, f"{number} {words('a', 400)}")
        known(learnt, f"0 {words('a', 400)}")
        assert learnt.num_bytes <= 100_000
    assert known(learnt, f"0 {words('a', 400)}") and known(learnt, f"999 {words('a', 400)}")
    assert not known(learnt, f"500 {words('a', 400)}")


def test_a_prompt_larger_than_the_memory_is_no_harm() -> None:
    learnt = book(2000)
    learn(learnt, words("a", 50_000))
    assert len(learnt) * NODE_BYTES <= 2000


def test_the_memory_is_what_it_is_said_to_be() -> None:
    keys = [key_of(*[f"{number} {words('a', 300)}"] * 9) for number in range(400)]
    chains = [bytes(8 * 170) for _ in keys]
    tracemalloc.start()
    learnt = book(1 << 30)
    for key, hashes in zip(keys, chains, strict=True):
        learnt.learn(key, bytes(bytearray(hashes)), 2730, BLOCK)
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert 0.5 * learnt.num_bytes < used < 1.1 * learnt.num_bytes


hashes = st.lists(st.integers(0, 3), max_size=40).map(lambda ids: pack(HASHER.chain(ids, 1)))


@given(hashes, hashes)
def test_how_much_two_chains_share(one: bytes, other: bytes) -> None:
    count = num_shared(one, other)
    assert one[: count * 8] == other[: count * 8]
    assert count * 8 in (len(one), len(other)) or one[count * 8 :][:8] != other[count * 8 :][:8]


@given(st.lists(st.lists(st.sampled_from(["a b c " * 60, "d " * 900, "e"]), min_size=1, max_size=6), max_size=25))
def test_any_history_keeps_within_bounds_and_claims_no_more_than_was_learnt(prompts: list[list[str]]) -> None:
    learnt = book(30_000)
    told = set[int]()
    for messages in prompts:
        found = learnt.find(key_of(*messages), BLOCK)
        assert set(found.chain) <= told
        assert len(found.chain) * BLOCK <= found.num_tokens
        learn(learnt, *messages)
        told |= set(chain_of(*messages))
        assert learnt.num_bytes <= 30_000
        assert learnt.num_bytes >= len(learnt) * NODE_BYTES
