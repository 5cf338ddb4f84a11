"""What the server can be told to do wrong, and when.

Rules
  A fault matches a call by glob (``b2_upload_file``, ``b2_list_*``, ``*``) and optionally a key by glob; it
  fires `count` times (None: for ever), each time with `probability`, drawn from its own seeded generator, so a
  run can be repeated. Of the faults that match, the oldest that fires wins; LATENCY adds up with others.
  This file decides; `api` and `http` carry it out.
"""

from __future__ import annotations

import random
from enum import StrEnum
from typing import Any

import msgspec

from b2fs.devbucket.http import Cut, Mishap, matches


class Kind(StrEnum):
    STATUS = "status"  # refuse with args status, code, message, retry_after_s; nothing is done
    EXPIRED = "expired"  # 401 expired_auth_token
    CAP = "cap"  # 403 with args code: storage_, transaction_ or download_cap_exceeded
    LATENCY = "latency"  # args seconds before the request is looked at
    RESET = "reset"  # TCP reset before the body is read
    RESET_UPLOAD = "reset_upload"  # reset midway through the request body (args after: bytes)
    RESET_DOWNLOAD = "reset_download"  # reset midway through the answer's body (args after)
    REPLY_LOST = "reply_lost"  # the work is done and kept, then the connection is reset
    STALL = "stall"  # never answer
    STALL_UPLOAD = "stall_upload"  # stop reading midway (args after), never answer
    STALL_DOWNLOAD = "stall_download"  # stop midway through the answer's body (args after)
    TRUNCATE = "truncate"  # close in order midway through the answer's body (args after)
    CORRUPT = "corrupt"  # flip one byte of the answer's body (args after); same length, same SHA-1 header
    WRONG_SHA1 = "wrong_sha1"  # the answer names a SHA-1 that is not the body's


_CUTS = {
    Kind.RESET_UPLOAD: Cut.RESET,
    Kind.RESET_DOWNLOAD: Cut.RESET,
    Kind.STALL_UPLOAD: Cut.STALL,
    Kind.STALL_DOWNLOAD: Cut.STALL,
    Kind.TRUNCATE: Cut.CLOSE,
}
_UPLOAD = (Kind.RESET_UPLOAD, Kind.STALL_UPLOAD)
_DOWNLOAD = (Kind.RESET_DOWNLOAD, Kind.STALL_DOWNLOAD, Kind.TRUNCATE)


class Args(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Details of a fault; each kind names the ones that it uses."""

    status: int = 503
    code: str = "service_unavailable"
    message: str = "injected fault"
    retry_after_s: float | None = None
    seconds: float = 0.0
    after: int | None = None


class FaultSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fault as the admin interface takes it."""

    kind: Kind
    call: str = "*"
    key: str = "*"
    count: int | None = 1
    probability: float = 1.0
    seed: int = 0
    args: Args = Args()


class Fault:
    """A fault that is in force. `fired` counts how often it happened."""

    def __init__(self, number: int, spec: FaultSpec) -> None:
        self.number = number
        self.spec = spec
        self.fired = 0
        self._random = random.Random(spec.seed)

    @property
    def kind(self) -> Kind:
        return self.spec.kind

    @property
    def args(self) -> Args:
        return self.spec.args

    def fires(self, call: str, key: str) -> bool:
        spec = self.spec
        if spec.count is not None and self.fired >= spec.count:
            return False
        if not (matches(call, spec.call) and matches(key, spec.key)):
            return False
        if spec.probability < 1.0 and self._random.random() >= spec.probability:
            return False
        self.fired += 1
        return True

    def request_mishap(self) -> Mishap | None:
        """What goes wrong with the request's body."""
        return Mishap(_CUTS[self.kind], self.args.after) if self.kind in _UPLOAD else None

    def reply_mishap(self) -> Mishap | None:
        """What goes wrong with the answer's body."""
        if self.kind is Kind.CORRUPT:
            return Mishap(after=self.args.after, corrupt=True)
        return Mishap(_CUTS[self.kind], self.args.after) if self.kind in _DOWNLOAD else None

    def as_dict(self) -> dict[str, Any]:
        return {"id": self.number, "fired": self.fired, **msgspec.to_builtins(self.spec)}


class Faults:
    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._next = 1

    def add(self, spec: FaultSpec) -> Fault:
        fault = Fault(self._next, spec)
        self._next += 1
        self._faults.append(fault)
        return fault

    def remove(self, number: int | None = None) -> None:
        """Remove one fault, or all."""
        self._faults = [f for f in self._faults if number is not None and f.number != number]

    def all(self) -> list[Fault]:
        return list(self._faults)

    def pick(self, call: str, key: str) -> tuple[float, Fault | None]:
        """(seconds to wait first, the fault that happens to this request)."""
        delay_s = 0.0
        picked: Fault | None = None
        for fault in self._faults:
            if fault.kind is Kind.LATENCY:
                delay_s += fault.args.seconds if fault.fires(call, key) else 0.0
            elif picked is None and fault.fires(call, key):
                picked = fault
        return delay_s, picked
