"""Results on disk: whatever a crash leaves, all that was whole is there, and the file can be written on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.batch.output import Outputs
from launcher.batch.owner import Held, Holder, claim
from launcher.batch.records import DONE
from launcher.batch.store import NotResults, Store
from workers.spec import write_json

Results = list[tuple[int, bytes, bool]]
RESULTS = st.lists(st.tuples(st.integers(0, 50), st.binary(max_size=40), st.booleans()), unique_by=lambda r: r[0])


def key_of(ordinal: int) -> bytes:
    return ordinal.to_bytes(16, "big")


def add(store: Store, results: Results) -> None:
    for ordinal, line, ok in results:
        store.append(ordinal, key_of(ordinal), line, ok=ok)
    store.write(store.take())


def content(store: Store, *, in_order: bool = False) -> Results:
    records = store.in_order() if in_order else store.as_they_came()
    return [(record.ordinal, record.line, record.kind == DONE) for record in records]


def filled(path: Path, results: Results) -> list[int]:
    """A file of these results; returns where each of them ends."""
    store = Store(path)
    add(store, results)
    ends = [record.end for record in store.as_they_came()]
    store.close()
    return ends


@given(RESULTS, st.data())
def test_a_crash_at_any_byte_costs_only_what_was_not_whole(
    tmp_path_factory: pytest.TempPathFactory, results: Results, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("crash") / "results"
    ends = filled(path, results)
    size = path.stat().st_size
    cut = data.draw(st.integers(0, size))
    os.truncate(path, cut)
    whole = results[: sum(end <= cut for end in ends)]
    store = Store(path)
    assert content(store) == whole and len(store) == len(whole)
    assert {n for n in range(60) if store.key_of(n) is not None} == {ordinal for ordinal, _, _ in whole}
    add(store, results[len(whole) :])  # what was lost runs again
    store.close()
    again = Store(path)
    assert content(again, in_order=True) == sorted(results)
    assert again.num_cut_bytes == 0
    again.close()


@given(RESULTS, st.data())
def test_bytes_that_were_never_written_are_no_results(
    tmp_path_factory: pytest.TempPathFactory, results: Results, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("garbage") / "results"
    filled(path, results)
    with path.open("ab") as file:
        file.write(data.draw(st.sampled_from([bytes(100), b"\xff" * 33, b"x"])))
    store = Store(path)
    assert content(store) == results and store.num_cut_bytes > 0
    store.close()


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "results"
    results = [(n, b"line %d" % n, True) for n in range(3)]
    ends = filled(path, results)
    changed = bytearray(path.read_bytes())
    changed[ends[1] - 1] ^= 1
    path.write_bytes(changed)
    store = Store(path)
    assert content(store) == results[:1]
    store.close()


def test_another_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "results"
    path.write_bytes(b"somebody's thesis")
    with pytest.raises(NotResults):
        Store(path)
    assert path.read_bytes() == b"somebody's thesis"


def test_a_disk_that_is_full_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """A limit on the file's size stands for the disk's end: the write fails half way."""
    program = f"""
import resource, signal
from pathlib import Path
from launcher.batch.store import Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = Store(Path({str(tmp_path / "results")!r}))
store.append(0, bytes(16), b"kept", ok=True)
store.write(store.take())
resource.setrlimit(resource.RLIMIT_FSIZE, (store.size + 50, resource.RLIM_INFINITY))
store.append(1, bytes(16), b"x" * 100, ok=True)
try:
    store.write(store.take())
except OSError as fault:
    print(fault.strerror)
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told == "File too large\n"
    store = Store(tmp_path / "results")
    assert content(store) == [(0, b"kept", True)] and store.num_cut_bytes == 0
    store.close()


@pytest.mark.parametrize("in_order", [True, False])
def test_outputs_hold_each_result_once_however_often_it_was_begun(tmp_path: Path, in_order: bool) -> None:
    results, errors = tmp_path / "out", tmp_path / "err"
    for part in ([(2, b"c\n", True), (1, b"bad\n", False)], [(0, b"a\n", True)], []):
        store = Store(tmp_path / "results")
        outputs = Outputs(results, errors, in_order=in_order)
        outputs.begin(store)
        add(store, part)
        outputs.follow(store)
        if part and not in_order:
            assert results.read_bytes().endswith(part[0][1])  # while it runs
        if part:
            outputs.close()
            with results.open("ab") as file:
                file.write(b"a half-writ")  # by a crash
        else:
            outputs.end(store)
        store.close()
    assert results.read_bytes() == (b"a\nc\n" if in_order else b"c\na\n")
    assert errors.read_bytes() == b"bad\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["err", "out", "results"]


@given(st.permutations(range(12)), st.sets(st.integers(1, 11)), st.sets(st.integers(0, 11)))
def test_what_has_its_turn_is_written_in_order_before_the_end_comes(
    tmp_path_factory: pytest.TempPathFactory, ordinals: list[int], moments: set[int], bad: set[int]
) -> None:
    """So at the end of a batch, with its workers still there, only what came last is left to write."""
    folder = tmp_path_factory.mktemp("order")
    store = Store(folder / "store")
    outputs = Outputs(folder / "out", folder / "err", in_order=True)
    outputs.begin(store)

    def lines(until: int, *, good: bool) -> bytes:
        return b"".join(b"%d\n" % n for n in range(until) if (n not in bad) == good)

    for number, ordinal in enumerate(ordinals):
        add(store, [(ordinal, b"%d\n" % ordinal, ordinal not in bad)])
        if number in moments:
            outputs.follow(store)
            first_missing = next((n for n in range(12) if n not in ordinals[: number + 1]), 12)
            assert (folder / ".out.partial").read_bytes() == lines(first_missing, good=True)
            assert (folder / ".err.partial").read_bytes() == lines(first_missing, good=False)
    assert not (folder / "out").exists()
    outputs.end(store)
    store.close()
    assert (folder / "out").read_bytes() == lines(12, good=True)
    assert (folder / "err").read_bytes() == lines(12, good=False)


# ---------------------------------------------------------------- one writer


def silent(text: str) -> None:
    raise AssertionError(text)


def test_a_batch_has_one_worker_at_a_time_and_is_free_afterwards(tmp_path: Path) -> None:
    first = claim(tmp_path, "", silent)
    with pytest.raises(Held, match=f"process {os.getpid()} on {socket.gethostname()}"):
        claim(tmp_path, "", silent)
    first.beat()
    first.release()
    second = claim(tmp_path, "", silent)
    with pytest.raises(Held, match="taken over"):
        first.beat()
    second.release()


def test_a_holder_that_was_killed_is_followed_at_once(tmp_path: Path) -> None:
    program = (
        f"from launcher.batch.owner import claim; from pathlib import Path; import os;"
        f"claim(Path({str(tmp_path)!r}), '', print); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    claim(tmp_path, "", silent).release()


def test_a_process_id_that_is_used_again_is_not_the_holder(tmp_path: Path) -> None:
    holder = Holder(host=socket.gethostname(), pid=os.getpid(), started="1", job="")
    write_json(tmp_path / "owner.1", holder)
    claim(tmp_path, "", silent).release()


def elsewhere(folder: Path) -> Holder:
    holder = Holder(host="elsewhere", pid=1, started="1", job="77")
    write_json(folder / "owner.4", holder)
    return holder


def test_a_holder_elsewhere_is_gone_when_its_heart_does_not_beat(tmp_path: Path) -> None:
    elsewhere(tmp_path)
    told: list[str] = []
    claim(tmp_path, "", told.append, gone_s=0.1).release()
    assert told == ["held by process 1 on elsewhere in Slurm job 77: waiting 0 s for its heartbeat"]


def test_a_holder_elsewhere_whose_heart_beats_keeps_it(tmp_path: Path) -> None:
    holder = elsewhere(tmp_path)
    beating = threading.Event()

    def beat() -> None:
        while not beating.wait(0.05):
            nonlocal holder
            holder = msgspec.structs.replace(holder, beat=holder.beat + 1)
            write_json(tmp_path / "owner.4", holder)

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        with pytest.raises(Held, match="Slurm job 77"):
            claim(tmp_path, "", lambda text: None, gone_s=60.0)
    finally:
        beating.set()
        heart.join()


def test_of_two_that_claim_at_once_one_gets_it(tmp_path: Path) -> None:
    elsewhere(tmp_path)
    outcomes: list[str] = []

    def try_it() -> None:
        try:
            claim(tmp_path, "", lambda text: None, gone_s=0.2)
            outcomes.append("mine")
        except Held:
            outcomes.append("held")

    threads = [threading.Thread(target=try_it) for _ in range(4)]
    for thread in threads:
        thread.start()
        time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", "held", "held", "mine"]
