"""What must hold in a state directory that nobody has open: rows and lists of files in, findings out. Pure.

Rules
  A *note* is what a crash may leave and the next start repairs by itself (b2fs/ARCHITECTURE.md, "Inconsistency,
  cause, repair"), or what somebody else did in the bucket. A *problem* is what no start can repair.
  Every finding belongs to a rule of `RULES`, which says how grave it is and what a person can do.
  One thing that is wrong is one finding: what hangs below it (the files of a lost directory) is not repeated.
  Where the content of a file has to be is said by `places` alone.

Units: sizes in bytes.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from enum import StrEnum

import msgspec
from msgspec.structs import replace

from b2fs.core import chunks, names
from b2fs.core.bucket import Version
from b2fs.core.change import Intent, ObjectRow
from b2fs.core.inode import INFO_B2FS, ROOT, Defaults, Inode, attributes, from_version, operation_of
from b2fs.core.merge import is_news
from b2fs.core.writeback import Step, covers, plan

IDENTITY = ("endpoint", "bucket_id", "bucket_name", "prefix", "mount_id")
"""The rows of ``meta`` that say whom a journal belongs to; the prefix may be ''."""


class Severity(StrEnum):
    NOTE = "note"
    PROBLEM = "problem"


_NEXT_START = "nothing: the next start puts it right"
_NEXT_LISTING = "nothing: the next mount takes it over"
_LOST = (
    "look for a copy elsewhere (an older version in the bucket, a backup); the next start falls back to B2's version"
)
_KEEP = "keep a copy of the state directory and report it as a bug; `b2fs rescue` uploads what waits"
_TOUCH = "change the path through a mount (`touch` will do), then `b2fs flush`"

RULES: dict[str, tuple[Severity, str]] = {
    # what a crash leaves
    "scratch-left": (Severity.NOTE, _NEXT_START),
    "staged-left": (Severity.NOTE, _NEXT_START),
    "part-left": (Severity.NOTE, _NEXT_START),
    "blob-unknown": (Severity.NOTE, _NEXT_START),
    "blob-gone": (Severity.NOTE, _NEXT_START),
    "no-identity": (Severity.NOTE, "nothing: it never belonged to a bucket; the next mount ties it to one"),
    "stranger": (Severity.NOTE, "b2fs leaves it alone; delete it if you know what it is"),
    "content-moved": (Severity.NOTE, _NEXT_START),
    "damaged-seen": (Severity.NOTE, "nothing: the file was looked at and deleted"),
    "quarantined": (Severity.NOTE, "look at it, then delete it"),
    # the journal
    "journal": (
        Severity.PROBLEM,
        "keep a copy of the directory: scratch/ and staged/ hold the bytes that are not in B2",
    ),
    "identity": (Severity.PROBLEM, _KEEP),
    "counter": (Severity.PROBLEM, _KEEP),
    "damaged": (
        Severity.PROBLEM,
        "compare it with B2's version, put back what is missing, then delete the file in quarantine/",
    ),
    # the namespace
    "no-root": (Severity.PROBLEM, _KEEP),
    "name-without-inode": (Severity.PROBLEM, _KEEP),
    "inode-without-name": (Severity.PROBLEM, _KEEP),
    "below-no-directory": (Severity.PROBLEM, _KEEP),
    "unreachable": (Severity.PROBLEM, _KEEP),
    "links": (Severity.PROBLEM, _KEEP),
    "bad-name": (Severity.PROBLEM, _KEEP),
    # the content
    "scratch-gone": (Severity.PROBLEM, _LOST),
    "staged-gone": (Severity.PROBLEM, _LOST),
    "staged-size": (Severity.PROBLEM, _LOST),
    "staged-sum": (Severity.PROBLEM, _LOST),
    "content-shared": (Severity.PROBLEM, _KEEP),
    "content-nowhere": (Severity.PROBLEM, _LOST),
    "home": (Severity.PROBLEM, _TOUCH),
    "content-misplaced": (Severity.PROBLEM, _KEEP),
    "blob-size": (Severity.PROBLEM, "delete the file: it is fetched again when it is read"),
    "blob-sum": (Severity.PROBLEM, "delete the file: it is fetched again when it is read"),
    # what has to go to the bucket
    "content-without-intent": (Severity.PROBLEM, "`b2fs rescue` uploads it"),
    "lost-intent": (Severity.PROBLEM, _TOUCH),
    "lost-hide": (Severity.PROBLEM, "hide the object with another B2 tool, if its path was removed on purpose"),
    # the bucket itself
    "remote-missing": (
        Severity.PROBLEM,
        "if nobody removed it on purpose, restore it from the bucket's history before the next mount drops the name",
    ),
    "remote-differs": (Severity.PROBLEM, _TOUCH),
    "remote-older": (Severity.PROBLEM, "somebody removed our version from the bucket: restore it, or accept theirs"),
    "remote-left": (Severity.PROBLEM, "hide the object with another B2 tool, if its path was removed on purpose"),
    "remote-changed": (Severity.NOTE, _NEXT_LISTING),
    "remote-new": (Severity.NOTE, _NEXT_LISTING),
}


class Finding(msgspec.Struct, frozen=True):
    """Something that does not hold. `where`: the path, key, or file of the state directory that it is about."""

    rule: str
    where: str
    what: str

    @property
    def severity(self) -> Severity:
        return RULES[self.rule][0]

    @property
    def todo(self) -> str:
        return RULES[self.rule][1]


class Rows(msgspec.Struct):
    """Everything that a journal says."""

    meta: dict[str, str] = {}
    inodes: dict[int, Inode] = {}
    dentries: list[tuple[int, bytes, int]] = []
    """(parent, name, ino)"""
    objects: dict[str, ObjectRow] = {}
    intents: dict[str, Intent] = {}
    blobs: dict[str, int] = {}
    """Name to size."""
    ignored: dict[str, str] = {}
    """Key to why it is not shown."""
    damaged: list[tuple[str, str, str]] = []
    """(key, file in quarantine, why)"""
    corruption: list[str] = []
    """What SQLite itself says against the database; then the rest may be incomplete."""

    @property
    def counter(self) -> int:
        """All numbers in use are below it."""
        return int(self.meta.get("counter") or "2")


class Files(msgspec.Struct):
    """The files of a state directory: name to size."""

    scratch: dict[int, int] = {}
    staged: dict[int, int] = {}
    part: dict[int, int] = {}
    blobs: dict[str, int] = {}
    quarantine: dict[str, int] = {}
    strangers: list[str] = []
    """Paths below the state directory that no layout of ours explains."""


class Sum(msgspec.Struct, frozen=True):
    """A file whose SHA-1 is known, and has to be compared. `folder` is ``staged``, ``scratch`` or ``cache``."""

    folder: str
    name: str
    sha1: str
    where: str


def places(inode: Inode) -> tuple[int, int]:
    """The numbers of its scratch and of its staged content, 0 where it has none. Either folder may have the file."""
    return inode.scratch, inode.staged


def older(inode: Inode) -> int:
    """The number of the content that its staged one replaced and that is kept until that has its SHA-1; 0: none."""
    return 0 if inode.synced in places(inode) else inode.synced


class Names:
    """The tree that the rows describe, as far as it hangs together."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.named: dict[int, list[tuple[int, bytes]]] = defaultdict(list)
        """Inode number to the names that lead to it."""
        self.paths: dict[int, str] = {ROOT: ""}
        """Inode number to path, of what can be reached from the root."""
        self.keys: dict[str, Inode] = {}
        """Key of the object of each name that can be reached; a directory's is its marker."""
        children: dict[int, list[tuple[bytes, int]]] = defaultdict(list)
        for parent, name, ino in rows.dentries:
            self.named[ino].append((parent, name))
            children[parent].append((name, ino))
        if ROOT in rows.inodes:
            self.keys[names.marker("")] = rows.inodes[ROOT]
        waiting = [ROOT]
        while waiting:
            parent = waiting.pop()
            for name, ino in children[parent]:
                inode = rows.inodes.get(ino)
                if inode is None:
                    continue
                path = names.join(self.paths[parent], name.decode("utf-8", "surrogateescape"))
                self.keys[names.marker(path) if inode.is_dir else path] = inode
                if ino not in self.paths:
                    self.paths[ino] = path
                    if inode.is_dir:
                        waiting.append(ino)

    def where(self, ino: int) -> str:
        """The path of an inode, or what can be said instead."""
        if ino in self.paths:
            return self.paths[ino] or "."
        known = self.named.get(ino)
        return f"inode {ino}" + (f" ({known[0][1].decode(errors='replace')!r})" if known else "")


# ---------------------------------------------------------------- here


def check(rows: Rows, files: Files) -> list[Finding]:
    """Everything but checksums (`sums`) and the bucket (`check_remote`)."""
    if rows.corruption:  # what follows from it would only hide it
        return [Finding("journal", "journal.db", what) for what in rows.corruption]
    tree = Names(rows)
    return [
        *_journal(rows),
        *_names(tree),
        *_links(tree),
        *_content(tree, files),
        *_left(rows, files),
        *_blobs(rows, files),
        *_homes(tree),
        *_intents(tree),
        *_objects(tree),
    ]


def _journal(rows: Rows) -> Iterator[Finding]:
    missing = [name for name in IDENTITY if not rows.meta.get(name) and name != "prefix"]
    if len(missing) == len(IDENTITY) - 1:
        yield Finding("no-identity", "journal.db", "no mount has reached a bucket with it yet")
    elif missing:
        yield Finding("identity", "journal.db", f"does not say whom it belongs to: {', '.join(missing)} is missing")
    numbers = [number for inode in rows.inodes.values() for number in (inode.ino, *places(inode), inode.synced)]
    numbers += [intent.generation for intent in rows.intents.values()]
    numbers += [row.generation for row in rows.objects.values()]
    if max(numbers, default=0) >= rows.counter:
        yield Finding(
            "counter", "journal.db", f"the number {max(numbers)} is in use, and the counter is at {rows.counter}"
        )


def _names(tree: Names) -> Iterator[Finding]:
    rows = tree.rows
    root = rows.inodes.get(ROOT)
    is_new = not rows.inodes and not rows.dentries  # the first start ended before it made the root
    if not is_new and (root is None or not root.is_dir):
        yield Finding("no-root", ".", "the root directory has no row" if root is None else "the root is no directory")
    for parent, raw, ino in rows.dentries:
        name = raw.decode("utf-8", "replace")
        above = rows.inodes.get(parent)
        where = names.join(tree.paths[parent], name) if parent in tree.paths else f"inode {parent}/{name}"
        if ino not in rows.inodes:
            yield Finding("name-without-inode", where, f"the name leads to inode {ino}, which has no row")
        if above is None or not above.is_dir:
            what = f"inode {parent}, which has no row" if above is None else "something that is no directory"
            yield Finding("below-no-directory", where, f"the name is in {what}")
        if not names.can_be(raw) or raw == names.MARKER.encode():
            yield Finding("bad-name", where, f"{raw!r} cannot be a name")
    for ino, inode in rows.inodes.items():
        if ino == ROOT:
            continue
        if not tree.named.get(ino):
            kind = "directory" if inode.is_dir else "file"
            yield Finding("inode-without-name", tree.where(ino), f"no name leads to this {kind} of {inode.size} bytes")
        elif inode.is_dir and ino not in tree.paths:
            yield Finding("unreachable", tree.where(ino), "no path from the root leads to this directory")


def _links(tree: Names) -> Iterator[Finding]:
    rows = tree.rows
    subdirectories = Counter(
        parent for parent, _, ino in rows.dentries if ino in rows.inodes and rows.inodes[ino].is_dir
    )
    for ino, inode in rows.inodes.items():
        known = len(tree.named.get(ino, ()))
        if inode.is_dir and known > (0 if ino == ROOT else 1):
            yield Finding("links", tree.where(ino), f"{known} names lead to this directory")
        wanted = 2 + subdirectories[ino] if inode.is_dir else known
        if known > 1 and not inode.is_dir and not inode.link:
            yield Finding("links", tree.where(ino), f"it has {known} names and no link id")
        if wanted and inode.nlink != wanted:
            yield Finding("links", tree.where(ino), f"its link count is {inode.nlink}, it should be {wanted}")


def _content(tree: Names, files: Files) -> Iterator[Finding]:
    owners: dict[int, int] = {}
    for ino, inode in tree.rows.inodes.items():
        scratch, staged = places(inode)
        where = tree.where(ino)
        if not inode.is_file:
            if scratch or staged:
                yield Finding("content-misplaced", where, "it is no file, and has content that waits for B2")
            continue
        for number, rule, folder, other in (
            (scratch, "scratch-gone", files.scratch, files.staged),
            (staged, "staged-gone", files.staged, files.scratch),
        ):
            name = f"{rule.removesuffix('-gone')}/{number}"
            if number and number not in folder and number not in other:
                yield Finding(rule, where, f"the bytes that were written to it are not there: {name}")
            elif number and number not in folder:
                yield Finding("content-moved", where, f"its bytes are there, but not under the name {name}")
            if number and owners.setdefault(number, ino) != ino:
                yield Finding("content-shared", where, f"{name} belongs to {tree.where(owners[number])} too")
        size = files.staged.get(staged, files.scratch.get(staged))
        if staged and not scratch and size not in (None, inode.size):
            yield Finding("staged-size", where, f"staged/{staged} has {size} bytes, it should have {inode.size}")
        if inode.size and not (scratch or staged or inode.file_id):
            yield Finding("content-nowhere", where, f"its {inode.size} bytes are neither here nor in B2")


def _homes(tree: Names) -> Iterator[Finding]:
    """A file of several names lives in the version of one of them, or something is still to be done about that."""
    rows = tree.rows
    keys: dict[int, list[str]] = defaultdict(list)
    for key, inode in tree.keys.items():
        if inode.link:
            keys[inode.ino].append(key)
    homes = {row.file_id: key for key, row in rows.objects.items() if row.file_id} if keys else {}
    for ino, known in keys.items():
        inode = rows.inodes[ino]
        if not inode.is_file or not inode.file_id or any(places(inode)):
            continue
        home = homes.get(inode.file_id, "")
        if home not in known and not any(covers(rows.intents, key) for key in (home, *known)):
            yield Finding(
                "home", tree.where(ino), f"its content is in the version {inode.file_id}, which is at no name of it"
            )


def _left(rows: Rows, files: Files) -> Iterator[Finding]:
    scratch = {inode.scratch for inode in rows.inodes.values()}
    staged = {number for inode in rows.inodes.values() for number in (inode.staged, older(inode))}
    in_scratch = files.scratch.keys() - scratch - (staged - files.staged.keys())
    in_staged = files.staged.keys() - staged - (scratch - files.scratch.keys())
    for number in sorted(in_scratch):
        yield Finding("scratch-left", f"scratch/{number}", "no row names it: never acknowledged, sealed, or in B2")
    for number in sorted(in_staged):
        yield Finding("staged-left", f"staged/{number}", "no row names it: in B2, or still in scratch")
    for number in sorted(files.part):
        yield Finding("part-left", f"part/{number}", "a fetch that did not end")
    for key, file, why in rows.damaged:
        seen = bool(file) and file not in files.quarantine  # a person deleted it
        kept = f"was set aside as quarantine/{file}" if file else "is gone"
        yield Finding("damaged-seen" if seen else "damaged", key, f"content {kept}: {why}")
    for name in sorted(files.quarantine.keys() - {file for _, file, _ in rows.damaged}):
        yield Finding("quarantined", f"quarantine/{name}", "content that failed its check was set aside")
    for path in sorted(files.strangers):
        yield Finding("stranger", path, "not a file of b2fs")


def _blobs(rows: Rows, files: Files) -> Iterator[Finding]:
    known = _versions(rows)
    for name in sorted(rows.blobs.keys() - files.blobs.keys()):
        yield Finding("blob-gone", f"cache: {name}", "the cache has a row for it, and no file: it is fetched when read")
    for name, size in sorted(files.blobs.items()):
        wanted = rows.blobs.get(name)
        if wanted is None:
            yield Finding("blob-unknown", f"cache: {name}", "the cache has no row for it")
        whole, _, index = name.rpartition(".")
        if name in known:
            wanted = known[name].size
        elif whole in known and index.isdecimal():
            wanted = max(0, chunks.span(known[whole].size, int(index))[1])
        if wanted not in (None, size) or rows.blobs.get(name) not in (None, size):
            should = wanted if wanted not in (None, size) else rows.blobs[name]
            yield Finding("blob-size", f"cache: {name}", f"it has {size} bytes, it should have {should}")


def _versions(rows: Rows) -> dict[str, ObjectRow]:
    """The name of a whole blob to what is known of its version."""
    return {chunks.whole(row.file_id): row for row in rows.objects.values() if row.file_id}


def sums(rows: Rows, files: Files) -> Iterator[Sum]:
    """What has to be hashed: staged content and whole blobs. Chunks have no sum of their own."""
    tree = Names(rows)
    for ino, inode in rows.inodes.items():
        _, staged = places(inode)
        folder = "staged" if staged in files.staged else "scratch" if staged in files.scratch else ""
        if staged and folder and inode.sha1:
            yield Sum(folder, str(staged), inode.sha1, tree.where(ino))
    known = _versions(rows)
    for name, size in files.blobs.items():
        row = known.get(name)
        if row is not None and row.sha1 and row.size == size:
            yield Sum("cache", name, row.sha1, f"cache: {name}")


def wrong_sum(expected: Sum, found: str) -> Finding | None:
    """`found`: the file's SHA-1, or why it cannot be read."""
    if found == expected.sha1:
        return None
    rule = "blob-sum" if expected.folder == "cache" else "staged-sum"
    return Finding(
        rule, expected.where, f"the SHA-1 of {expected.folder}/{expected.name} is {found}, it should be {expected.sha1}"
    )


# ---------------------------------------------------------------- what has to go to the bucket


def _intents(tree: Names) -> Iterator[Finding]:
    """Every name's object is as the name says, or there is an intent to make it so."""
    rows = tree.rows
    for key, inode in tree.keys.items():
        if covers(rows.intents, key):
            continue
        if any(places(inode)):
            yield Finding("content-without-intent", key, "it has content that is not in B2, and nothing will upload it")
        elif inode.is_dir:
            marked = [row for each in _markers(key) if (row := _visible(rows, each)) is not None]
            if marked and all(row.attributes != attributes(inode) for row in marked):
                yield Finding("lost-intent", key, _difference(inode, marked[0]) + ", and nothing will change that")
        elif _out_of_line(inode, row := _visible(rows, key)):
            yield Finding("lost-intent", key, _difference(inode, row) + ", and nothing will change that")
    yield from _unmarked(tree)


def _unmarked(tree: Names) -> Iterator[Finding]:
    """An empty directory is kept alive by its marker alone."""
    rows = tree.rows
    alive = {ROOT}
    for key in (*rows.intents, *rows.ignored, *(key for key, row in rows.objects.items() if row.file_id)):
        directory = key
        while directory:  # whatever is below a directory says that it is there
            directory = names.split(directory)[0]
            inode = tree.keys.get(names.marker(directory))
            if inode is not None:
                alive.add(inode.ino)
    above = {ino: tree.named[ino][0][0] for ino in tree.paths if ino != ROOT and tree.named[ino]}
    # an incomplete one is known from a listing of the directory above it
    alive.update(ino for ino, inode in rows.inodes.items() if inode.is_dir and not inode.complete)
    for ino in list(alive):
        while ino in above and above[ino] not in alive:
            ino = above[ino]
            alive.add(ino)
    for key, inode in tree.keys.items():
        is_alive = inode.ino in alive or not inode.is_dir or covers(rows.intents, key)
        if not is_alive and above.get(inode.ino, ROOT) in alive:
            yield Finding("lost-intent", key, "B2 has nothing of this directory, and nothing will change that")


def _objects(tree: Names) -> Iterator[Finding]:
    """Every object that can be seen belongs to a name, or there is an intent to hide it."""
    rows = tree.rows
    for key, row in rows.objects.items():
        if row.file_id and key not in rows.ignored and not covers(rows.intents, key) and not _belongs(tree, key):
            yield Finding("lost-hide", key, "no path belongs to this object, and nothing will hide it")


def _markers(key: str) -> tuple[str, str]:
    """A directory's marker, and the form that S3 tools use."""
    return key, key[: -len(names.MARKER)]


def _belongs(tree: Names, key: str) -> bool:
    directory = names.marked_directory(key)
    return (key if directory is None else names.marker(directory)) in tree.keys


def _visible(rows: Rows, key: str) -> ObjectRow | None:
    row = rows.objects.get(key)
    return row if row is not None and row.file_id else None


def _out_of_line(inode: Inode, row: ObjectRow | None) -> bool:
    return plan(_summed(inode), row, cached=False, needed=False) is not Step.NOTHING


def _summed(inode: Inode) -> Inode:
    """With the sum of what is uploaded for it."""
    if inode.is_link and inode.target:
        return replace(inode, sha1=hashlib.sha1(inode.target.encode(), usedforsecurity=False).hexdigest())
    return inode


def _difference(inode: Inode, row: ObjectRow | None) -> str:
    if row is None:
        return "B2 has nothing there"
    if row.attributes != attributes(inode):
        return f"B2 has it with the attributes {row.attributes}, here they are {attributes(inode)}"
    return f"B2 has other content ({row.size} bytes) than is here ({inode.size} bytes)"


# ---------------------------------------------------------------- the bucket itself


def check_remote(rows: Rows, listed: Mapping[str, Version]) -> list[Finding]:
    """`listed`: all visible objects below the mount's prefix. Differences that somebody else made are notes."""
    if rows.corruption:
        return []
    tree = Names(rows)
    return [*_remote_names(tree, listed), *_remote_objects(tree, listed)]


def _remote_names(tree: Names, listed: Mapping[str, Version]) -> Iterator[Finding]:
    rows = tree.rows
    for key, inode in tree.keys.items():
        row = _visible(rows, key)
        if covers(rows.intents, key) or any(places(inode)) or (inode.is_dir and row is None):
            continue  # it is still to go there, or nobody said that it is there
        version = listed.get(key)
        if version is None:
            yield Finding("remote-missing", key, "B2 shows nothing there")
        elif is_news(version, rows.objects.get(key), rows.counter):
            yield Finding("remote-changed", key, f"somebody put another version there ({version.size} bytes)")
        elif row is not None and version.file_id != row.file_id:
            yield Finding("remote-older", key, "B2 shows a version that is older than the one we know of")
        elif what := _remote_difference(inode, version):
            yield Finding("remote-differs", key, what)


def _remote_difference(inode: Inode, version: Version) -> str:
    """How an object differs from its name here, '' if it does not. What the object leaves unsaid is as here."""
    inode = _summed(inode)
    if not inode.is_dir and inode.size != version.size:
        return f"B2 has {version.size} bytes, here it has {inode.size}"
    if not inode.is_dir and inode.sha1 and version.sha1 and inode.sha1 != version.sha1:
        return f"B2 has the SHA-1 {version.sha1}, here it is {inode.sha1}"
    if INFO_B2FS in version.info:
        described = from_version(version, inode.ino, Defaults(inode.uid, inode.gid))
        if attributes(described) != attributes(inode):
            return f"B2 has the attributes {attributes(described)}, here they are {attributes(inode)}"
    return ""


def _remote_objects(tree: Names, listed: Mapping[str, Version]) -> Iterator[Finding]:
    rows, unseen = tree.rows, []
    is_listed = rows.meta.get("listed") == "1"
    for key, version in listed.items():
        known = _belongs(tree, key) or covers(rows.intents, key) or key in rows.ignored
        if known or names.unusable(key) is not None:
            continue
        row = rows.objects.get(key)
        ours = operation_of(version.info).startswith(rows.meta.get("mount_id", "") + ".")
        if row is not None and is_news(version, row, rows.counter):
            yield Finding("remote-new", key, "somebody put an object where we had removed one")
        elif row is not None or (ours and is_listed):  # else the next listing finds it: a name that was forgotten
            yield Finding("remote-left", key, "B2 shows an object of ours that no path belongs to")
        else:
            unseen.append(key)
    if is_listed:
        for key in unseen:
            yield Finding("remote-new", key, "somebody put an object there since the last listing")
    elif unseen:
        yield Finding("remote-new", unseen[0], f"{len(unseen)} objects, this one and others, were never listed yet")
