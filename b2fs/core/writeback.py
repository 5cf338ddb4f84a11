"""Write-back: when a key's turn comes, and what has to be done about it then.

Rules
  `plan` compares what the namespace says about a key with what the bucket has there; the answer is one
  cell of a table, whatever happened in between. Create+delete within the quiet period is NOTHING, a→b→c
  is one copy, and after a crash the same table gives the rest of the work.
  The old name of moved bytes is hidden only after the new one is confirmed: WAIT says that a live file
  still lives in this version alone.

Units: ``*_s`` seconds on the caller's monotonic clock; the caller brings the clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Container
from enum import StrEnum

from b2fs.core.change import Intent, ObjectRow
from b2fs.core.inode import Inode, attributes

REUPLOAD_LIMIT = 8 * 1024 * 1024
"""Clean content up to this many bytes that lies in the cache is uploaded again rather than copied on the
server: uploads are free, a copy is a class C transaction (facts b2.md 0.4)."""


_MAX_DOUBTS = 10_000
"""Keys of which it is remembered that an attempt may come late."""


class Step(StrEnum):
    NOTHING = "nothing"
    UPLOAD = "upload"
    COPY = "copy"
    HIDE = "hide"
    WAIT = "wait"


def plan(live: Inode | None, row: ObjectRow | None, *, cached: bool, needed: bool, doubtful: bool = False) -> Step:
    """What brings the object at a key in line with the namespace.

    `live` is the inode that the key names now, sealed (not scratch); `row` what the bucket has there
    (None or a tombstone: nothing visible); `cached`: the clean content is here in whole; `needed`: some
    other live file's only copy in B2 is this version; `doubtful`: an upload may have been committed there
    without our knowing, so there may be more than `row` says.
    """
    there = row is not None and row.file_id != ""
    if live is None:
        if not there:
            return Step.HIDE if doubtful else Step.NOTHING
        return Step.WAIT if needed else Step.HIDE
    if there and row is not None and row.attributes == attributes(live) and _same_content(live, row):
        return Step.NOTHING
    if not live.is_file or live.staged or live.size == 0:
        return Step.UPLOAD
    if cached and live.size <= REUPLOAD_LIMIT:
        return Step.UPLOAD
    return Step.COPY


def _same_content(live: Inode, row: ObjectRow) -> bool:
    if not live.is_file and not live.is_link:
        return True
    if live.file_id == row.file_id and not live.staged and live.is_file:
        return True
    return live.size == row.size and live.sha1 != "" and live.sha1 == row.sha1


def covers(dirty: Container[str], key: str) -> bool:
    """Whether a key, or a subtree that it is in, is among the dirty ones."""
    if key in dirty:
        return True
    end = key.find("/")
    while end >= 0:
        if key[: end + 1] in dirty:
            return True
        end = key.find("/", end + 1)
    return False


class Entry:
    """A dirty key in the schedule."""

    __slots__ = (
        "attempts",
        "born",
        "doubtful",
        "due_s",
        "error",
        "generation",
        "key",
        "lasting",
        "reached",
        "running",
        "since_ns",
        "since_s",
        "tried",
        "waits_for",
    )

    def __init__(self, key: str, generation: int, since_ns: int, now_s: float) -> None:
        self.key = key
        self.generation = generation
        self.born = generation
        """The generation with which the key became dirty, or the moved directory that it comes from."""
        self.since_ns = since_ns
        self.since_s = now_s
        self.due_s = now_s
        self.attempts = 0
        """Failures in a row."""
        self.error = ""
        """Why the last attempt failed, '' after a success."""
        self.running = False
        self.doubtful = False
        """An attempt may have been committed without our knowing, or left parts in the bucket: look before
        repeating it, and go on with them.
        """
        self.tried = 0
        """The generation of the newest attempt, 0: there was none."""
        self.lasting = False
        """The error will not go by itself: a person must do something."""
        self.reached = 0
        """The number at which the last attempt began that succeeded: what was written before it is in B2."""
        self.waits_for = 0
        """Its turn came, and this inode must get to B2 under its new name first; 0: it waits for nobody."""


class Schedule:
    """The dirty keys by due time. Memory of the journal's intents; loses nothing when it is rebuilt from them.

    `quiet_s`: how long a key must have been left alone; `max_age_s`: after that long it is due anyway.

    INVARIANT: every entry that is not running has at least one heap item with its current due time.
    """

    def __init__(self, quiet_s: float, max_age_s: float) -> None:
        self.quiet_s = quiet_s
        self.max_age_s = max_age_s
        self.entries: dict[str, Entry] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._in_doubt: dict[str, set[int]] = {}
        """Generations with an attempt that was given up and may still reach B2; the newest `_MAX_DOUBTS` keys."""

    def __len__(self) -> int:
        return len(self.entries)

    def idle(self, key: str) -> bool:
        """Whether the key is dirty already, and no attempt was made that may have been committed with its
        generation: then its intent need not be written again.
        """
        entry = self.entries.get(key)
        return entry is not None and not entry.running and not (entry.doubtful and entry.tried == entry.generation)

    def covers(self, key: str) -> bool:
        """Whether the key, or a subtree that it is in, is dirty."""
        return bool(self.entries) and covers(self.entries, key)

    def add(self, intent: Intent, now_s: float, *, quiet: bool = True) -> None:
        """A key became dirty (again)."""
        entry = self.entries.get(intent.key)
        if entry is None:
            entry = self.entries[intent.key] = Entry(intent.key, intent.generation, intent.since_ns, now_s)
        elif entry.tried == entry.generation:
            self._doubt(entry.key, entry.generation)
        if entry.running:  # what runs now is about the older generation: the new one waits its own time
            entry.since_ns, entry.since_s = intent.since_ns, now_s
        entry.generation = intent.generation
        self._put(entry, min(now_s + self.quiet_s, entry.since_s + self.max_age_s) if quiet else now_s)

    def touch(self, key: str, now_s: float) -> None:
        """A dirty key was changed once more: the quiet period begins again."""
        entry = self.entries.get(key)
        if entry is not None:
            self._put(entry, max(entry.due_s, min(now_s + self.quiet_s, entry.since_s + self.max_age_s)))

    def delay(self, key: str, due_s: float) -> None:
        """A dirty key need not be looked at before `due_s` (but not later than its greatest age)."""
        entry = self.entries[key]
        self._put(entry, min(due_s, entry.since_s + self.max_age_s))

    def hurry(self, entry: Entry, now_s: float) -> None:
        """Make an entry due now."""
        if entry.due_s > now_s:
            self._put(entry, now_s)

    def pop_due(self, now_s: float) -> Entry | None:
        """The longest due key, marked as running; the caller ends with `done` or `again`."""
        while self._heap and self._heap[0][0] <= now_s:
            due_s, _, key = heapq.heappop(self._heap)
            entry = self.entries.get(key)
            if entry is not None and not entry.running and entry.due_s == due_s:
                entry.running, entry.tried = True, entry.generation
                return entry
        return None

    def next_due_s(self) -> float | None:
        """When the next key is due, None if there is none."""
        while self._heap:
            due_s, _, key = self._heap[0]
            entry = self.entries.get(key)
            if entry is not None and not entry.running and entry.due_s == due_s:
                return due_s
            heapq.heappop(self._heap)
        return None

    def done(self, entry: Entry, generation: int, began: int = 0) -> None:
        """The key is in line as of `generation`; a newer one stays dirty. `began`: a number drawn before the attempt."""
        entry.running, entry.reached = False, began
        if entry.doubtful:
            self._doubt(entry.key, generation)
        else:
            self._in_doubt.get(entry.key, set()).discard(generation)
        entry.attempts, entry.error, entry.doubtful, entry.lasting = 0, "", False, False
        if self.entries.get(entry.key) is not entry:
            return  # it was forgotten meanwhile
        if entry.generation == generation:
            del self.entries[entry.key]
        else:
            self._put(entry, entry.due_s)

    def forget(self, key: str) -> None:
        """Nothing here has to go to that key any more, whatever an attempt that is under way says in the end."""
        self.entries.pop(key, None)

    def again(self, entry: Entry, due_s: float, error: str = "") -> None:
        """Not now: try again at `due_s`. With `error` it counts as a failure."""
        entry.running = False
        entry.error = error
        if error:
            entry.attempts += 1
        self._put(entry, due_s)

    def may_come_late(self, key: str, generation: str) -> bool:
        """Whether an attempt of this generation (hexadecimal) may reach B2 after what was stored since."""
        return any(f"{each:x}" == generation for each in self._in_doubt.get(key, ()))

    def _doubt(self, key: str, generation: int) -> None:
        self._in_doubt[key] = self._in_doubt.pop(key, set()) | {generation}
        if len(self._in_doubt) > _MAX_DOUBTS:
            del self._in_doubt[next(iter(self._in_doubt))]

    def _put(self, entry: Entry, due_s: float) -> None:
        entry.due_s = due_s
        if not entry.running:
            heapq.heappush(self._heap, (due_s, entry.generation, entry.key))
