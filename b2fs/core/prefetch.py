"""Which small files will be read next. Pure: the names come from functions, the reads as calls.

Rules
  A *series* is a directory and the rest of a path below each of its names: ``(ino, ())`` are the files of a directory,
  ``(ino, (b"en", b"x.json"))`` the files of that path in each of its subdirectories. Its members stand in the order of
  the directory's names.
  A *run* goes through a series. It begins at a miss, on one of the *grounds* of `Ground`, and predicts the members that
  follow, so many as `_WINDOW` says. If what was read had one shape (all but the digits), only members of that shape.
  The next window is predicted when the last quarter of the newest is reached; when the reader had to wait for one
  after the first window, or has listed the directory, at the first use of the newest. If he had to wait at all, it is
  twice as large, up to `LARGEST`: who reads slowly needs but a few that are ahead of him. A window that ended at what
  nobody knows yet goes on with the next use.
  Every prediction is judged: right when it is read, wrong when it is evicted before, or when its run has ended, that is,
  nothing of its series was read for `PATIENCE` events. When too few of the last ones on a ground were right, this ground
  is *off*: its predictions are made and judged, but nobody fetches them, until they would have been right again. Of each
  ground at most `_UNJUDGED` predictions are open, so it is never far wrong.

Units: an *event* is a miss, or the use of a prediction; nothing here knows a clock.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum

import msgspec


class Ground(StrEnum):
    """Why something is predicted, the best reason first."""

    ORDER = "order"
    """Two misses of a series lie near each other, in its order and in time; so does what goes beyond a first window."""
    LISTING = "listing"
    """The directory was listed, and then came a miss of its first file, or below one of its first names."""
    START = "start"
    """A miss of the first of several files of a directory that differ in their digits only."""
    BELOW = "below"
    """A miss of a file without a digit in its name: then the few of its suffix in the directories beside it are read."""
    STRAIGHT = "straight"
    """The same by who has not listed what is beside its directory, so does not go from one to the next: then the first
    numbered files of the first of those directories are read too.
    """


NEAR = 4
"""Names between two misses that are in order: a reader may want every second file."""
SOON = 8
"""Events between them: whoever reads a file or two in each of many directories comes back to the series so soon."""
FIRST = 8
START = 16
"""Who begins at the beginning reads more than who came into the middle, and did not wait for a second one so far."""
LISTED = 32
_WINDOW = {Ground.ORDER: FIRST, Ground.LISTING: LISTED, Ground.START: START, Ground.STRAIGHT: START}
_FIRST_NAMES = 2
"""Below so many names of a listed directory a file begins a run: some directories lack what is looked for."""
_SEVERAL = 2
"""Files that follow the first one of their shape soon."""
LARGEST = 64
"""Members of a window: what 32 requests at a time bring in two round trips."""
_UNJUDGED = {Ground.ORDER: 256, Ground.LISTING: 256, Ground.START: 64, Ground.BELOW: 32, Ground.STRAIGHT: 32}
"""Predictions of a ground that are open at a time: the weaker it is, the sooner it has to be judged."""
PATIENCE = 32
_SERIES = 64
_DIRECTORIES = 64
_JUDGED = 64
"""Predictions of a ground on which its switch is decided."""
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


Below = Callable[[int, bytes], tuple[Sequence[Member], int | None]]
"""(directory, name of a file in it) to the files of the same suffix in its subdirectories, none if they are not few, and the
first of these subdirectories.
"""


class _Run:
    """What is remembered of a series."""

    __slots__ = (
        "at", "backwards", "cursor", "first", "ground", "has_waited", "is_cut", "is_eager", "last", "number", "open",
        "shape", "taken", "window",
    )  # fmt: skip

    def __init__(self, at: int) -> None:
        self.last = b""
        """The member that was read last, at the event `at`; none yet."""
        self.at = at
        self.ground = Ground.BELOW
        """Why the newest window is predicted."""
        self.backwards = False
        self.window = 0
        """How many members the newest window may have."""
        self.number = 0
        """Counts the windows."""
        self.first = 0
        """The number of the window with which the run began."""
        self.taken = 0
        """How many of the newest window were taken up."""
        self.has_waited = False
        """The reader came for a prediction that was on its way still, since the newest window was predicted."""
        self.is_eager = False
        """The next window is predicted at the first use of the newest."""
        self.cursor = b""
        """The last name that was looked at for a window."""
        self.shape: bytes | None = None
        """What the members of the run have in common; None: they need not."""
        self.is_cut = False
        """The newest window ended at a member that is not known yet."""
        self.open: set[str] = set()
        """Its predictions that are not judged yet."""


class _Beginning(msgspec.Struct, frozen=True):
    """A run that may begin behind a member."""

    member: Member
    ground: Ground
    shape: bytes | None = None
    backwards: bool = False


class _Open(msgspec.Struct, frozen=True):
    """A prediction that is not judged yet."""

    member: Member
    ground: Ground
    window: int
    index: int
    """Its place among those of its window that were taken up."""


class _Judge:
    """How good a ground is. INVARIANT: 0 <= open <= limit."""

    __slots__ = ("_last", "is_on", "limit", "open")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.open = 0
        self.is_on = True
        self._last: deque[bool] = deque(maxlen=_JUDGED)

    def judge(self, right: bool) -> None:
        self._last.append(right)
        if len(self._last) < _ENOUGH:
            return
        share = sum(self._last) / len(self._last)
        if (self.is_on and share < _OFF) or (not self.is_on and share >= _ON):
            self.is_on = not self.is_on
            self._last.clear()


class Predictor:
    """`token` names what is predicted in the caller's words (a blob).

    INVARIANT: memory does not grow with what was read.
    """

    def __init__(self, order: Order, below: Below) -> None:
        self._order = order
        self._below = below
        self._event = 0
        self._runs: OrderedDict[Series, _Run] = OrderedDict()
        """By the event of their last read, the oldest first."""
        self._listed: OrderedDict[int, int] = OrderedDict()
        """At which event."""
        self._open: dict[str, _Open] = {}
        """What is predicted, and to be fetched."""
        self._tried: dict[str, _Open] = {}
        """What is predicted on a ground that is off: it is judged, and a read of it is a miss as any other."""
        self._judges = {ground: _Judge(limit) for ground, limit in _UNJUDGED.items()}

    @property
    def on(self) -> bool:
        """Whether what is predicted is worth its fetch, whatever the ground."""
        return all(judge.is_on for judge in self._judges.values())

    def room(self, ground: Ground) -> int:
        """How many more predictions may be open on a ground."""
        return self._judges[ground].limit - self._judges[ground].open

    def listed(self, directory: int) -> None:
        """Somebody looks at all names of a directory: he may go on with its files."""
        self._listed[directory] = self._event
        self._listed.move_to_end(directory)
        if len(self._listed) > _DIRECTORIES:
            self._listed.popitem(last=False)

    def missed(self, token: str, members: Sequence[Member]) -> Iterator[Sequence[Member]]:
        """A file was read that was not here and not predicted; `members`: what it is in which series, the narrowest
        first. Guesses who may be next, the likeliest first; whoever finds files to fetch in one takes no more of them.
        """
        self._tick()
        self._is_read(token)
        followed, listed = list[_Beginning](), list[_Beginning]()
        for member in members:
            run = self._run(member.series)
            if direction := self._direction(run, member):
                shape = _shape(member.name)
                common = shape if shape == _shape(run.last) else None
                followed.append(_Beginning(member, Ground.ORDER, common, direction < 0))
            elif self._is_listed(member):
                listed.append(_Beginning(member, Ground.LISTING))
            self._read(member, run)
        while len(self._runs) > _SERIES:
            self._end()
        # after a listing: the files beside it, else those of its name in as many directories as there are
        listed.sort(key=lambda each: -len(each.member.series[1]) if each.member.series[1] else -len(members))
        return self._guesses(followed + listed, members)

    def predict(self, member: Member, token: str) -> bool:
        """The caller takes a prediction up, to fetch it if it is expected then. False: there is nothing new to it."""
        run = self._runs.get(member.series)
        if run is None or token in self._open or self.room(run.ground) <= 0:
            return False
        judge = self._judges[run.ground]
        table = self._open if judge.is_on else self._tried
        if token in table:
            return False
        table[token] = _Open(member, run.ground, run.number, run.taken)
        run.open.add(token)
        run.taken += 1
        judge.open += 1
        return True

    def expects(self, token: str) -> bool:
        """Whether somebody is believed to read it, and has not so far."""
        return token in self._open

    def used(self, token: str, waited: bool) -> list[Member] | None:
        """What is expected is read; `waited`: it was not here yet. Who may be next. None: it was no part of a run, look
        at it as at a miss.
        """
        prediction = self._is_read(token)
        if prediction is None:
            return []
        if prediction.ground is Ground.BELOW:
            return None
        self._tick()
        run = self._runs.get(prediction.member.series)
        if run is None:
            return []
        self._read(prediction.member, run)
        run.has_waited |= waited
        run.is_eager |= waited and prediction.window > run.first
        if not run.is_cut:
            is_early = not run.is_eager and prediction.index < run.taken * 3 // 4
            if prediction.window != run.number or is_early:
                return []
            if run.has_waited:
                run.window = min(LARGEST, 2 * run.window)
            run.has_waited, run.ground = False, Ground.ORDER
        return self._window(prediction.member.series, run)

    def cut(self, member: Member) -> None:
        """Whether this member of a window exists is not known yet: it and what follows is to be guessed again."""
        run = self._runs.get(member.series)
        if run is not None:
            before = self._order(member.series[0], member.name, 1, not run.backwards)
            run.cursor, run.is_cut = before[0] if before else run.last, True

    def lost(self, token: str) -> None:
        """What was predicted is evicted, and nobody has read it."""
        if (prediction := self._close(token, self._open)) is not None:
            self._judges[prediction.ground].judge(False)

    def dropped(self, token: str) -> None:
        """What was predicted could not be fetched: that says nothing about the prediction."""
        self._close(token, self._open)

    # ------------------------------------------------------------ pieces

    def _direction(self, run: _Run, member: Member) -> int:
        """1 or -1 if a reader seems to go through the series, up or down; 0 if not."""
        if run.last and self._event - run.at <= SOON:
            if member.name in self._order(member.series[0], run.last, NEAR, False):
                return 1
            if member.name in self._order(member.series[0], run.last, NEAR, True):
                return -1
        return 0

    def _was_listed(self, directory: int) -> bool:
        return self._event - self._listed.get(directory, -PATIENCE) < PATIENCE

    def _is_listed(self, member: Member) -> bool:
        """Whether its directory was just listed, and it is the first file of it, or below one of its first names."""
        directory, tail = member.series
        if not self._was_listed(directory):
            return False
        return member.name in self._order(directory, b"", _FIRST_NAMES if tail else 1, False)

    def _is_first(self, member: Member) -> bool:
        """Whether it is the first file of its shape in its directory, and others follow."""
        directory, tail = member.series
        if tail or not _DIGITS.search(member.name):
            return False
        shape = _shape(member.name)
        if any(_shape(name) == shape for name in self._order(directory, member.name, NEAR, True)):
            return False
        after = self._order(directory, member.name, _SEVERAL * NEAR, False)
        return sum(_shape(name) == shape for name in after) >= _SEVERAL

    def _guesses(self, beginnings: list[_Beginning], members: Sequence[Member]) -> Iterator[Sequence[Member]]:
        for beginning in beginnings:
            yield self._begin(beginning)
        if not members:
            return
        missed = members[0]
        if self._is_first(missed):
            yield self._begin(_Beginning(missed, Ground.START, _shape(missed.name)))
        elif not missed.series[1] and not _DIGITS.search(missed.name):
            below, directory = self._below(missed.series[0], missed.name)
            found = [each for each in below if each.series not in self._runs]
            for each in found:
                self._run(each.series)
            is_straight = not beginnings and len(members) > 1 and not self._was_listed(members[1].series[0])
            yield found + self._numbered(directory) if is_straight and directory is not None else found

    def _numbered(self, directory: int) -> list[Member]:
        """The first numbered files of a directory that nobody goes through so far."""
        series: Series = (directory, ())
        for name in self._order(directory, b"", NEAR, False) if series not in self._runs else ():
            if self._is_first(Member(series, name)):
                return self._begin(_Beginning(Member(series, b""), Ground.STRAIGHT, _shape(name)))
        return []

    def _begin(self, beginning: _Beginning) -> list[Member]:
        """The first window of a run."""
        run = self._run(beginning.member.series)
        run.ground, run.shape, run.backwards = beginning.ground, beginning.shape, beginning.backwards
        run.window, run.cursor = _WINDOW[beginning.ground], beginning.member.name
        run.first = run.number + 1
        run.has_waited, run.is_eager = False, beginning.ground is Ground.LISTING
        return self._window(beginning.member.series, run)

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
        run.taken = 0
        run.is_cut = False
        return found

    def _run(self, series: Series) -> _Run:
        """What is remembered of a series, from now on at least."""
        run = self._runs.get(series)
        if run is None:
            run = self._runs[series] = _Run(self._event)
        return run

    def _read(self, member: Member, run: _Run) -> None:
        run.last, run.at = member.name, self._event
        self._runs.move_to_end(member.series)

    def _tick(self) -> None:
        self._event += 1
        while self._runs and self._event - next(iter(self._runs.values())).at > PATIENCE:
            self._end()

    def _end(self) -> None:
        """The run that was not read for longest is over."""
        series, run = self._runs.popitem(last=False)
        for token in run.open:
            for table in (self._open, self._tried):
                prediction = table.get(token)
                if prediction is not None and prediction.member.series == series:
                    del table[token]
                    self._judges[prediction.ground].open -= 1
                    self._judges[prediction.ground].judge(False)

    def _is_read(self, token: str) -> _Open | None:
        """Whoever predicted it was right. The prediction that is to be fetched, if any."""
        tried, prediction = self._close(token, self._tried), self._close(token, self._open)
        for each in (tried, prediction):
            if each is not None:
                self._judges[each.ground].judge(True)
        return prediction

    def _close(self, token: str, table: dict[str, _Open]) -> _Open | None:
        prediction = table.pop(token, None)
        if prediction is not None:
            self._judges[prediction.ground].open -= 1
            run = self._runs.get(prediction.member.series)
            if run is not None and token not in self._open and token not in self._tried:
                run.open.discard(token)
        return prediction


def _shape(name: bytes) -> bytes:
    return _DIGITS.sub(b"0", name)
