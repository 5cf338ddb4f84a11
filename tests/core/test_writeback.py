"""What is to be done about a key, and when."""

from __future__ import annotations

import stat

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from b2fs.core.change import Intent, ObjectRow
from b2fs.core.inode import Inode, attributes
from b2fs.core.writeback import REUPLOAD_LIMIT, Schedule, Step, plan

BIG = REUPLOAD_LIMIT + 1


def _file(size: int = 5, sha1: str = "s", file_id: str = "id", staged: int = 0, mode: int = 0o644) -> Inode:
    return Inode(7, stat.S_IFREG | mode, 0, 0, 1, size, 1, 1, 1, file_id=file_id, sha1=sha1, staged=staged)


def _row(live: Inode, **changes: object) -> ObjectRow:
    fields = {
        "key": "k", "file_id": "id", "size": live.size, "sha1": live.sha1, "uploaded_ms": 1,
        "attributes": attributes(live), "generation": 1,
    }  # fmt: skip
    return ObjectRow(**{**fields, **changes})  # type: ignore[arg-type]


GONE = ObjectRow("k", "", 0, "", 1, "", 1)
CLEAN, STAGED, BASED = _file(), _file(staged=3, file_id=""), _file(staged=3, sha1="new")
LARGE, EMPTY = _file(BIG), _file(0, file_id="", staged=3)
LINK = Inode(7, stat.S_IFLNK | 0o777, 0, 0, 1, 1, 1, 1, 1, target="t", file_id="id", sha1="s")
DIRECTORY = Inode(7, stat.S_IFDIR | 0o755, 0, 0, 2, 0, 1, 1, 1)

# what the case is: the live inode, the row, cached, needed -> the step
TABLE = {
    "nothing here, never there": (None, None, False, False, Step.NOTHING),
    "nothing here, hidden there": (None, GONE, False, False, Step.NOTHING),
    "nothing here, hidden there, whatever is needed": (None, GONE, False, True, Step.NOTHING),
    "deleted here": (None, _row(CLEAN), False, False, Step.HIDE),
    "moved away, the new name not confirmed": (None, _row(CLEAN), False, True, Step.WAIT),
    "moved away, cached": (None, _row(CLEAN), True, True, Step.WAIT),
    "new": (STAGED, None, False, False, Step.UPLOAD),
    "new under a hidden name": (STAGED, GONE, False, False, Step.UPLOAD),
    "new, empty": (EMPTY, None, False, False, Step.UPLOAD),
    "rewritten": (BASED, _row(CLEAN), False, False, Step.UPLOAD),
    "rewritten while another lives in the old version": (BASED, _row(CLEAN), False, True, Step.UPLOAD),
    "rewritten with the same bytes": (STAGED, _row(STAGED, file_id="other"), False, False, Step.NOTHING),
    "same bytes, another mode": (_file(staged=3, mode=0o600), _row(STAGED), False, False, Step.UPLOAD),
    "unknown SHA-1 is never the same": (_file(sha1="", staged=3), _row(_file(sha1="")), False, False, Step.UPLOAD),
    "same SHA-1, another size": (_file(6, staged=3), _row(_file(5)), False, False, Step.UPLOAD),
    "clean and in line": (CLEAN, _row(CLEAN), False, False, Step.NOTHING),
    "clean, its SHA-1 unknown": (_file(sha1=""), _row(_file(sha1="")), False, False, Step.NOTHING),
    "large and in line": (LARGE, _row(LARGE), False, False, Step.NOTHING),
    "chmod, cached": (CLEAN, _row(CLEAN, attributes="old"), True, False, Step.UPLOAD),
    "chmod, not cached": (CLEAN, _row(CLEAN, attributes="old"), False, False, Step.COPY),
    "chmod, large and cached": (LARGE, _row(LARGE, attributes="old"), True, False, Step.COPY),
    "moved here, cached": (CLEAN, None, True, False, Step.UPLOAD),
    "moved here, not cached": (CLEAN, None, False, False, Step.COPY),
    "moved here, large and cached": (LARGE, None, True, False, Step.COPY),
    "moved here, just at the limit": (_file(REUPLOAD_LIMIT), None, True, False, Step.UPLOAD),
    "moved here, over another file": (CLEAN, _row(CLEAN, file_id="o", sha1="o"), True, False, Step.UPLOAD),
    "moved here, over equal bytes": (CLEAN, _row(CLEAN, file_id="o"), False, False, Step.NOTHING),
    "moved here, empty": (_file(0), None, False, False, Step.UPLOAD),
    "new link": (LINK, None, False, False, Step.UPLOAD),
    "link moved here": (LINK, GONE, False, False, Step.UPLOAD),
    "link in line": (LINK, _row(LINK), False, False, Step.NOTHING),
    "link with another target": (LINK, _row(LINK, sha1="o"), False, False, Step.UPLOAD),
    "new directory": (DIRECTORY, None, False, False, Step.UPLOAD),
    "directory in line": (DIRECTORY, _row(DIRECTORY), False, False, Step.NOTHING),
    "directory with other attributes": (DIRECTORY, _row(DIRECTORY, attributes="old"), False, False, Step.UPLOAD),
}


@pytest.mark.parametrize("case", TABLE)
def test_plan(case: str) -> None:
    """Each cell of the table: what the namespace says, what the bucket has, what has to be done."""
    live, row, cached, needed, step = TABLE[case]
    assert plan(live, row, cached=cached, needed=needed) is step


def test_every_step_is_in_the_table() -> None:
    """The table above shows each step at least once."""
    assert {case[-1] for case in TABLE.values()} == set(Step)


# ---------------------------------------------------------------- Schedule


def _schedule(*keys: str, now_s: float = 100.0) -> Schedule:
    schedule = Schedule(quiet_s=2.0, max_age_s=10.0)
    for number, key in enumerate(keys):
        schedule.add(Intent(key, number + 1, 0), now_s)
    return schedule


def test_key_is_due_after_its_quiet_period() -> None:
    """Not before, and once only."""
    schedule = _schedule("a")
    assert schedule.next_due_s() == 102.0
    assert schedule.pop_due(101.9) is None
    entry = schedule.pop_due(102.0)
    assert entry is not None
    assert entry.key == "a"
    assert schedule.pop_due(999.0) is None
    assert schedule.next_due_s() is None


def test_touch_begins_the_quiet_period_again_up_to_the_greatest_age() -> None:
    """A key that is touched all the time is due when it is old."""
    schedule = _schedule("a")
    for second in range(1, 60):
        schedule.touch("a", 100.0 + second)
    assert schedule.next_due_s() == 110.0
    schedule.touch("unknown", 100.0)
    assert len(schedule) == 1


def test_the_longest_due_key_comes_first() -> None:
    """Order of due times, whatever the order of adding."""
    schedule = Schedule(2.0, 10.0)
    for number, key in enumerate("cab"):
        schedule.add(Intent(key, number + 1, 0), 100.0 - number)
    assert [entry.key for _ in range(3) if (entry := schedule.pop_due(200.0))] == ["b", "a", "c"]


def test_newer_generation_stays_dirty() -> None:
    """done() ends what ran; a change that came meanwhile has its own quiet period and age."""
    schedule = _schedule("a")
    entry = schedule.pop_due(105.0)
    assert entry is not None
    schedule.add(Intent("a", 9, 0), 106.0)
    assert schedule.pop_due(999.0) is None, "one worker a key"
    schedule.done(entry, 1)
    assert schedule.next_due_s() == 108.0
    again = schedule.pop_due(108.0)
    assert again is entry
    assert again.since_s == 106.0
    schedule.done(again, 9)
    assert len(schedule) == 0


def test_failure_counts_and_success_forgets() -> None:
    """again() with an error counts; without one it does not; done() begins anew for a newer generation."""
    schedule = _schedule("a")
    for attempt in (1, 2):
        entry = schedule.pop_due(1000.0 * attempt)
        assert entry is not None
        schedule.again(entry, 1000.0 * (attempt + 1), "down")
        assert (entry.attempts, entry.error, entry.running) == (attempt, "down", False)
    entry = schedule.pop_due(5000.0)
    assert entry is not None
    schedule.again(entry, 6000.0)
    assert (entry.attempts, entry.error) == (2, "")
    assert schedule.next_due_s() == 6000.0
    entry = schedule.pop_due(6000.0)
    assert entry is not None
    entry.doubtful = entry.lasting = True
    schedule.add(Intent("a", 5, 0), 6000.0)
    schedule.done(entry, 1)
    assert (entry.attempts, entry.error, entry.doubtful, entry.lasting) == (0, "", False, False)


def test_touch_does_not_shorten_a_pause() -> None:
    """A change during the pause after a failure waits for its end."""
    schedule = _schedule("a")
    entry = schedule.pop_due(102.0)
    assert entry is not None
    schedule.again(entry, 500.0, "down")
    schedule.touch("a", 103.0)
    assert schedule.next_due_s() == 500.0


def test_hurry_and_delay() -> None:
    """hurry makes a key due now, never later; delay puts it off, but not beyond its greatest age."""
    schedule = _schedule("a", "b")
    schedule.hurry(schedule.entries["a"], 100.5)
    assert schedule.next_due_s() == 100.5
    schedule.hurry(schedule.entries["a"], 101.0)
    assert schedule.next_due_s() == 100.5
    schedule.delay("a", 105.0)
    assert schedule.next_due_s() == 102.0
    schedule.delay("b", 999.0)
    assert [schedule.entries[key].due_s for key in "ab"] == [105.0, 110.0]


def test_idle() -> None:
    """Only a key that nobody works on, and that no lost upload may have reached, needs no new generation."""
    schedule = _schedule("a")
    assert not schedule.idle("b")
    assert schedule.idle("a")
    entry = schedule.pop_due(105.0)
    assert entry is not None
    assert not schedule.idle("a")
    schedule.again(entry, 106.0, "down")
    assert schedule.idle("a")
    entry.doubtful = True
    assert not schedule.idle("a")


def test_covers() -> None:
    """A key is covered by itself and by moved directories above it, not by their neighbours."""
    schedule = _schedule("d/", "x", "e/f/")
    covered = ["d/a", "d/e/.bzEmpty", "x", "e/f/g", "d/"]
    assert all(map(schedule.covers, covered))
    assert not any(map(schedule.covers, ["d", "da", "dd/x", "x/y", "e/g", "e/ff/x"]))


def test_what_may_come_late() -> None:
    """Of a key that went on, the attempts that were given up are remembered; one that was confirmed at once is not."""
    schedule = Schedule(1.0, 60.0)
    schedule.add(Intent("k", 0x1A, 0), 0.0)
    entry = schedule.pop_due(1.0)
    assert entry is not None
    schedule.add(Intent("k", 0x1B, 0), 1.5)  # written again while its upload runs
    assert schedule.may_come_late("k", "1a") and not schedule.may_come_late("k", "1b")
    schedule.done(entry, 0x1A)  # it was confirmed after all
    assert not schedule.may_come_late("k", "1a")

    assert schedule.pop_due(9.0) is entry
    entry.doubtful = True  # no answer came
    schedule.again(entry, 9.0, "no answer")
    assert schedule.pop_due(9.0) is entry
    schedule.done(entry, 0x1B)  # by another attempt: the first one may still be on its way
    assert schedule.may_come_late("k", "1b") and not schedule.may_come_late("other", "1b")


def test_doubts_are_about_attempts() -> None:
    """What changes again and again while B2 is silent is one more doubt, and one more generation, for each attempt."""
    schedule = Schedule(1.0, 60.0)
    schedule.add(Intent("k", 1, 0), 0.0)
    added = 0
    for attempt in range(3):
        entry = schedule.pop_due(1.0)
        assert entry is not None
        entry.doubtful = True
        schedule.again(entry, 1.0, "no answer")
        for _ in range(100):
            if not schedule.idle("k"):
                added += 1
                schedule.add(Intent("k", 10 * attempt + 2, 0), 0.0)
    assert added == 3
    assert [each for each in range(100) if schedule.may_come_late("k", f"{each:x}")] == [1, 2, 12]


class ScheduleMachine(RuleBasedStateMachine):
    """The schedule against a dictionary that is searched from end to end."""

    QUIET, AGE = 2.0, 10.0

    def __init__(self) -> None:
        super().__init__()
        self.schedule = Schedule(self.QUIET, self.AGE)
        self.now = 100.0
        self.generation = 0
        self.model: dict[str, dict[str, float | bool]] = {}
        self.running: list[tuple[object, int]] = []

    keys = st.sampled_from(["a", "b", "c"])

    @rule(key=keys)
    def dirty(self, key: str) -> None:
        self.generation += 1
        if key in self.model and not self.model[key]["running"]:
            self.schedule.touch(key, self.now)
            quiet = min(self.now + self.QUIET, self.model[key]["since"] + self.AGE)
            self.model[key]["due"] = max(self.model[key]["due"], quiet)
            return
        self.schedule.add(Intent(key, self.generation, 0), self.now)
        running = key in self.model
        self.model[key] = {
            "since": self.now, "due": self.now + self.QUIET, "generation": self.generation, "running": running,
        }  # fmt: skip

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def pop(self) -> None:
        entry = self.schedule.pop_due(self.now)
        due = {key: e["due"] for key, e in self.model.items() if not e["running"] and e["due"] <= self.now}
        if entry is None:
            assert not due
            return
        assert due[entry.key] == min(due.values())
        assert entry.generation == self.model[entry.key]["generation"]
        self.model[entry.key]["running"] = True
        self.running.append((entry, entry.generation))

    @precondition(lambda self: self.running)
    @rule(index=st.integers(0, 2), how=st.sampled_from(["done", "again", "fail"]), pause=st.sampled_from([0.0, 3.0]))
    def finish(self, index: int, how: str, pause: float) -> None:
        entry, generation = self.running.pop(index % len(self.running))
        state = self.model[entry.key]  # type: ignore[attr-defined]
        state["running"] = False
        if how == "done":
            self.schedule.done(entry, generation)  # type: ignore[arg-type]
            if state["generation"] == generation:
                del self.model[entry.key]  # type: ignore[attr-defined]
        else:
            self.schedule.again(entry, self.now + pause, "down" if how == "fail" else "")  # type: ignore[arg-type]
            state["due"] = self.now + pause

    @precondition(lambda self: self.model)
    @rule(index=st.integers(0, 2))
    def hurry(self, index: int) -> None:
        key = sorted(self.model)[index % len(self.model)]
        self.schedule.hurry(self.schedule.entries[key], self.now)
        self.model[key]["due"] = min(self.model[key]["due"], self.now)

    @invariant()
    def same(self) -> None:
        assert set(self.schedule.entries) == set(self.model)
        waiting = [e["due"] for e in self.model.values() if not e["running"]]
        assert self.schedule.next_due_s() == (min(waiting) if waiting else None)


TestScheduleMachine = pytest.mark.slow(ScheduleMachine.TestCase)
TestScheduleMachine.settings = settings(max_examples=100, stateful_step_count=30)
