"""`b2fs fsck`: on real state directories, made by the engine and damaged by hand."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from b2fs import __main__
from b2fs.adapters.disk import Disk
from b2fs.errors import Exit
from tests.devbucket_fixture import DevBucket
from tests.ops import states

Fsck = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="module")
def original(_shared_devbucket: DevBucket, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything is in B2 and cached, but one change: ``a.txt`` waits, sealed, and ``dir/b.bin`` in scratch."""
    state = tmp_path_factory.mktemp("fsck") / "state"
    bucket = "fsck-local"
    _shared_devbucket.admin.create_bucket(bucket)
    _shared_devbucket.bucket = bucket
    states.make(state, _shared_devbucket, drained=True)
    states.change(state, _shared_devbucket)
    return state


@pytest.fixture
def state(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "state"))


@pytest.fixture
def fsck(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Fsck:
    """Run it in this process; its exit code, and its answer (with --json) or its error line."""

    def run(state: Path, *args: str, environ: dict[str, str] | None = None) -> tuple[int, Any]:
        for name, value in (environ or {}).items():
            monkeypatch.setenv(name, value)
        code = __main__.run(["fsck", str(state), "--json", *args])
        shown = capsys.readouterr()
        if shown.err:
            assert shown.out == "" and shown.err.count("\n") == 1
            return code, shown.err
        assert shown.out.count("\n") == 1
        return code, json.loads(shown.out)

    return run


def found(answer: dict[str, Any], severity: str = "problem") -> set[tuple[str, str]]:
    return {(each["rule"], each["where"]) for each in answer["findings"] if each["severity"] == severity}


def everything(root: Path) -> dict[str, bytes]:
    """All files but the lock, which says who looks."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != "lock"
    }


def sql(state: Path, *statements: str) -> None:
    db = sqlite3.connect(state / "journal.db", isolation_level=None)
    for statement in statements:
        db.execute(statement)
    db.close()


def one(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


# ---------------------------------------------------------------- what it is given


@pytest.mark.parametrize("kind", ["missing", "empty", "a file", "other files"])
def test_no_state_directory(fsck: Fsck, tmp_path: Path, kind: str) -> None:
    """What is no state directory is one clear line and code 6, and nothing is made there."""
    path = tmp_path / "x"
    if kind == "a file":
        path.write_bytes(b"x")
    elif kind != "missing":
        path.mkdir()
    if kind == "other files":
        (path / "f").write_bytes(b"x")
    before = sorted(tmp_path.rglob("*"))
    code, line = fsck(path)
    assert code == Exit.STATE
    assert str(path) in line and "no state directory" in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("content", [b"", b"not a database" * 1000])
def test_no_journal(fsck: Fsck, tmp_path: Path, content: bytes) -> None:
    """A journal.db that is none is code 6, and stays as it is."""
    (tmp_path / "journal.db").write_bytes(content)
    code, line = fsck(tmp_path)
    assert (code, "not a b2fs journal" in line) == (Exit.STATE, True)
    assert everything(tmp_path) == {"journal.db": content}


def test_journal_of_another_version(fsck: Fsck, state: Path) -> None:
    """A journal of another schema is code 6 with what to do, not a heap of findings."""
    sql(state, "UPDATE meta SET value = '999' WHERE name = 'schema'")
    code, line = fsck(state)
    assert (code, "schema 999" in line) == (Exit.STATE, True)


def test_in_use(fsck: Fsck, state: Path) -> None:
    """The state directory of a daemon that runs is not looked at: code 6."""
    disk = Disk(str(state))
    try:
        code, line = fsck(state)
    finally:
        disk.close()
    assert (code, "is in use" in line) == (Exit.STATE, True)


# ---------------------------------------------------------------- healthy


def test_healthy(fsck: Fsck, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is wrong after an ordinary run, and not a byte is changed by looking."""
    before = everything(state)
    code, answer = fsck(state)
    assert code == Exit.OK
    assert answer["findings"] == [] and (answer["problems"], answer["notes"]) == (0, 0)
    assert (answer["bucket"], answer["checked"]["files"], answer["checked"]["waiting"]) == ("fsck-local", 4, 2)
    assert __main__.run(["fsck", str(state)]) == Exit.OK
    assert capsys.readouterr().out == "0 problems, 0 notes; checked 4 files, 2 directories, 2 changes not in B2 yet\n"
    assert everything(state) == before


def test_after_a_crash(fsck: Fsck, state: Path, tmp_path: Path) -> None:
    """Changes that are only in the journal's log count, and the log stays as the crash left it."""
    db = sqlite3.connect(state / "journal.db", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("UPDATE inode SET nlink = 7 WHERE ino = 1")
    shutil.copytree(state, tmp_path / "crashed")
    db.close()
    (tmp_path / "crashed" / "journal.db-shm").unlink()
    before = everything(tmp_path / "crashed")
    assert before["journal.db-wal"]
    code, answer = fsck(tmp_path / "crashed")
    assert (code, found(answer)) == (Exit.DAMAGED, {("links", ".")})
    assert everything(tmp_path / "crashed") == before


def test_what_a_crash_leaves_is_a_note(fsck: Fsck, state: Path) -> None:
    """Leftovers that the next start clears away are told, and the code is 0."""
    for name in ("scratch/99999", "staged/99999", "part/3", "cache/odd", "quarantine/12", "staged/README"):
        (state / name).write_bytes(b"x")
    blob = next((state / "cache").glob("*/*"))
    blob.unlink()
    code, answer = fsck(state)
    assert code == Exit.OK
    assert found(answer, "note") == {
        ("scratch-left", "scratch/99999"),
        ("staged-left", "staged/99999"),
        ("part-left", "part/3"),
        ("stranger", "cache/odd"),
        ("stranger", "staged/README"),
        ("quarantined", "quarantine/12"),
        ("blob-gone", f"cache: {blob.name}"),
    }


# ---------------------------------------------------------------- damaged


def _flip(path: Path) -> None:
    """One byte is another; the size stays."""
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


def _blob(state: Path) -> Path:
    return next(path for path in (state / "cache").glob("*/*") if path.stat().st_size > 1000)


DAMAGES: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "staged content is gone": (lambda s: one(s / "staged").unlink(), {"staged-gone"}),
    "staged content is cut": (lambda s: os.truncate(one(s / "staged"), 2), {"staged-size", "staged-sum"}),
    "staged content is another": (lambda s: _flip(one(s / "staged")), {"staged-sum"}),
    "staged content is a directory": (
        lambda s: (name := one(s / "staged")).unlink() or name.mkdir(), {"staged-gone"}),
    "scratch is gone": (lambda s: one(s / "scratch").unlink(), {"scratch-gone"}),
    "a blob is cut": (lambda s: os.truncate(_blob(s), 3), {"blob-size"}),
    "a blob is another": (lambda s: _flip(_blob(s)), {"blob-sum"}),
    "an inode is gone": (
        lambda s: sql(s, "DELETE FROM inode WHERE staged"), {"name-without-inode"}),
    "a name is gone": (
        lambda s: sql(s, "DELETE FROM dentry WHERE name = CAST('dir' AS BLOB)"), {"inode-without-name", "links", "lost-hide"}),
    "a directory is in itself": (
        lambda s: sql(s, "UPDATE dentry SET parent = ino WHERE name = CAST('dir' AS BLOB)"),
        {"unreachable", "links", "lost-hide"}),
    "a directory is a file": (
        lambda s: sql(s, "UPDATE inode SET mode = 33188, nlink = 1 WHERE ino IN "
                         "(SELECT ino FROM dentry WHERE name = CAST('dir' AS BLOB))"),
        {"below-no-directory", "links", "lost-hide", "lost-intent"}),
    "a link count": (lambda s: sql(s, "UPDATE inode SET nlink = 9 WHERE ino = 1"), {"links"}),
    "an intent is lost": (lambda s: sql(s, "DELETE FROM intent WHERE key = 'a.txt'"), {"content-without-intent"}),
    "an attribute is lost": (
        lambda s: sql(s, "UPDATE object SET attributes = 'm=100600' WHERE key = 'dir/empty'"), {"lost-intent"}),
    "an object is lost": (lambda s: sql(s, "DELETE FROM object WHERE key = 'link'"), {"lost-intent"}),
    "a removal is lost": (
        lambda s: sql(s, "DELETE FROM inode WHERE ino = (SELECT ino FROM dentry WHERE name = CAST('link' AS BLOB))",
                      "DELETE FROM dentry WHERE name = CAST('link' AS BLOB)"), {"lost-hide"}),
    "the version is lost": (
        lambda s: sql(s, "UPDATE inode SET file_id = '', staged = 0 WHERE staged"), {"content-nowhere"}),
    "the owner is lost": (lambda s: sql(s, "DELETE FROM meta WHERE name = 'bucket_id'"), {"identity"}),
    "the counter is lost": (lambda s: sql(s, "DELETE FROM meta WHERE name = 'counter'"), {"counter"}),
    "the journal's table is damaged": (
        lambda s: sql(s,
                      "INSERT INTO damaged VALUES ('a.txt', '', 'it is gone', 1)"), {"damaged"}),
    "an index does not fit its table": (
        lambda s: sql(s, "PRAGMA writable_schema = ON", "UPDATE sqlite_schema SET rootpage = "
                      "(SELECT rootpage FROM sqlite_schema WHERE name = 'blob_used') WHERE name = 'inode_version'"),
        {"journal"}),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage(fsck: Fsck, state: Path, damage: str) -> None:
    """Each kind of damage is found for what it is, code 11; and fsck repairs nothing."""
    make, expected = DAMAGES[damage]
    make(state)
    before = everything(state)
    code, answer = fsck(state)
    assert code == Exit.DAMAGED
    assert {rule for rule, _ in found(answer)} == expected
    assert answer["problems"] == sum(each["severity"] == "problem" for each in answer["findings"])
    assert all(each["todo"] for each in answer["findings"])
    assert everything(state) == before


def test_damaged_page(fsck: Fsck, state: Path) -> None:
    """A journal with pages of nonsense is a problem in itself."""
    path = state / "journal.db"
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))
    code, answer = fsck(state)
    assert (code, {rule for rule, _ in found(answer)}) == (Exit.DAMAGED, {"journal"})


def test_lines_for_people(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A finding is one line with how grave it is, where, what and what to do, whatever the name; then a summary."""
    sql(state, "UPDATE dentry SET name = CAST('a' || char(10) || 'b' AS BLOB) WHERE name = CAST('a.txt' AS BLOB)")
    (state / "part/1").write_bytes(b"x")
    assert __main__.run(["fsck", str(state)]) == Exit.DAMAGED
    *lines, summary = capsys.readouterr().out.splitlines()
    problem = next(line for line in lines if "bad-name" in line)
    assert problem.startswith("problem: a\\x0ab: ") and problem.endswith("uploads what waits")
    assert lines[-1] == "note: part/1: a fetch that did not end [part-left]; nothing: the next start puts it right"
    assert summary.startswith(f"{len(lines) - 1} problems, 1 note; checked 4 files")


# ---------------------------------------------------------------- against the bucket


@pytest.fixture
def remote(devbucket: DevBucket, tmp_path: Path) -> Path:
    """A state directory whose run has brought everything into `devbucket`, below a prefix."""
    states.make(tmp_path / "remote", devbucket, drained=True, prefix="site/")
    return tmp_path / "remote"


@pytest.mark.slow
def test_bucket_is_as_the_journal_says(fsck: Fsck, remote: Path, devbucket: DevBucket) -> None:
    """Endpoint, bucket and prefix come from the state directory, whatever the settings say; only the key from them."""
    before = everything(remote)
    code, answer = fsck(remote, "--remote", environ=states.environ(devbucket))
    assert (code, answer["findings"]) == (Exit.OK, [])
    assert answer["checked"]["objects"] == 6 and answer["prefix"] == "site/"
    assert everything(remote) == before


@pytest.mark.slow
def test_bucket_differs(fsck: Fsck, remote: Path, devbucket: DevBucket) -> None:
    """What is missing in the bucket is a problem; what others put there is a note; other prefixes are not ours."""
    devbucket.admin.hide(devbucket.bucket, "site/a.txt")
    devbucket.admin.put(devbucket.bucket, "site/dir/b.bin", b"theirs")
    devbucket.admin.put(devbucket.bucket, "site/new", b"theirs")
    devbucket.admin.put(devbucket.bucket, "outside", b"theirs")
    code, answer = fsck(remote, "--remote", environ=states.environ(devbucket))
    assert code == Exit.DAMAGED
    assert found(answer) == {("remote-missing", "a.txt")}
    assert found(answer, "note") == {("remote-changed", "dir/b.bin"), ("remote-new", "new")}


@pytest.mark.slow
def test_remote_cannot_be_asked(fsck: Fsck, remote: Path, devbucket: DevBucket) -> None:
    """No key is code 3, a wrong one 4, no answer 5: told in a line, and never taken for an empty bucket."""
    code, line = fsck(remote, "--remote")
    assert (code, "B2_APPLICATION_KEY" in line) == (Exit.CONFIG, True)
    code, line = fsck(remote, "--remote", environ=states.environ(devbucket) | {"B2_APPLICATION_KEY": "wrong"})
    assert (code, "check B2_APPLICATION_KEY_ID" in line) == (Exit.DENIED, True)
    devbucket.admin.down()
    code, line = fsck(remote, "--remote", "--read-deadline", "300ms", environ=states.environ(devbucket))
    assert (code, "check the network" in line) == (Exit.BUCKET, True)


@pytest.mark.slow
def test_remote_is_another_bucket(fsck: Fsck, remote: Path, devbucket: DevBucket) -> None:
    """A bucket of the same name that is not the same is code 6, not a heap of missing objects."""
    sql(remote, "UPDATE meta SET value = 'another' WHERE name = 'bucket_id'")
    code, line = fsck(remote, "--remote", environ=states.environ(devbucket))
    assert (code, "made anew" in line) == (Exit.STATE, True)
