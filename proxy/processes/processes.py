"""The proxy's processes: which should live, which of them takes connections from which socket, what each knows.

Pure: one mutator, `apply(event, now) -> effects`. There is a slot for each listening socket, and a process for
each slot; a process number is never used twice. A socket is always some ready process's business: while its own
is being replaced, another's. One that hangs is replaced like one that died. A hand-over exchanges one process
after the other: the successor sees all that its predecessor sees before it takes over. Where another proxy takes
the place of this one, all leave in their own time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf

from proxy.processes import process_events as ev
from proxy.processes.family import AcceptOn, Family, Leave
from proxy.processes.records import Process, Slot
from workers.links.proxy_file import ProxyFile
from workers.protocol import PROXY_SILENCE_S

STOP_GRACE_S = 10.0
ACCEPT_S = 10.0  # for clients that have read the address of the proxy before the next one's was written
KILL_AFTER_S = 3.0  # what has not ended so long after its grace does not listen
OPEN_TIMEOUT_S = 60.0
LAG_S = 2.0  # between two ticks: then this process did not run itself
HANDOVER_TIMEOUT_S = 60.0  # for a successor to see what its predecessor sees
STEADY_S = 60.0
FIRST_DELAY_S = 0.5
LAST_DELAY_S = 30.0
KEPT_ENDED = 16


@dataclass(slots=True)
class Processes:
    """`link_ports`: of the life before, to be taken again."""

    num_slots: int
    handover_grace_s: float
    next_number: int = 0
    link_ports: Sequence[int] = ()
    live: dict[int, Process] = field(default_factory=dict)
    stopping: bool = False
    retiring: bool = False
    failed: bool = False
    ended: bool = False
    handing_over: list[int] = field(default_factory=list)  # slots that still have their old process
    _slots: list[Slot] = field(default_factory=list)
    _ended: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_ENDED))
    _opened: bool = False  # some process has come up once
    _ticked_at: float = inf
    _out: list[ev.Effect] = field(default_factory=list)

    def __post_init__(self) -> None:
        ports = [*self.link_ports, *[0] * self.num_slots]
        self._slots = [Slot(free_port=ports[slot]) for slot in range(self.num_slots)]

    def apply(self, event: ev.Event, now: float) -> list[ev.Effect]:
        match event:
            case ev.Opened(number, file):
                self.live[number].file, self.live[number].kill_at, self.live[number].heard_at = file, inf, now
                self._opened = True
            case ev.Seen(number, serving, proven):
                self.live[number].serving, self.live[number].proven = serving, proven
            case ev.Heard(number):
                self.live[number].heard_at = now
            case ev.Died(number):
                self._died(self.live.pop(number), now)
            case ev.HandOver():
                if not self.handing_over:
                    self.handing_over = [process.slot for process in self._staying()]
            case ev.Retire():
                self.retiring = True
            case ev.Stop():
                self.stopping = True
            case ev.Tick():
                self._kill_late(now)
                self._kill_silent(now)
        self._settle(now)
        effects, self._out = self._out, []
        return effects

    # ------------------------------------------------------------ coming and going

    def _died(self, process: Process, now: float) -> None:
        slot = self._slots[process.slot]
        if process.file is not None:
            self._ended.append(process.file.id)
        if process.leaving or self.stopping or self.retiring:
            return
        if not self._opened:  # it will not come up the next time either: the one who started us is to know
            self.failed = self.stopping = True
            return
        if any(other.stays for other in self._of(process.slot)):
            self.handing_over.clear()  # a successor that did not come up: its predecessor goes on
            return
        slot.free_port = _port(process.file)
        slot.deaths = 1 if now - process.started_at >= STEADY_S else slot.deaths + 1
        delay_s = 0.0 if slot.deaths == 1 else FIRST_DELAY_S * 2 ** (slot.deaths - 2)
        slot.not_before = now + min(LAST_DELAY_S, delay_s)

    def _kill_late(self, now: float) -> None:
        for process in self.live.values():
            if now >= process.kill_at:
                self._kill(process, "it did not come up in time" if process.file is None else "it did not end in time")

    def _kill_silent(self, now: float) -> None:
        """Its part of the connections would wait for ever. Time in which we did not run is nobody's silence."""
        lagged, self._ticked_at = now - self._ticked_at > LAG_S, now
        for process in self.live.values():
            if lagged and process.file is not None:
                process.heard_at = now
            elif now - process.heard_at > PROXY_SILENCE_S:  # by now the workers have given up what it had sent them
                self._kill(process, f"it hangs: no word for {PROXY_SILENCE_S:.0f} s")

    def _kill(self, process: Process, why: str) -> None:
        if not process.killed:
            process.killed = process.leaving = True
            self._out.append(ev.Kill(process.number, why))

    def _start(self, slot: int, now: float) -> None:
        process = Process(self.next_number, slot, now, kill_at=now + OPEN_TIMEOUT_S)
        self.live[process.number] = process
        self.next_number += 1
        self._out.append(ev.Start(process.number, slot, self._slots[slot].free_port))
        self._slots[slot].free_port = 0

    def _send_away(self, process: Process, grace_s: float, now: float, *, at_once: bool) -> None:
        if process.file is None:
            self._kill(process, "it is not needed any more")
            return
        process.leaving = True
        accept_s = ACCEPT_S if self.retiring and not at_once else 0.0
        process.kill_at = now + accept_s + grace_s + KILL_AFTER_S
        self._out.append(ev.Say(process.number, Leave(grace_s, at_once, accept_s)))

    # ------------------------------------------------------------ what follows

    def _settle(self, now: float) -> None:
        if self.stopping:
            self._wind_up(now)
            return
        if self.retiring:
            self._retire(now)
            return
        for slot in range(self.num_slots):
            if now >= self._slots[slot].not_before and not any(not one.leaving for one in self._of(slot)):
                self._start(slot, now)
        for process in self._staying():
            process.ready = process.ready or self._sees_enough(process)
        self._hand_over(now)
        self._deal_out_sockets()
        self._tell()

    def _wind_up(self, now: float) -> None:
        for process in self.live.values():
            if not process.leaving or inf > process.kill_at > now + STOP_GRACE_S + KILL_AFTER_S:
                self._send_away(process, STOP_GRACE_S, now, at_once=True)
        self._end_if_empty()

    def _retire(self, now: float) -> None:
        for process in self.live.values():
            if not process.leaving:
                self._send_away(process, self.handover_grace_s, now, at_once=False)
        self._tell()
        self._end_if_empty()

    def _end_if_empty(self) -> None:
        if not self.live and not self.ended:
            self.ended = True
            self._out.append(ev.End(self.failed))

    def _sees_enough(self, process: Process) -> bool:
        """As much as any that is ready. The first is ready at once: it has nobody to be measured by."""
        ready = [other for other in self._staying() if other.ready]
        return not ready or any(other.serving <= process.serving for other in ready)

    def _hand_over(self, now: float) -> None:
        """One at a time: the next begins when the one before has taken over, not when its predecessor is gone."""
        while self.handing_over:
            slot = self.handing_over[0]
            here = [process for process in self._of(slot) if not process.leaving]
            if len(here) == 1 and here[0].stays:
                self._start(slot, now)
                return
            if len(here) < 2:
                self.handing_over.pop(0)  # this slot is getting a new process anyway
                continue
            *old, new = here
            if not new.ready:
                if now >= new.started_at + HANDOVER_TIMEOUT_S:
                    self._kill(new, f"after {HANDOVER_TIMEOUT_S:.0f} s it does not see all workers: no hand-over")
                    self.handing_over.clear()
                return
            for process in old:
                self._send_away(process, self.handover_grace_s, now, at_once=False)
            self.handing_over.pop(0)

    def _deal_out_sockets(self) -> None:
        staying = self._staying()
        takers = [process for process in staying if process.ready] or staying
        dealt: dict[int, list[int]] = {process.number: [] for process in staying}
        for slot in range(self.num_slots) if takers else ():
            own = [process for process in takers if process.slot == slot]
            chosen = own[-1] if own else min(takers, key=lambda process: len(dealt[process.number]))
            dealt[chosen.number].append(slot)
        for process in staying:
            slots = tuple(dealt[process.number])
            if slots != process.accepts:
                process.accepts = slots
                self._out.append(ev.Say(process.number, AcceptOn(slots)))

    def _tell(self) -> None:
        staying = self._staying()
        files = tuple(process.file for process in staying if process.file is not None)
        proven = frozenset(proof for process in staying for proof in process.proven)
        for process in self.live.values():
            family = Family(files, tuple(self._ended), proven, proves=bool(staying) and process is staying[0])
            if process.file is not None and process.told != family:
                process.told = family
                self._out.append(ev.Say(process.number, family))

    # ------------------------------------------------------------ looking

    def _staying(self) -> list[Process]:
        """The oldest first."""
        return [process for process in self.live.values() if process.stays]

    def _of(self, slot: int) -> Iterator[Process]:
        return (process for process in self.live.values() if process.slot == slot)


def _port(file: ProxyFile | None) -> int:
    return 0 if file is None else int(file.addresses[0].rsplit(":", 1)[1])
