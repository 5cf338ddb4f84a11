"""The journal: what was committed is there, all of it or nothing, after whatever happens."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from b2fs.adapters.journal import Journal
from b2fs.core.change import KEPT_S, Blob, Change, Damage, Intent, ObjectRow
from b2fs.core.inode import Inode
from b2fs.errors import NoSpace, ReadOnly, StateError

FILE, DIR = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755


def _inode(ino: int, mode: int = FILE, **more: object) -> Inode:
    return replace(Inode(ino, mode, 1, 2, 1, 3, -4, 5, 6), **more)


def _row(key: str, file_id: str = "id") -> ObjectRow:
    return ObjectRow(key, file_id, 3, "sha", 17, "m=1", 5)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "journal.db")


@pytest.fixture
def journal(path: str) -> Iterator[Journal]:
    journal = Journal(path)
    yield journal
    journal.close()


def _everything(path: str) -> dict[str, list[tuple[object, ...]]]:
    db = sqlite3.connect(path)
    tables = ("inode", "dentry", "object", "intent", "blob")
    found = {table: sorted(db.execute(f"SELECT * FROM {table}")) for table in tables}
    db.close()
    return found


def _parts(journal: Journal) -> set[tuple[str, str]]:
    return set(journal._db.execute("SELECT type, name FROM sqlite_schema"))


GROWN = [("INDEX", "inode_incomplete"), ("INDEX", "object_hidden"), ("TRIGGER", "blob_came"), ("TRIGGER", "blob_grew")]
GROWN += [("TRIGGER", "blob_went"), ("TABLE", "cached")]
"""What came with schema 5."""

WHOLE = Change(
    inodes=[
        _inode(
            5,
            rdev=7,
            target="ж",
            file_id="f",
            sha1="s",
            staged=9,
            scratch=11,
            synced=9,
            xattrs="x~_1",
            link="0badcafe1f",
        ),
        _inode(6, DIR, complete=True),
    ],
    links=[(1, b"x", 5), (1, "🦊".encode(), 6)],
    intents=[Intent("x", 3, 30)],
    objects=[_row("x")],
    blobs=[Blob("b", 10, 100)],
)


def test_committed_is_there_after_reopening(path: str) -> None:
    """Every field of every kind of row reads back as it was written, types too."""
    journal = Journal(path)
    journal.commit(WHOLE)
    journal.close()
    journal = Journal(path)
    assert [journal.inode(5), journal.inode(6)] == WHOLE.inodes
    assert (journal.inode(5).scratch, journal.inode(5).synced) == (11, 9)  # type: ignore[union-attr]
    assert journal.entry(1, "🦊".encode()) == WHOLE.inodes[1]
    assert journal.object("x") == _row("x")
    assert journal.intents() == [Intent("x", 3, 30)]
    assert journal.blob("b") == Blob("b", 10, 100)
    assert journal.blob_totals() == (10, 1)
    journal.close()


def test_failing_commit_writes_nothing(journal: Journal, path: str) -> None:
    """An error in the last of its rows takes the whole change back, and the next commit works."""
    journal.commit(Change(inodes=[_inode(4)]))
    before = _everything(path)
    broken = Change(inodes=[_inode(7)], links=[(1, b"y", 7)], blobs=[Blob(None, 1, 1)])  # type: ignore[arg-type]
    with pytest.raises((sqlite3.Error, ReadOnly), match="NOT NULL"):
        journal.commit(broken)
    assert _everything(path) == before
    journal.commit(WHOLE)
    assert journal.inode(5) is not None


def test_deletions_of_a_change(journal: Journal, path: str) -> None:
    """What a change takes away is gone, what it gives under the same name is there."""
    journal.commit(WHOLE)
    journal.commit(
        Change(
            inodes=[_inode(8)], gone=[5], unlinks=[(1, b"x"), (1, "🦊".encode())], links=[(1, b"x", 8)],
            lost_objects=["x"], lost_blobs=["b"],
        )
    )  # fmt: skip
    assert (journal.inode(5), journal.object("x"), journal.blob("b")) == (None, None, None)
    assert journal.entry(1, b"x") == _inode(8)
    assert journal.entry(1, "🦊".encode()) is None


def test_intent_ends_by_its_generation(journal: Journal) -> None:
    """An older generation ends nothing; a newer one keeps the time since when the key is dirty."""
    journal.commit(Change(intents=[Intent("x", 3, 30)]))
    journal.commit(Change(intents=[Intent("x", 4, 40)]))
    journal.commit(Change(settled=[("x", 3)]))
    assert journal.intents() == [Intent("x", 4, 30)]
    journal.commit(Change(settled=[("x", 4)]))
    assert journal.intents() == []


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", [False, True])
def test_commit_survives_sigkill(path: str, checkpoint: bool) -> None:
    """A process that commits and kills itself at once loses nothing of it."""
    child = f"""
import os, signal
from b2fs.adapters.journal import Journal
from tests.adapters.test_journal import WHOLE
journal = Journal({path!r})
number = journal.next_number()
journal.commit(WHOLE)
if {checkpoint}: journal.checkpoint()
print(number, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    run = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr
    journal = Journal(path)
    assert [journal.inode(5), journal.inode(6)] == WHOLE.inodes
    assert journal.intents() == WHOLE.intents
    assert journal.next_number() > int(run.stdout)
    journal.close()


def test_a_create_is_small_in_the_log(journal: Journal) -> None:
    """Among a thousand others a new file writes a few kilobytes, not pages of 4 KiB for each row and index."""
    for number in range(1000):
        if number == 500:
            before = journal.log_size()
        name = b"name%d" % number
        links = [(1, name, 10 + number)]
        intents = [Intent(f"dir/{name.decode()}", number, 5)]
        made = [_inode(10 + number, scratch=10 + number), _inode(1, DIR)]
        journal.commit(Change(inodes=made, links=links, intents=intents))
    assert (journal.log_size() - before) / 500 < 16_000


def test_an_object_is_small_on_disk(journal: Journal) -> None:
    """A name of the bucket takes half a kilobyte in all tables and indices: no row of usual length needs a page of its own."""
    for start in range(0, 2000, 50):
        change = Change()
        for ino in range(10 + start, 60 + start):
            key, file_id = f"dictations/dict_1712011134143/fr/{ino:04}_fr_avto.mp3", f"4_z{ino:094}"
            change.inodes.append(_inode(ino, file_id=file_id, sha1="a" * 40))
            change.links.append((1, key.encode()[-20:], ino))
            change.objects.append(ObjectRow(key, file_id, 4096, "a" * 40, 10**12, f"m=100644;u=0;g=0;t={10**18}", ino))
        journal.commit(change)
    journal.checkpoint()
    assert os.path.getsize(journal.path) / 2000 < 700


def test_checkpoint_empties_the_log(journal: Journal) -> None:
    """The log takes no room afterwards; while somebody reads, it stays."""
    journal.commit(WHOLE)
    for key in "xyz":
        journal.set_ignored(key, "why")
    reading = journal.ignored()
    next(reading)
    journal.checkpoint()
    journal.empty_log()
    assert journal.log_size() > 0
    journal.commit(Change(gone=[6]))
    assert len(list(reading)) == 2
    journal.checkpoint()
    assert journal.log_size() > 0, "it is used again from its beginning"
    journal.empty_log()
    assert journal.log_size() == 0
    journal.commit(Change(blobs=[Blob("c", 1, 1)]))
    assert (journal.inode(5), journal.inode(6), journal.blob("c")) == (WHOLE.inodes[0], None, Blob("c", 1, 1))


def test_checkpoint_is_for_what_is_new(journal: Journal) -> None:
    """A second one in a row does nothing (SQLite's WAL-reset bug); after another commit there is one again."""
    asked: list[str] = []
    journal._reader.set_trace_callback(asked.append)
    journal.commit(WHOLE)
    journal.checkpoint()
    journal.checkpoint()
    assert len(asked) == 1
    journal.commit(Change(gone=[6]))
    journal.checkpoint()
    assert len(asked) == 2
    journal._reader.set_trace_callback(None)


def test_numbers_never_repeat(path: str) -> None:
    """They only grow, across blocks and restarts, also when the last run never said goodbye."""
    seen = 1
    for _ in range(3):
        journal = Journal(path)
        for _ in range(5000):
            number = journal.next_number()
            assert number > seen
            seen = number
        journal.close()


def test_numbers_do_not_repeat_after_a_full_disk(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the counter cannot be written, no number is given out that a restart would give out again."""
    journal = Journal(path)
    given = [journal.next_number()]
    while given[-1] % 4096 != 1:  # up to the end of a block
        given.append(journal.next_number())

    def full(name: str, value: str) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(journal, "set_meta", full)
        for _ in range(5):
            try:
                given.append(journal.next_number())
            except (sqlite3.OperationalError, NoSpace, ReadOnly):
                continue
    given += [journal.next_number() for _ in range(5)]
    journal.close()
    journal = Journal(path)
    assert journal.next_number() > max(given)
    journal.close()


def test_another_schema_is_refused(path: str) -> None:
    """A journal of another version is not guessed at."""
    journal = Journal(path)
    journal.set_meta("schema", "99")
    journal.close()
    with pytest.raises(StateError, match="schema 99"):
        Journal(path)


def test_a_first_start_that_ends_after_any_transaction(path: str) -> None:
    """Tables and the version that they are of come together: a journal that was just made is opened again, however it ended."""
    written: list[str] = []

    class Watched(Journal):
        def _connect(self) -> sqlite3.Connection:
            db = super()._connect()
            db.set_trace_callback(written.append)
            return db

    Watched(path).close()
    commits = [number for number, statement in enumerate(written) if statement.strip() == "COMMIT;"]
    versions = [number for number, statement in enumerate(written) if "INSERT INTO meta VALUES ('schema'" in statement]
    assert len(versions) == 1 and versions[0] < commits[0]


def test_journal_of_an_earlier_schema_goes_on(path: str) -> None:
    """One that was written before there were hard links, extended attributes, or fsync marks is brought up to date, its
    rows kept; it has all that a new one has, and nothing else.
    """
    added = ("synced", "xattrs", "link")
    for schema, columns in ((1, added), (2, added[1:]), (3, added[2:]), (4, ()), (5, ())):
        journal = Journal(path)
        journal.commit(WHOLE)
        parts = _parts(journal)
        journal.close()
        db = sqlite3.connect(path)
        if schema < 4:
            db.execute("DROP INDEX inode_link")
        if schema < 5:
            for kind, name in GROWN:
                db.execute(f"DROP {kind} {name}")
        db.execute("DROP INDEX inode_version")
        db.execute("CREATE INDEX inode_file ON inode (file_id) WHERE file_id <> ''")
        for column in columns:
            db.execute(f"ALTER TABLE inode DROP COLUMN {column}")
        if schema == 1:
            db.execute("DROP TABLE damaged")
        db.execute(f"UPDATE meta SET value = '{schema}' WHERE name = 'schema'")
        db.commit()
        db.close()
        journal = Journal(path)
        assert _parts(journal) == parts
        file = WHOLE.inodes[0]
        scratch, synced = (file.ino, 0) if schema == 1 else (file.scratch, file.synced)
        assert journal.inode(5) == replace(
            file,
            link="" if schema < 4 else file.link,
            xattrs="" if schema < 3 else file.xattrs,
            synced=synced,
            scratch=scratch,
        )
        assert journal.inode(6) == WHOLE.inodes[1]
        assert journal.blob_totals() == (10, 1)
        journal.commit(WHOLE)
        assert journal.inode(5) == file
        journal.close()


@pytest.mark.parametrize("content", [b"hello, this is a text file, not a database\n" * 50, os.urandom(8192)])
def test_not_a_database(path: str, content: bytes) -> None:
    """Any other file is refused and left as it is."""
    Path(path).write_bytes(content)
    with pytest.raises(StateError, match="not a b2fs journal"):
        Journal(path)
    assert Path(path).read_bytes() == content


def test_only_the_owner_may_read_it(journal: Journal, path: str) -> None:
    """The database and its log are 0600."""
    journal.commit(WHOLE)
    for suffix in ("", "-wal", "-shm"):
        assert stat.S_IMODE(os.stat(path + suffix).st_mode) == 0o600, suffix


def test_full_disk_is_no_space_and_the_journal_goes_on(journal: Journal) -> None:
    """A commit that does not fit raises NoSpace, leaves nothing, and the next small one works."""
    journal.commit(WHOLE)
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(NoSpace):
        journal.commit(Change(inodes=[_inode(number, target="t" * 500) for number in range(100, 300)]))
    journal._db.execute("PRAGMA max_page_count = 1000000")
    assert journal.inode(100) is None
    journal.commit(Change(inodes=[_inode(100)]))
    assert journal.inode(100) == _inode(100)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_full_tmpfs(tmp_path: Path) -> None:
    """The same on a disk that is really full; once there is room again the journal goes on."""
    disk = tmp_path / "small"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        journal = Journal(str(disk / "journal.db"))
        with open(disk / "filler", "wb", buffering=0) as filler:
            while True:
                try:
                    filler.write(bytes(4096))
                except OSError:
                    break
        with pytest.raises(NoSpace):
            for start in range(1000, 9000, 100):
                journal.commit(
                    Change(inodes=[_inode(number, target="t" * 200) for number in range(start, start + 100)])
                )
        committed = len(_everything(str(disk / "journal.db"))["inode"])
        assert committed % 100 == 0
        os.unlink(disk / "filler")
        journal.commit(Change(inodes=[_inode(7)]))
        journal.close()
        journal = Journal(str(disk / "journal.db"))
        assert journal.inode(7) == _inode(7)
        journal.close()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


# ---------------------------------------------------------------- reading


@pytest.fixture
def filled(journal: Journal) -> Journal:
    journal.commit(
        Change(
            inodes=[
                _inode(1, DIR), _inode(2, DIR), _inode(3, DIR), _inode(4), _inode(5, file_id="v", scratch=6),
                _inode(6, staged=8), _inode(7, file_id="w"),
            ],
            links=[
                (1, "диктант".encode(), 2), (2, "🦊".encode(), 3), (3, b"a b.txt", 4), (2, b"x", 5), (1, b"y", 6),
                (1, b"z", 7),
            ],
        )
    )  # fmt: skip
    return journal


def test_load_directory(filled: Journal) -> None:
    """Its own entries with their inodes, of no other directory."""
    assert dict(filled.load_directory(2)) == {"🦊".encode(): _inode(3, DIR), b"x": filled.inode(5)}
    assert filled.load_directory(4) == []


def test_load_small_directory(filled: Journal) -> None:
    """The same, unless there are more entries than that."""
    assert filled.load_small_directory(2, 2) == filled.load_directory(2)
    assert filled.load_small_directory(2, 1) is None
    assert filled.load_small_directory(4, 1) == []


def test_equal_numbers_are_shared(journal: Journal) -> None:
    """Owners and modes by all rows, times by each row that has one for all three; what differs stays as it is."""
    owned = [
        _inode(ino, uid=1000, gid=2000, mtime_ns=at, ctime_ns=at, atime_ns=at) for ino, at in ((5, 10**18), (6, 10**17))
    ]
    apart = _inode(7, mtime_ns=10**18, ctime_ns=10**18 + 1, atime_ns=10**18 + 2)
    journal.commit(Change(inodes=[*owned, apart]))
    first, second = journal.inode(5), journal.inode(6)
    assert first is not None and second is not None
    assert first.mode is second.mode and first.uid is second.uid and first.gid is second.gid
    assert first.mtime_ns is first.ctime_ns is first.atime_ns
    assert [first, second, journal.inode(7)] == [*owned, apart]


def test_names_that_follow(journal: Journal) -> None:
    """In the order of bytes, of this directory only; the name itself need not be there."""
    names = [b"B", b"a", b"b", "ж".encode(), b"\xf0\x9f\xa6\x8a"]
    links = [(1, name, number) for number, name in enumerate(names, 2)] + [(2, b"c", 9)]
    journal.commit(Change(inodes=[_inode(number) for number in range(2, 10)], links=links))
    assert journal.following(1, b"", 9) == names
    assert journal.following(1, b"aa", 2) == names[2:4]
    assert journal.following(1, b"b", 9, True) == [b"a", b"B"]
    assert journal.following(1, b"b", 1, True) == [b"a"]
    assert journal.following(3, b"", 9) == []


def test_objects_by_ranges_of_keys(journal: Journal) -> None:
    """Both ends count for `keys_between`, not the beginning for `objects_after`; tombstones are rows too."""
    rows = [ObjectRow(key, "id" * (key != "b"), 1, "", 1, "", 1) for key in ("a", "b", "b/x", "ж")]
    journal.commit(Change(objects=rows))
    assert journal.keys_between("b", "b/x") == {"b", "b/x"}
    assert journal.keys_between("c", "d") == set()
    assert journal.objects_after("", 2) == rows[:2]
    assert journal.objects_after("b", 9) == rows[2:]


def test_subtree(filled: Journal) -> None:
    """All paths below a directory, of any script, and which are directories."""
    below = {("🦊", True), ("🦊/a b.txt", False), ("x", False)}
    assert set(filled.subtree(2)) == below
    assert set(filled.subtree(1)) == {("y", False), ("z", False), ("диктант", True)} | {
        (f"диктант/{path}", is_dir) for path, is_dir in below
    }


def test_path_inode(filled: Journal) -> None:
    """A path of any script leads to its inode, one that is not there to nothing."""
    assert filled.path_inode("диктант/🦊/a b.txt") == _inode(4)
    assert filled.path_inode("диктант/none/x") is None


def test_what_is_not_in_b2(filled: Journal) -> None:
    """Files with scratch or staged content, and who lives in a version."""
    assert {inode.ino for inode in filled.dirty_inodes()} == {5, 6}
    assert [filled.unsealed_in(ino) for ino in (1, 2, 3)] == [[6], [5], []]
    assert filled.lives_in("w") == filled.inode(7)
    assert filled.lives_in("none") is None
    alike = [f"4_z1_f{number}_d2_u01700000000001" for number in (1, 2)]
    filled.commit(
        Change(inodes=[_inode(20 + number, file_id=file_id) for number, file_id in enumerate(reversed(alike))])
    )
    assert [filled.lives_in(file_id) for file_id in alike] == [filled.inode(21), filled.inode(20)], "ids may end alike"
    assert filled.lives_in("u01700000000001") is None
    assert filled.lives_in("") is None, "no version is nobody's home"


def test_objects_of_a_range(journal: Journal) -> None:
    """Half-open, below the prefix, in the byte order of keys, and the neighbours of a prefix are not in it."""
    keys = ["a", "d", "d-", "d/", "d/a", "d/b", "d/ж", "d/🦊", "d/\U0010fffe", "d/\U0010ffff", "d0", "e"]
    journal.commit(Change(objects=[_row(key) for key in keys]))
    assert list(journal.objects("d/", "", None)) == keys[3:10]
    assert list(journal.objects("d/", "d/b", "d/🦊")) == ["d/b", "d/ж"]
    assert list(journal.objects("", "", None)) == keys
    assert list(journal.objects("", "d/🦊", None)) == keys[7:]
    assert journal.knows_below("d/")
    assert not journal.knows_below("x/")


def test_blobs_of_a_version(journal: Journal) -> None:
    """The whole one and its chunks, not those of an id that begins alike."""
    names = ["id", "id.0", "id.12", "id2", "id2.0", "i"]
    journal.commit(Change(blobs=[Blob(name, 1, number) for number, name in enumerate(names)]))
    assert {blob.name for blob in journal.blobs_of("id")} == {"id", "id.0", "id.12"}


def test_coldest_blobs_in_pages(journal: Journal) -> None:
    """By the time of last use, then size and name; a page goes on behind the last one, and what is pinned is in none."""
    blobs = [Blob(name, 1, used) for used, name in [(5, "c"), (1, "b"), (1, "a"), (KEPT_S, "p"), (9, "d")]]
    journal.commit(Change(blobs=blobs))
    first = journal.coldest_blobs(2, (-1, 0, ""))
    assert [blob.name for blob in first] == ["a", "b"]
    assert [blob.name for blob in journal.coldest_blobs(9, (first[-1].used_s, 1, first[-1].name))] == ["c", "d"]


def test_an_eviction_costs_no_more_where_many_blobs_were_used_at_once(journal: Journal) -> None:
    """A stop gives all blobs one time of last use, and pinned ones have one anyway: a page is read off the index, unsorted."""
    asked: list[str] = []
    journal._db.set_trace_callback(asked.append)
    journal._reader.set_trace_callback(asked.append)
    journal.coldest_blobs(2, (-1, 0, ""))
    journal.kept_blobs((0, ""), 2)
    for query in asked[:2]:
        (plan,) = journal._db.execute(f"EXPLAIN QUERY PLAN {query}").fetchall()
        assert "USING COVERING INDEX blob_used" in plan[3], plan


def test_kept_blobs_in_pages(journal: Journal) -> None:
    """What is called pinned, by size and name; a page goes on behind the last one."""
    journal.commit(Change(blobs=[Blob(name, 1, 5 if name == "b" else KEPT_S) for name in "abcd"]))
    assert [blob.name for blob in journal.kept_blobs((0, ""), 2)] == ["a", "c"]
    assert [blob.name for blob in journal.kept_blobs((1, "c"), 2)] == ["d"]


def test_unknown_blobs(journal: Journal) -> None:
    """What is in the folder and in no row."""
    journal.commit(Change(blobs=[Blob("a", 1, 1), Blob("7", 1, 1)]))
    assert journal.unknown_blobs(["b", "a", "c", "7", "8", 'quo"ted']) == ["b", "c", "8", 'quo"ted']
    assert journal.unknown_blobs([]) == []


def test_totals_of_the_blobs(journal: Journal, path: str) -> None:
    """New ones, replaced ones, lost ones, and what was rolled back: the sum is kept."""
    journal.commit(Change(blobs=[Blob("a", 10, 1), Blob("b", 20, 1), Blob("c", 30, 1)]))
    journal.commit(Change(blobs=[Blob("a", 10, 2), Blob("b", 21, 2)], lost_blobs=["c", "none"]))
    assert journal.blob_totals() == (31, 2)
    with pytest.raises(ReadOnly):
        journal.commit(Change(blobs=[Blob("d", 5, 1)], damaged=[Damage("x", "y", None, 1)]))  # type: ignore[arg-type]
    journal.close()
    with closing(Journal(path)) as again:
        assert again.blob_totals() == (31, 2)


def test_directories_become_complete_by_and_by(journal: Journal) -> None:
    """Only directories, only older ones, so many at a time; the rest of the rows stays as it is."""
    journal.commit(
        Change(inodes=[_inode(1, DIR), _inode(2), _inode(3, DIR, complete=True), _inode(4, DIR), _inode(9, DIR)])
    )
    assert journal.complete_some(9, 1) == [1]
    assert journal.complete_some(9, 5) == [4]
    assert journal.complete_some(9, 5) == []
    complete = [inode.ino for ino in (1, 2, 3, 4, 9) if (inode := journal.inode(ino)) is not None and inode.complete]
    assert complete == [1, 3, 4]


# ---------------------------------------------------------------- growth


def test_nothing_reads_a_whole_table(path: str) -> None:
    """What a start, a file operation, a fetch, an eviction and the end of a listing ask for is found by an index, however
    many rows there are.
    """
    asked: set[str] = set()

    class Watched(Journal):
        def _connect(self) -> sqlite3.Connection:
            db = super()._connect()
            db.set_trace_callback(asked.add)
            return db

    journal = Watched(path)
    journal.commit(WHOLE)
    asked.clear()
    journal.blob_totals()
    journal.dirty_inodes()
    journal.has_unsealed()
    journal.unsealed_in(1)
    journal.complete_some(100, 10)
    journal.forget_tombstones(5)
    journal.coldest_blobs(10, (1, 0, "a"))
    journal.kept_blobs((1, "a"), 10)
    journal.unknown_blobs(["b"])
    journal.blobs_of("b")
    journal.inode(5)
    journal.entry(1, b"x")
    journal.keys_of(5)
    journal.linked("0badcafe1f")
    journal.load_small_directory(1, 10)
    journal.load_directory(1)
    journal.following(1, b"a", 5)
    journal.lives_in("f")
    journal.object("x")
    journal.objects("x", "", None)
    journal.keys_between("a", "b")
    journal.objects_after("a", 5)
    journal.knows_below("x")
    journal.subtree(1)
    journal.longest_below(1, 10)
    journal.commit(replace_all(WHOLE))
    plans = {
        query: [row[3] for row in journal._db.execute(f"EXPLAIN QUERY PLAN {query}")]
        for query in asked
        if query.split()[0] in ("SELECT", "WITH", "UPDATE", "DELETE", "INSERT")
    }
    assert len(plans) > 30
    # one row; what the query itself has found; an index of what is not in B2 alone
    few = (
        "SCAN cached",
        "SCAN below",
        "SCAN json_each VIRTUAL TABLE INDEX 1:",
        "SCAN CONSTANT ROW",
        "SCAN inode USING INDEX inode_dirty",
        "SCAN i USING INDEX inode_dirty",
    )
    for query, plan in plans.items():
        assert [step for step in plan if step.startswith("SCAN") and step not in few] == [], query
    journal.close()


def replace_all(change: Change) -> Change:
    """The same, and deletions of every kind."""
    return Change(
        inodes=change.inodes, links=change.links, intents=change.intents, objects=change.objects, blobs=change.blobs,
        gone=[5], unlinks=[(1, b"x")], settled=[("x", 3)], lost_objects=["x"], lost_blobs=["b"],
    )  # fmt: skip
