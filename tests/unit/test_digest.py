"""The digest's cores, case by case: an engine's events in, hashes that other workers would make too out."""

from __future__ import annotations

from array import array
from typing import Any

import msgspec
import pytest

from workers.digest import kv_events
from workers.digest.chains import Hasher, Media, extras, unpack
from workers.digest.digest import HeldBlocks
from workers.digest.digest_telling import MAX_QUEUED_BLOCKS, PIECE_BLOCKS, Telling
from workers.digest.kv_events import AllBlocksCleared, Batch, BlockRemoved, BlockStored
from workers.digest.kv_feed import ANSWER_S, Answered, Ask, Feed, Heard, Lost, Take, Tick
from workers.kv_messages import Digest

HASHER = Hasher(b"secret")
BLOCK_SIZE = 4
PROMPT = list(range(100, 112))
KEYS: list[kv_events.Key] = [1, 2, 3]


def stored(
    keys: list[kv_events.Key], tokens: list[int], parent: kv_events.Key | None = None, **more: Any
) -> BlockStored:
    return BlockStored(keys, parent, tokens, BLOCK_SIZE, **more)


def take(*events: kv_events.Event, ts: float = 0.0) -> Take:
    return Take(Batch(ts, list(events)))


@pytest.fixture
def held() -> HeldBlocks:
    return HeldBlocks(HASHER, BLOCK_SIZE)


def changes(held: HeldBlocks) -> tuple[int, list[int], list[int]]:
    told = held.changes()
    return told.epoch, told.added.tolist(), told.removed.tolist()


# ---------------------------------------------------------------- what is held


def test_blocks_stored_in_several_steps_are_one_chain(held: HeldBlocks) -> None:
    held.apply(take(stored([1], PROMPT[:4])))
    held.apply(take(stored([2, 3], PROMPT[4:], parent=1)))
    assert changes(held) == (0, HASHER.chain(PROMPT, BLOCK_SIZE).tolist(), [])
    assert held.snapshot() == HASHER.chain(PROMPT, BLOCK_SIZE)


def test_what_comes_and_goes_within_one_turn_is_not_told(held: HeldBlocks) -> None:
    blocks = HASHER.chain(PROMPT, BLOCK_SIZE).tolist()
    held.apply(take(stored(KEYS, PROMPT)))
    assert changes(held) == (0, blocks, [])
    held.apply(take(BlockRemoved([3]), stored([3], PROMPT[8:], parent=2), stored([4], [7] * 4), BlockRemoved([4, 2])))
    assert changes(held) == (0, [], [blocks[1]])
    assert changes(held) == (0, [], [])


def test_a_block_is_gone_with_its_last_copy(held: HeldBlocks) -> None:
    """vLLM computes the same prompt twice where both begin together, and keeps both."""
    for _ in range(3):
        held.apply(take(stored([1], PROMPT[:4])))
    for left in (1, 1, 0, 0):
        held.apply(take(BlockRemoved([1])))
        assert len(held) == left


def test_a_cleared_cache_is_a_new_epoch(held: HeldBlocks) -> None:
    held.apply(take(stored(KEYS, PROMPT)))
    held.apply(take(AllBlocksCleared(), stored([9], [5] * 4)))
    assert changes(held) == (1, HASHER.chain([5] * 4, BLOCK_SIZE).tolist(), [])
    held.apply(take(BlockRemoved([1])))
    assert changes(held) == (1, [], [])


def test_what_continues_blocks_that_were_lost_is_not_claimed(held: HeldBlocks) -> None:
    held.apply(take(stored([1], PROMPT[:4])))
    held.apply(Lost())
    held.apply(take(stored([2], PROMPT[4:8], parent=1), stored([3], PROMPT[8:], parent=2)))
    assert held.epoch == 1 and len(held) == 0


def test_what_kv_depends_on_is_read_as_it_is_made_from_a_prompt(held: HeldBlocks) -> None:
    keys: list[Any] = [["tuned", "salt"], ["tuned", ("cat", 1)], ["tuned", ("cat", -3)]]
    held.apply(take(stored(KEYS, PROMPT, lora_name="tuned", extra_keys=keys)))
    held.apply(take(stored([4, 5, 6], PROMPT, extra_keys=[["salt"], None, None])))
    held.apply(take(stored([7, 8, 9], PROMPT)))
    expected = [
        *HASHER.chain(PROMPT, BLOCK_SIZE, extras(3, BLOCK_SIZE, "tuned", "salt", [Media("cat", 5, 6)])),
        *HASHER.chain(PROMPT, BLOCK_SIZE, extras(3, BLOCK_SIZE, None, "salt", [])),
        *HASHER.chain(PROMPT, BLOCK_SIZE),
    ]
    assert held.snapshot().tolist() == expected
    assert len(set(expected)) == 9


def test_blocks_on_other_media_are_not_counted(held: HeldBlocks) -> None:
    held.apply(take(stored([1], PROMPT[:4], medium="CPU"), stored([2], PROMPT[:4]), BlockRemoved([2], medium="CPU")))
    assert held.snapshot() == HASHER.chain(PROMPT[:4], BLOCK_SIZE)


@pytest.mark.parametrize(
    ("event", "fault"),
    [
        (stored(KEYS, PROMPT, group_idx=1), "several groups"),
        (stored(KEYS, PROMPT, group_idx=0, kv_cache_spec_kind="sliding_window"), "sliding_window"),
        (stored(KEYS, PROMPT, group_idx=0, kv_cache_spec_kind="mamba"), "mamba"),
        (stored([1, 2], PROMPT), "parts of a prefix"),
        (BlockStored([1], None, PROMPT[:8], 8), "blocks of 8 tokens, not 4"),
    ],
)
def test_a_cache_that_holds_no_whole_prefixes_has_no_digest(held: HeldBlocks, event: BlockStored, fault: str) -> None:
    full = stored(KEYS, PROMPT, group_idx=0, kv_cache_spec_kind="full_attention")
    held.apply(take(full))
    assert held.fault is None
    held.apply(take(event, full))
    held.apply(take(full))
    assert held.fault is not None and fault in held.fault
    assert changes(held) == (1, [], []) and len(held) == 0


def test_an_event_of_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(msgspec.DecodeError, match="BlockPainted"):
        kv_events.decode(msgspec.msgpack.encode((0.0, [{"type": "BlockPainted"}])))


# ---------------------------------------------------------------- the order of batches


def batch(number: int) -> Batch:
    return Batch(float(number), [])


def taken(feed: Feed, *events: Any, now: float = 0.0) -> list[Any]:
    """Effects, batches by their number."""
    effects = [effect for event in events for effect in feed.apply(event, now)]
    return [int(effect.batch.ts) if isinstance(effect, Take) else effect for effect in effects]


def heard(*numbers: int) -> list[Heard]:
    return [Heard(number, batch(number)) for number in numbers]


def test_what_was_published_before_anyone_listened_is_asked_for() -> None:
    feed = Feed()
    assert taken(feed, Tick()) == [Ask(0)]
    assert taken(feed, *heard(2, 0, 1, 2), Answered()) == [0, 1, 2]


def test_repeated_and_reordered_batches_are_taken_once_and_in_order() -> None:
    feed = Feed()
    assert taken(feed, Tick(), *heard(0, 0, 2, 2, 1, 0), Answered(), *heard(3, 1)) == [Ask(0), 0, 1, 2, 3]


def test_a_gap_is_filled_by_one_question() -> None:
    feed = Feed()
    taken(feed, Tick(), Answered())
    assert taken(feed, *heard(0, 3, 4, 5)) == [0, Ask(1)]
    assert taken(feed, *heard(1, 2, 3, 4, 5), Answered()) == [1, 2, 3, 4, 5]
    assert feed.num_losses == 0


def test_an_answer_with_holes_is_asked_for_again_as_long_as_it_helps() -> None:
    feed = Feed()
    taken(feed, Tick(), Answered())
    assert taken(feed, *heard(5)) == [Ask(0)]
    assert taken(feed, *heard(0, 1, 4), Answered()) == [0, 1, Ask(2)]
    assert taken(feed, *heard(2, 3), Answered()) == [2, 3, 4, 5]


def test_what_the_engine_has_no_more_is_lost() -> None:
    feed = Feed()
    taken(feed, Tick(), Answered())
    assert taken(feed, *heard(7), *heard(5, 7), Answered()) == [Ask(0), Lost(), 5, Ask(6)]
    assert taken(feed, Answered()) == [Lost(), 7]
    assert feed.num_losses == 2


def test_an_answer_to_a_question_from_before_the_gap_proves_no_loss() -> None:
    feed = Feed()
    assert taken(feed, Tick(), *heard(0, 2), Answered()) == [Ask(0), 0, Ask(1)]
    assert taken(feed, *heard(1, 2), Answered()) == [1, 2]


def test_the_last_batches_and_lost_answers_are_asked_for_in_time() -> None:
    feed = Feed()
    assert taken(feed, Tick(), *heard(0), Answered(), now=0.0) == [Ask(0), 0]
    assert taken(feed, Tick(), now=1.0) == [Ask(1)]
    assert taken(feed, Tick(), *heard(1), now=1.0 + ANSWER_S / 2) == [1]
    assert taken(feed, Tick(), now=1.0 + ANSWER_S) == [Ask(2)]


# ---------------------------------------------------------------- what a proxy is told


def told(telling: Telling, unix: float = 0.0) -> list[Digest]:
    said = []
    while telling.has_more:
        said.append(telling.next(unix))
    return said


def flush(held: HeldBlocks, telling: Telling) -> None:
    telling.changed(held.changes())


def test_a_proxy_is_told_a_snapshot_and_then_what_changes(held: HeldBlocks) -> None:
    blocks = HASHER.chain(PROMPT, BLOCK_SIZE)
    held.apply(take(stored(KEYS, PROMPT)))
    telling = Telling(held, 0)
    flush(held, telling)
    assert told(telling, 10.0) == [Digest(0, 0, 1, blocks.tobytes(), b"", True)]
    held.apply(take(BlockRemoved([3]), ts=8.0))
    held.apply(take(stored([4], [1] * 4), ts=9.0))
    flush(held, telling)
    fresh = HASHER.chain([1] * 4, BLOCK_SIZE)
    assert told(telling, 10.0) == [
        Digest(0, 0, 2, b"", blocks[2:].tobytes(), age_s=2.0),
        Digest(0, 0, 3, fresh.tobytes(), age_s=2.0),
    ]
    held.apply(take(AllBlocksCleared()))
    flush(held, telling)
    assert told(telling) == [Digest(0, 1, 4, b"", b"", True)]


def fill(held: HeldBlocks, num_blocks: int, first: int = 0) -> list[kv_events.Key]:
    keys: list[kv_events.Key] = list(range(first, first + num_blocks))
    held.apply(take(stored(keys, [0] * BLOCK_SIZE * num_blocks, parent=first - 1 if first else None)))
    return keys


def test_much_is_told_in_pieces_and_what_changes_meanwhile_comes_behind_them(held: HeldBlocks) -> None:
    fill(held, 2 * PIECE_BLOCKS + 1)
    telling = Telling(held, 0)
    flush(held, telling)
    first = telling.next(0.0)
    held.apply(take(BlockRemoved([PIECE_BLOCKS, 2 * PIECE_BLOCKS])))
    flush(held, telling)
    rest = told(telling)
    assert [len(unpack(one.added)) for one in (first, *rest)] == [PIECE_BLOCKS, PIECE_BLOCKS, 1, 0]
    assert [one.snapshot for one in (first, *rest)] == [True, False, False, False]
    assert [one.seq for one in (first, *rest)] == [1, 2, 3, 4]
    added = array("Q", b"".join(one.added for one in (first, *rest)))
    assert set(added) - set(unpack(rest[-1].removed)) == set(held.snapshot())


def test_a_proxy_that_does_not_keep_up_gets_a_snapshot_when_it_does(held: HeldBlocks) -> None:
    telling = Telling(held, 0)
    assert told(telling)[0].snapshot
    keys = fill(held, MAX_QUEUED_BLOCKS + 1)
    flush(held, telling)
    held.apply(take(BlockRemoved(keys[1:])))
    flush(held, telling)
    assert told(telling) == [Digest(0, 0, 2, held.snapshot().tobytes(), b"", True)]
    assert len(held) == 1
