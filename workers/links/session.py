"""One session of a link, as a pure core: sequence numbers, credit and liveness, the same at both ends.

ZeroMQ drops messages on reconnect, at the high-water mark and to unknown peers; this is what makes a
loss visible. A gap ends the session: everything open on the link is lost and the peer registers anew.
Holds no socket and no clock; times are seconds of any monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field


class LinkLost(Exception):
    """The link cannot be trusted any more; the message says why."""


@dataclass(slots=True)
class Session:
    """Both directions of one link. `window_bytes` bounds what is sent and not yet acknowledged."""

    window_bytes: int
    silence_s: float
    heard_at: float
    sent: int = 0  # batches
    sent_bytes: int = 0
    acked_bytes: int = 0
    received: int = 0
    received_bytes: int = 0
    told_bytes: int = field(default=0)  # the last acknowledgement we gave

    def may_send(self) -> bool:
        """A batch may always go while some credit is left: it may overshoot by its own size."""
        return self.sent_bytes - self.acked_bytes < self.window_bytes

    def seal(self) -> tuple[int, int]:
        """Returns (seq, ack) for the next batch; `count` its size once it is encoded."""
        seq = self.sent
        self.sent += 1
        self.told_bytes = self.received_bytes
        return seq, self.received_bytes

    def count(self, num_bytes: int) -> None:
        self.sent_bytes += num_bytes

    def accept(self, seq: int, ack: int, num_bytes: int, now: float) -> None:
        """Take in one batch. Raises LinkLost on a gap, a repetition or an impossible acknowledgement."""
        if seq != self.received:
            raise LinkLost(f"expected batch {self.received}, got {seq}")
        if not self.acked_bytes <= ack <= self.sent_bytes:
            raise LinkLost(f"peer acknowledged {ack} bytes; sent {self.sent_bytes}, known {self.acked_bytes}")
        self.received += 1
        self.received_bytes += num_bytes
        self.acked_bytes = ack
        self.heard_at = now

    def owes_ack(self) -> bool:
        """A peer that fills its window must hear from us before it stalls, beat or not."""
        return self.received_bytes - self.told_bytes >= self.window_bytes // 4

    def forgive(self, lag_s: float) -> None:
        """We did not run ourselves for so long: that is no silence of the peer's."""
        self.heard_at += lag_s

    def silent(self, now: float) -> bool:
        return now - self.heard_at > self.silence_s
