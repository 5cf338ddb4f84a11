"""What must hold in a state directory: a healthy one has no finding, and each rule finds its violation."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from b2fs.core import chunks
from b2fs.core.bucket import Version
from b2fs.core.change import Intent, ObjectRow
from b2fs.core.inode import Inode, attributes, to_info
from b2fs.core.invariants import (
    RULES,
    Files,
    Finding,
    Rows,
    Severity,
    check,
    check_remote,
    sums,
    wrong_sum,
)

OURS = "0badcafe.1f"


def sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def directory(ino: int, nlink: int = 2, **fields: Any) -> Inode:
    return Inode(
        **{"ino": ino, "mode": stat.S_IFDIR | 0o755, "uid": 1, "gid": 1, "nlink": nlink, "size": 0, "mtime_ns": 5,
           "ctime_ns": 5, "atime_ns": 5, "complete": True} | fields
    )  # fmt: skip


def file(ino: int, data: bytes = b"", **fields: Any) -> Inode:
    return Inode(
        **{"ino": ino, "mode": stat.S_IFREG | 0o644, "uid": 1, "gid": 1, "nlink": 1, "size": len(data), "mtime_ns": 7,
           "ctime_ns": 7, "atime_ns": 7, "sha1": sha1(data)} | fields
    )  # fmt: skip


def link(ino: int, target: str, **fields: Any) -> Inode:
    return file(ino, mode=stat.S_IFLNK | 0o777, target=target, size=len(target), sha1="", **fields)


class State:
    """A healthy state directory and its bucket, to be damaged.

    /clean (in B2, cached), /big (in B2, one chunk cached), /written (scratch), /sealed (staged), /link, /d, /d/sub,
    /d/sub/x (in B2), /empty (a directory that its marker keeps alive).
    """

    def __init__(self) -> None:
        self.files = Files(scratch={70: 3}, staged={40: 6}, blobs={"id10": 5, "id11.1": 7})
        big = chunks.CHUNK + 7
        self.rows = Rows(
            meta={"endpoint": "http://b", "bucket_id": "b", "bucket_name": "bucket", "prefix": "", "mount_id": "0badcafe",
                  "schema": "1", "counter": "100", "listed": "1"},
            inodes={
                1: directory(1, 4),
                2: directory(2, 3),
                3: directory(3),
                4: directory(4),
                10: file(10, b"clean", file_id="id10"),
                11: file(11, size=big, sha1="", file_id="id11"),
                12: file(12, scratch=70),
                13: file(13, b"sealed", staged=40),
                14: link(14, "clean"),
                15: file(15, b"x", file_id="id15"),
            },
            dentries=[(1, b"clean", 10), (1, b"big", 11), (1, b"written", 12), (1, b"sealed", 13), (1, b"link", 14),
                      (1, b"d", 2), (2, b"sub", 3), (3, b"x", 15), (1, b"empty", 4)],
            intents={key: Intent(key, 50, 0) for key in ("written", "sealed")},
            blobs={"id10": 5, "id11.1": 7},
            ignored={"a//b": "has an empty part"},
        )  # fmt: skip
        self.listed: dict[str, Version] = {"a//b": Version("a//b", "odd", 1, "", 1)}
        self.store("clean", 10)
        self.store("big", 11)
        self.store("link", 14, sha1(b"clean"))
        self.store("d/sub/x", 15)
        self.store("empty/.bzEmpty", 4)

    def store(self, key: str, ino: int, digest: str = "") -> None:
        """The bucket has the inode at `key`, and the journal knows it."""
        inode = self.rows.inodes[ino]
        version = Version(key, f"id{ino}", inode.size, digest or inode.sha1, 1000 + ino, info=to_info(inode, OURS, key))
        self.listed[key] = version
        self.rows.objects[key] = ObjectRow(
            key, version.file_id, version.size, version.sha1, version.uploaded_ms, attributes(inode), 60
        )

    def set(self, ino: int, **fields: Any) -> None:
        self.rows.inodes[ino] = replace(self.rows.inodes[ino], **fields)

    def add(self, parent: int, name: bytes, inode: Inode) -> None:
        self.rows.inodes[inode.ino] = inode
        self.rows.dentries.append((parent, name, inode.ino))

    def two_names(self, **fields: Any) -> None:
        """A file with the names /one and /two, both in B2; it lives at /two."""
        inode = file(16, b"two", **({"nlink": 2, "link": "0badcafe10", "file_id": "two"} | fields))
        self.add(1, b"one", inode)
        self.rows.dentries.append((1, b"two", 16))
        for key in ("one", "two"):
            self.store(key, 16)
            self.rows.objects[key] = replace(self.rows.objects[key], file_id=key)
            self.listed[key] = replace(self.listed[key], file_id=key)

    def misplace(self) -> None:
        """The link gets the staged file."""
        self.set(13, staged=0, file_id="id13")
        self.set(14, staged=40)
        self.rows.intents["link"] = Intent("link", 1, 0)

    def set_aside(self) -> None:
        self.rows.damaged.append(("sealed", "40", "wrong SHA-1"))
        self.files.quarantine["40"] = 1

    def both(self, name: str, size: int) -> None:
        """The size of a blob, in the row and on disk."""
        self.files.blobs[name] = self.rows.blobs[name] = size

    def findings(self) -> list[Finding]:
        return check(self.rows, self.files) + check_remote(self.rows, self.listed)

    def found(self) -> set[tuple[str, str]]:
        return {(each.rule, each.where) for each in self.findings()}


def test_healthy() -> None:
    """A state directory in which everything holds, with content in every place, has no finding."""
    state = State()
    assert state.findings() == []
    assert {(each.folder, each.name, each.where) for each in sums(state.rows, state.files)} == {
        ("staged", "40", "sealed"),
        ("cache", "id10", "cache: id10"),
    }


def _drop_name(state: State, name: bytes) -> None:
    state.rows.dentries = [entry for entry in state.rows.dentries if entry[1] != name]


Damage = Callable[[State], object]
LOCAL: list[tuple[str, str, Damage]] = [
    ("scratch-left", "scratch/77", lambda s: s.files.scratch.update({77: 1})),
    ("staged-left", "staged/77", lambda s: s.files.staged.update({77: 1})),
    ("part-left", "part/1", lambda s: s.files.part.update({1: 1})),
    ("blob-unknown", "cache: id10", lambda s: s.rows.blobs.pop("id10")),
    ("blob-gone", "cache: id10", lambda s: s.files.blobs.pop("id10")),
    ("stranger", "staged/x", lambda s: s.files.strangers.append("staged/x")),
    ("quarantined", "quarantine/40", lambda s: s.files.quarantine.update({"40": 1})),
    ("journal", "journal.db", lambda s: s.rows.corruption.append("a page is malformed")),
    ("identity", "journal.db", lambda s: s.rows.meta.pop("bucket_id")),
    ("counter", "journal.db", lambda s: s.rows.meta.update({"counter": "60"})),
    ("damaged", "sealed", lambda s: s.rows.damaged.append(("sealed", "", "it is gone"))),
    ("damaged", "sealed", lambda s: s.set_aside()),
    ("damaged-seen", "sealed", lambda s: s.rows.damaged.append(("sealed", "40", "wrong SHA-1"))),
    ("content-moved", "sealed", lambda s: s.files.scratch.update({40: s.files.staged.pop(40)})),
    ("content-moved", "written", lambda s: s.files.staged.update({70: s.files.scratch.pop(70)})),
    ("scratch-left", "scratch/40", lambda s: s.files.scratch.update({40: 6})),
    ("name-without-inode", "gone", lambda s: s.rows.dentries.append((1, b"gone", 99))),
    ("below-no-directory", "clean/x", lambda s: s.add(10, b"x", file(99))),
    ("below-no-directory", "inode 98/x", lambda s: s.add(98, b"x", file(99))),
    ("links", "clean", lambda s: s.set(10, nlink=2)),
    ("links", "d", lambda s: s.set(2, nlink=2)),
    ("links", ".", lambda s: s.set(1, nlink=2)),
    ("links", "one", lambda s: s.two_names(link="")),
    ("home", "one", lambda s: s.two_names(file_id="old")),
    ("scratch-gone", "written", lambda s: s.files.scratch.clear()),
    ("staged-gone", "sealed", lambda s: s.files.staged.clear()),
    ("staged-size", "sealed", lambda s: s.files.staged.update({40: 5})),
    ("content-misplaced", "link", State.misplace),
    ("blob-size", "cache: id10", lambda s: s.files.blobs.update({"id10": 4})),
    ("blob-size", "cache: id10", lambda s: s.both("id10", 4)),
    ("blob-size", "cache: id11.1", lambda s: s.both("id11.1", 8)),
    ("blob-size", "cache: id11.2", lambda s: s.both("id11.2", 8)),
    ("content-without-intent", "written", lambda s: s.rows.intents.pop("written")),
    ("content-without-intent", "sealed", lambda s: s.rows.intents.pop("sealed")),
    ("lost-hide", "old", lambda s: s.rows.objects.update(old=ObjectRow("old", "id9", 1, "", 1, "", 1))),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "where", "damage"), LOCAL, ids=[f"{rule} {where}" for rule, where, _ in LOCAL])
def test_local_rules(rule: str, where: str, damage: Damage) -> None:
    """One thing that is wrong here is exactly that finding."""
    state = State()
    damage(state)
    assert [(each.rule, each.where) for each in check(state.rows, state.files)] == [(rule, where)]


def test_never_connected() -> None:
    """A journal that belongs to nobody yet is a note; a half-known owner is a problem (above)."""
    for inodes in ({}, {1: directory(1)}):
        (finding,) = check(Rows(meta={"schema": "1"}, inodes=inodes), Files())
        assert (finding.rule, finding.severity) == ("no-identity", Severity.NOTE)


def test_no_root() -> None:
    """Without a root nothing can be reached; a file in its place is none."""
    state = State()
    del state.rows.inodes[1]
    assert ("no-root", ".") in state.found()
    state.rows.inodes[1] = file(1)
    assert ("no-root", ".") in state.found()


def test_inode_without_name() -> None:
    """A file that no name leads to is found, with what else follows from it: its object should be hidden."""
    state = State()
    _drop_name(state, b"clean")
    assert state.found() == {("inode-without-name", "inode 10"), ("lost-hide", "clean"), ("remote-left", "clean")}


def test_directory_without_name() -> None:
    """A lost directory is one finding; what was in it is not repeated, but for the objects and directories."""
    state = State()
    _drop_name(state, b"d")
    found = {(each.rule, each.where) for each in check(state.rows, state.files)}
    assert found == {
        ("inode-without-name", "inode 2"),
        ("unreachable", "inode 3 ('sub')"),
        ("links", "."),
        ("lost-hide", "d/sub/x"),
    }


def test_cycle() -> None:
    """Two directories that are in each other hang on nothing, and nobody walks round for ever."""
    state = State()
    state.rows.inodes |= {20: directory(20, 3), 21: directory(21, 3)}
    state.rows.dentries += [(20, b"a", 21), (21, b"b", 20)]
    assert state.found() == {("unreachable", "inode 20 ('b')"), ("unreachable", "inode 21 ('a')")}


def test_directory_with_two_names() -> None:
    """A directory has one name; through a second one the tree would be no tree, even with right link counts."""
    state = State()
    state.rows.dentries.append((4, b"again", 2))
    state.set(4, nlink=3)
    assert ("links", "d") in state.found()
    state = State()
    state.rows.dentries.append((3, b"up", 1))
    state.set(3, nlink=3)
    assert ("links", ".") in state.found(), "the root has none"


@pytest.mark.parametrize("name", [b"..", b"", b"a\x01", b"\xff", b"a/b", b".bzEmpty", b"n" * 256])
def test_bad_name(name: bytes) -> None:
    """A name that no path can have."""
    state = State()
    state.rows.dentries = [
        (parent, name if old == b"written" else old, ino) for parent, old, ino in state.rows.dentries
    ]
    assert "bad-name" in {each.rule for each in check(state.rows, state.files)}


def test_two_names() -> None:
    """A file of two names lives at either; while one is to be brought in line, at one that it has lost too."""
    for home in ("one", "two"):
        state = State()
        state.two_names(file_id=home)
        assert state.findings() == []
    state.rows.dentries.remove((1, b"two", 16))
    state.set(16, nlink=1)
    state.rows.intents["two"] = Intent("two", 1, 0)
    assert state.findings() == []
    del state.rows.intents["two"]
    assert ("home", "one") in state.found()


def test_shared_staged_file() -> None:
    """One staged file is the content of one file."""
    state = State()
    state.rows.inodes[16] = replace(state.rows.inodes[13], ino=16)
    state.rows.dentries.append((1, b"twin", 16))
    state.rows.intents["twin"] = Intent("twin", 1, 0)
    assert state.found() == {("content-shared", "twin")}


def test_content_nowhere() -> None:
    """Bytes that are neither here nor in B2; an empty file needs none."""
    state = State()
    state.set(13, staged=0)
    state.files.staged.clear()
    assert state.found() == {("content-nowhere", "sealed")}
    state.set(13, size=0)
    assert state.found() == set()


def test_moved_content_is_checked() -> None:
    """Sealed content under its old name has to have the size and the SHA-1 all the same."""
    state = State()
    state.files.scratch[40] = state.files.staged.pop(40)
    assert [(each.folder, each.name) for each in sums(state.rows, state.files)] == [
        ("scratch", "40"),
        ("cache", "id10"),
    ]
    state.files.scratch[40] -= 1
    assert state.found() == {("content-moved", "sealed"), ("staged-size", "sealed")}
    (wrong,) = (wrong_sum(each, "") for each in sums(state.rows, state.files) if each.folder == "scratch")
    assert wrong is not None and wrong.rule == "staged-sum"


def test_scratch_shadows_staged() -> None:
    """While a file is written again, the size of its row is not that of what was sealed before."""
    state = State()
    state.set(13, scratch=71, size=1)
    state.files.scratch[71] = 1
    assert state.found() == set()


def test_sums() -> None:
    """A wrong SHA-1, or none because the disk fails, of staged content and of a whole blob; chunks have none."""
    state = State()
    found = [wrong_sum(each, sha1(b"other")) for each in sums(state.rows, state.files)]
    assert [(each.rule, each.where) for each in found if each is not None] == [
        ("staged-sum", "sealed"),
        ("blob-sum", "cache: id10"),
    ]
    state.files.blobs["id10"] = 4
    assert [each.name for each in sums(state.rows, state.files)] == ["40"], "a blob of the wrong size is not hashed too"
    state.files.blobs["id10"] = 5
    assert [wrong_sum(each, each.sha1) for each in sums(state.rows, state.files)] == [None, None]


# ---------------------------------------------------------------- tree against rows


@pytest.mark.parametrize(
    ("key", "damage"),
    [
        ("clean", lambda s: s.rows.objects.pop("clean")),
        ("clean", lambda s: s.rows.objects.update(clean=ObjectRow("clean", "", 0, "", 1, "", 1))),
        ("clean", lambda s: s.set(10, mtime_ns=8)),
        ("clean", lambda s: s.set(10, mode=stat.S_IFREG | 0o600)),
        ("clean", lambda s: s.set(10, sha1=sha1(b"other"), file_id="id9")),
        ("link", lambda s: s.set(14, target="other")),
        ("empty/.bzEmpty", lambda s: s.set(4, uid=2)),
        ("empty/.bzEmpty", lambda s: s.rows.objects.pop("empty/.bzEmpty")),
    ],
)
def test_lost_intent(key: str, damage: Damage) -> None:
    """A name whose object is not as it says, and no intent: for content, attributes, links and directories."""
    state = State()
    damage(state)
    assert [(each.rule, each.where) for each in check(state.rows, state.files)] == [("lost-intent", key)]
    state.rows.intents[key] = Intent(key, 1, 0)
    assert check(state.rows, state.files) == [], "with its intent all is well"


def test_intent_of_a_subtree() -> None:
    """A moved directory's intent stands for everything below it."""
    state = State()
    state.rows.dentries = [
        (parent, b"moved" if name == b"d" else name, ino) for parent, name, ino in state.rows.dentries
    ]
    assert {each.rule for each in check(state.rows, state.files)} == {"lost-intent", "lost-hide"}
    state.rows.intents |= {key: Intent(key, 1, 0) for key in ("d/", "moved/")}
    assert check(state.rows, state.files) == []


def test_directory_without_marker() -> None:
    """A directory needs no marker while something is in it, or while its listing is not known."""
    state = State()
    state.rows.objects.pop("empty/.bzEmpty")
    state.set(4, complete=False)
    assert check(state.rows, state.files) == []
    state.set(4, complete=True)
    state.rows.ignored["empty/a//b"] = "has an empty part"
    assert check(state.rows, state.files) == []


def test_marker_of_s3_tools() -> None:
    """A marker ``DIR/`` says what ours would."""
    state = State()
    row = state.rows.objects.pop("empty/.bzEmpty")
    state.rows.objects["empty/"] = replace(row, key="empty/")
    assert check(state.rows, state.files) == []
    state.rows.objects["empty/.bzEmpty"] = replace(row, attributes="those of another time")
    assert check(state.rows, state.files) == [], "one of the two is enough"


def test_lost_directories() -> None:
    """Of directories that B2 has nothing of, only the topmost is told."""
    state = State()
    state.rows.objects.pop("empty/.bzEmpty")
    state.add(4, b"below", directory(20))
    state.set(4, nlink=3)
    assert {(each.rule, each.where) for each in check(state.rows, state.files)} == {("lost-intent", "empty/.bzEmpty")}


def test_ignored_object() -> None:
    """An object that is noted as not shown needs no path."""
    state = State()
    state.rows.objects["d"] = ObjectRow("d", "id9", 1, "", 1, "", 1)
    state.rows.ignored["d"] = "a directory has the same name"
    assert check(state.rows, state.files) == []


# ---------------------------------------------------------------- against the bucket


def _other(key: str, **fields: Any) -> Version:
    return replace(Version(key, "theirs", 1, sha1(b"t"), 5000), **fields)


REMOTE: list[tuple[str, str, Damage]] = [
    ("remote-missing", "clean", lambda s: s.listed.pop("clean")),
    ("remote-missing", "empty/.bzEmpty", lambda s: s.listed.pop("empty/.bzEmpty")),
    ("remote-changed", "clean", lambda s: s.listed.update(clean=_other("clean"))),
    ("remote-older", "clean", lambda s: s.listed.update(clean=_other("clean", uploaded_ms=3))),
    ("remote-differs", "clean", lambda s: s.listed.update(clean=replace(s.listed["clean"], size=4))),
    ("remote-differs", "clean", lambda s: s.listed.update(clean=replace(s.listed["clean"], sha1=sha1(b"t")))),
    ("remote-differs", "link", lambda s: s.listed.update(link=replace(s.listed["link"], sha1=sha1(b"t")))),
    ("remote-differs", "clean", lambda s: s.listed.update(
        clean=replace(s.listed["clean"], info=to_info(replace(s.rows.inodes[10], uid=9), OURS, "clean")))),
    ("remote-differs", "empty/.bzEmpty", lambda s: s.listed.update(
        {"empty/.bzEmpty": replace(s.listed["empty/.bzEmpty"], info=to_info(directory(4, mtime_ns=6), OURS, "empty/.bzEmpty"))})),
    ("remote-new", "new", lambda s: s.listed.update(new=_other("new"))),
    ("remote-new", "back", lambda s: s.listed.update(back=_other("back")) or s.rows.objects.update(
        back=ObjectRow("back", "", 0, "", 4000, "", 1))),
    ("remote-left", "hidden", lambda s: s.listed.update(hidden=_other("hidden")) or s.rows.objects.update(
        hidden=ObjectRow("hidden", "", 0, "", 6000, "", 1))),
    ("remote-left", "zombie", lambda s: s.listed.update(zombie=_other("zombie", info={"b2fs": f"o={OURS}"}))),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "where", "damage"), REMOTE, ids=[f"{rule} {where}" for rule, where, _ in REMOTE])
def test_remote_rules(rule: str, where: str, damage: Damage) -> None:
    """One thing that the bucket has otherwise is exactly that finding, and none where an intent is still to go."""
    state = State()
    damage(state)
    assert [(each.rule, each.where) for each in state.findings()] == [(rule, where)]
    state.rows.intents[where] = Intent(where, 1, 0)
    assert state.findings() == []


def test_object_of_another_tool_says_no_attributes() -> None:
    """What an object does not say of itself is no difference."""
    state = State()
    state.listed["clean"] = replace(state.listed["clean"], info={})
    assert state.findings() == []


def test_unusable_object_is_none_of_ours() -> None:
    """An object that no path can show is left alone, whether a listing has noted it yet or not."""
    state = State()
    state.rows.ignored.clear()
    assert state.findings() == []


def test_never_listed() -> None:
    """A bucket of which we have listed nothing yet is one note, not one for each object."""
    state = State()
    state.rows.meta["listed"] = ""
    state.listed |= {name: _other(name) for name in ("n1", "n2", "n3")}
    (finding,) = state.findings()
    assert finding.rule == "remote-new" and finding.what.startswith("3 objects")


def test_nothing_is_said_of_a_broken_database() -> None:
    """What SQLite says against the journal is all; the rest would follow from it."""
    state = State()
    state.rows.corruption = ["page 3 is malformed"]
    state.rows.inodes.clear()
    assert state.found() == {("journal", "journal.db")}


ELSEWHERE = {
    "no-identity", "no-root", "inode-without-name", "unreachable", "bad-name", "content-shared", "content-nowhere",
    "staged-sum", "blob-sum", "lost-intent",
}  # fmt: skip
"""Rules that a test of their own shows, or several."""


def test_every_rule_is_shown() -> None:
    """Each rule of the table has a case above, and says what to do."""
    assert {rule for rule, _, _ in LOCAL + REMOTE} | ELSEWHERE == set(RULES)
    assert all(todo for _, todo in RULES.values())
