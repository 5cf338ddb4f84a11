"""Which small files will be read next. Pure: the order of names comes from a function, the reads as calls.

Rules
  A *series* is a directory and the rest of a path below each of its names: ``(ino, ())`` are the files of a directory,
  ``(ino, (b"en", b"x.json"))`` the files of that path in each of its subdirectories. Its members stand in the order of
  the directory's names.
  A *run* begins when two misses of a series lie near each other in that order and in time; after a listing of its
  directory with one miss, of its first file or below one of its first names. It predicts the next `FIRST` members
  (`LISTED` after a listing), and at the first use of its newest window twice as many, up to `LARGEST`. If the two misses
  had one shape (all but the digits), only members of that shape. A window that ended at what nobody knows yet goes on
  with the next use.
  Every prediction is judged: right when it is read, wrong when it is evicted before, or when its run has ended, that is,
  nothing of its series was read for `PATIENCE` events. When too few of the last ones were right the predictor is *off*:
  it goes on predicting and judging, and whoever asks fetches nothing, until it would have been right again. At most
  `UNJUDGED` predictions are open, so it is never far wrong.

Units: an *event* is a miss, or the use of a prediction; nothing here knows a clock.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

NEAR = 4
"""Names between two misses that are in order: a reader may want every second file."""
SOON = 8
"""Events between them: whoever reads a file or two in each of many directories comes back to the series so soon."""
FIRST = 8
LISTED = 32
_FIRST_NAMES = 2
"""Below so many names of a listed directory a file begins a run: some directories lack what is looked for."""
LARGEST = 64
"""Members of a window: what 32 requests at a time bring in two round trips."""
UNJUDGED = 256
PATIENCE = 32
_SERIES = 64
_DIRECTORIES = 64
_JUDGED = 64
"""Predictions on which the switch is decided."""
_ENOUGH = 32
_OFF = 0.4
_ON = 0.6
"""Shares of right predictions, apart so that it does not flutter."""

_DIGITS = re.compile(rb"[0-9]+")

Series = tuple[int, tuple[bytes, ...]]

Order = Callable[[int, bytes, int, bool], Sequence[bytes]]
"""(directory, name, count, backwards) to the names that follow the name in the directory, at most so many."""


class Member(msgspec.Struct, frozen=True):
    series: Series
    name: bytes


class _Run:
    """What is remembered of a series."""

    __slots__ = ("at", "backwards", "cursor", "is_cut", "last", "number", "open", "seen", "shape", "window")

    def __init__(self, last: bytes, at: int) -> None:
        self.last = last
        """The member that was read last, at the event `at`."""
        self.at = at
        self.backwards = False
        self.window = 0
        """How many members the newest window has; 0: no run yet."""
        self.number = 0
        """Counts the windows."""
        self.seen = 0
        """The number of the newest window of which a member was read."""
        self.cursor = b""
        """The last name that was looked at for a window."""
        self.shape: bytes | None = None
        """What the members of the run have in common; None: they need not."""
        self.is_cut = False
        """The newest window ended at a member that is not known yet."""
        self.open: set[str] = set()
        """Its predictions that are not judged yet."""


class _Open(msgspec.Struct, frozen=True):
    """A prediction that is not judged yet."""

    member: Member
    window: int


class Predictor:
    """`token` names what is predicted in the caller's words (a blob).

    INVARIANT: at most `UNJUDGED` predictions are open; memory does not grow with what was read.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._event = 0
        self._runs: OrderedDict[Series, _Run] = OrderedDict()
        """By the event of their last read, the oldest first."""
        self._listed: OrderedDict[int, int] = OrderedDict()
        """At which event."""
        self._open: dict[str, _Open] = {}
        self._judged: deque[bool] = deque(maxlen=_JUDGED)
        self.on = True
        """Whether what is predicted is worth its fetch."""

    @property
    def room(self) -> int:
        """How many more predictions may be open."""
        return UNJUDGED - len(self._open)

    def listed(self, directory: int) -> None:
        """Somebody looks at all names of a directory: he may go on with its files."""
        self._listed[directory] = self._event
        self._listed.move_to_end(directory)
        if len(self._listed) > _DIRECTORIES:
            self._listed.popitem(last=False)

    def missed(self, members: Sequence[Member]) -> Iterator[list[Member]]:
        """A file was read that was not here and not predicted; `members`: what it is in which series, the narrowest
        first. Guesses who may be next, the likeliest first; whoever finds files to fetch in one takes no more of them.
        """
        self._tick()
        followed: list[tuple[Member, _Run, int, bytes]] = []
        listed: list[tuple[Member, _Run, int, bytes]] = []
        for member in members:
            run = self._runs.get(member.series) or _Run(b"", -PATIENCE)
            self._runs[member.series] = run
            if direction := self._direction(run, member):
                followed.append((member, run, direction * FIRST, run.last))
            elif self._is_listed(member):
                listed.append((member, run, LISTED, b""))
            self._read(member, run)
        while len(self._runs) > _SERIES:
            self._end()
        # after a listing: the files beside it, else those of its name in as many directories as there are
        listed.sort(key=lambda start: -len(start[0].series[1]) if start[0].series[1] else -len(members))
        return self._guesses(followed + listed)

    def predict(self, member: Member, token: str) -> bool:
        """The caller takes a prediction up. False: it is open already, or there are too many."""
        run = self._runs.get(member.series)
        if token in self._open or self.room <= 0 or run is None:
            return False
        self._open[token] = _Open(member, run.number)
        run.open.add(token)
        return True

    def expects(self, token: str) -> bool:
        return token in self._open

    def used(self, token: str) -> list[Member]:
        """What was predicted is read. Who may be next."""
        prediction = self._close(token)
        if prediction is None:
            return []
        self._judge(True)
        self._tick()
        run = self._runs.get(prediction.member.series)
        if run is None:
            return []
        self._read(prediction.member, run)
        if not run.is_cut:
            if prediction.window != run.number or run.seen == run.number:
                return []
            run.seen = run.number
            run.window = min(LARGEST, 2 * run.window)
        return self._window(prediction.member.series, run)

    def cut(self, member: Member) -> None:
        """Whether this member of a window exists is not known yet: it and what follows is to be guessed again."""
        run = self._runs.get(member.series)
        if run is not None:
            before = self._order(member.series[0], member.name, 1, not run.backwards)
            run.cursor, run.is_cut = before[0] if before else run.last, True

    def lost(self, token: str) -> None:
        """What was predicted is evicted, and nobody has read it."""
        if self._close(token) is not None:
            self._judge(False)

    def dropped(self, token: str) -> None:
        """What was predicted could not be fetched: that says nothing about the prediction."""
        self._close(token)

    # ------------------------------------------------------------ pieces

    def _direction(self, run: _Run, member: Member) -> int:
        """1 or -1 if a reader seems to go through the series, up or down; 0 if not."""
        if self._event - run.at <= SOON:
            if member.name in self._order(member.series[0], run.last, NEAR, False):
                return 1
            if member.name in self._order(member.series[0], run.last, NEAR, True):
                return -1
        return 0

    def _is_listed(self, member: Member) -> bool:
        """Whether its directory was just listed, and it is the first file of it, or below one of its first names."""
        directory, tail = member.series
        if self._event - self._listed.get(directory, -PATIENCE) >= PATIENCE:
            return False
        return member.name in self._order(directory, b"", _FIRST_NAMES if tail else 1, False)

    def _guesses(self, starts: Iterable[tuple[Member, _Run, int, bytes]]) -> Iterator[list[Member]]:
        for member, run, window, last in starts:
            run.backwards = window < 0
            run.shape = _shape(member.name) if _shape(member.name) == _shape(last) else None
            run.window, run.cursor = abs(window), member.name
            yield self._window(member.series, run)

    def _window(self, series: Series, run: _Run) -> list[Member]:
        """The next window of a run. Of each `NEAR` names one is looked for at least."""
        found: list[Member] = []
        for name in self._order(series[0], run.cursor, NEAR * run.window, run.backwards):
            if len(found) == run.window:
                break
            run.cursor = name
            if run.shape in (None, _shape(name)):
                found.append(Member(series, name))
        run.number += 1
        run.is_cut = False
        return found

    def _read(self, member: Member, run: _Run) -> None:
        run.last, run.at = member.name, self._event
        self._runs.move_to_end(member.series)

    def _tick(self) -> None:
        self._event += 1
        while self._runs and self._event - next(iter(self._runs.values())).at > PATIENCE:
            self._end()

    def _end(self) -> None:
        """The run that was not read for longest is over."""
        _, run = self._runs.popitem(last=False)
        for token in run.open:
            del self._open[token]
            self._judge(False)

    def _close(self, token: str) -> _Open | None:
        prediction = self._open.pop(token, None)
        if prediction is not None and (run := self._runs.get(prediction.member.series)) is not None:
            run.open.discard(token)
        return prediction

    def _judge(self, right: bool) -> None:
        self._judged.append(right)
        if len(self._judged) < _ENOUGH:
            return
        share = sum(self._judged) / len(self._judged)
        if (self.on and share < _OFF) or (not self.on and share >= _ON):
            self.on = not self.on
            self._judged.clear()


def _shape(name: bytes) -> bytes:
    return _DIGITS.sub(b"0", name)
