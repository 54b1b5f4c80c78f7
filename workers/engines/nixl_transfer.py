"""`python -m workers.engines.nixl_transfer hold|read FOLDER DEVICE`: one real transfer with the library that moves KV.

The holder registers memory and says in FOLDER how to reach it; a reader, on this node or another, reads it and says
how fast that was and whether it read the right bytes. Both run in an engine's place and end by themselves.
"""

from __future__ import annotations

import base64
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from workers.spec import read_spec, write_json

MARK = "SLUICE-TRANSFER "
NUM_BYTES = 64 << 20
ROUNDS = 3  # the first one connects
HOLDER_FILE = "holder.json"
WAIT_S = 120.0  # on a cold file system one node may import much later than another
POLL_S = 0.05
SEED = 20


class Holder(msgspec.Struct, frozen=True):
    """How a reader finds the memory."""

    agent: str  # base64
    memory: str


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    gib_per_s: float = 0.0
    fault: str = ""


class TransferFailed(Exception):
    """The library took the request and did not carry it out."""


def hold(folder: Path, device: str, num_readers: int) -> None:
    """Until every reader has read, or one has had time enough. Without progress here nobody can read."""
    agent, tensor, _registered = _registered_agent("holder", device, filled=True)
    descriptors = agent.get_serialized_descs(agent.get_xfer_descs([tensor]))
    write_json(folder / HOLDER_FILE, Holder(_text(agent.get_agent_metadata()), _text(descriptors)))
    deadline = time.monotonic() + WAIT_S
    done = 0
    while done < num_readers and time.monotonic() < deadline:
        done += sum(map(len, agent.get_new_notifs().values()))


def read(folder: Path, device: str, name: str) -> Transfer:
    """Raises TransferFailed, or whatever the library raises."""
    holder = _await_holder(folder / HOLDER_FILE)
    agent, tensor, _registered = _registered_agent(name, device, filled=False)
    remote = agent.add_remote_agent(base64.b64decode(holder.agent))
    theirs = agent.deserialize_descs(base64.b64decode(holder.memory))
    ours = agent.get_xfer_descs([tensor])
    seconds = [_read_once(agent, ours, theirs, remote, last=turn == ROUNDS - 1) for turn in range(ROUNDS)]
    if not bool((tensor.cpu() == _contents()).all()):
        raise TransferFailed("the bytes that arrived are not those that were sent")
    return Transfer(gib_per_s=NUM_BYTES / (1 << 30) / min(seconds))


def _registered_agent(name: str, device: str, *, filled: bool) -> tuple[Any, Any, Any]:
    import torch
    from nixl._api import nixl_agent, nixl_agent_config

    tensor = _contents().to(device) if filled else torch.zeros(NUM_BYTES, dtype=torch.uint8, device=device)
    agent = nixl_agent(name, nixl_agent_config(enable_prog_thread=False, backends=["UCX"]))
    return agent, tensor, agent.register_memory([tensor])


def _contents() -> Any:
    import torch

    return torch.randint(0, 256, (NUM_BYTES,), dtype=torch.uint8, generator=torch.Generator().manual_seed(SEED))


def _read_once(agent: Any, ours: Any, theirs: Any, remote: str, *, last: bool) -> float:
    """The last one tells the holder that it may go."""
    transfer = agent.initialize_xfer("READ", ours, theirs, remote, b"read" if last else b"")
    started = time.monotonic()
    state = agent.transfer(transfer)
    while state == "PROC":
        if time.monotonic() > started + WAIT_S:
            raise TransferFailed(f"{NUM_BYTES >> 20} MiB did not arrive within {WAIT_S:.0f} s")
        state = agent.check_xfer_state(transfer)
    if state != "DONE":
        raise TransferFailed(f"the transfer ended as {state}")
    seconds = time.monotonic() - started
    agent.release_xfer_handle(transfer)
    return seconds


def _await_holder(path: Path) -> Holder:
    deadline = time.monotonic() + WAIT_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise TransferFailed(f"the holder of the memory said nothing within {WAIT_S:.0f} s")
        time.sleep(POLL_S)
    return read_spec(path, Holder)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def main(action: str, folder: str, device: str, word: str) -> None:
    if action == "hold":
        hold(Path(folder), device, num_readers=int(word))
        return
    try:
        outcome = read(Path(folder), device, word)
    except Exception as fault:  # noqa: BLE001 (what a binary library raises is the fact that is asked for)
        outcome = Transfer(fault=f"{type(fault).__name__}: {fault}")
    sys.stdout.write(MARK + msgspec.json.encode(outcome).decode() + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:5])
