"""The namespace in memory: what each plan answers and changes, and that it is POSIX's tree whatever is done to it."""

from __future__ import annotations

import bisect
import stat
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec.structs import replace

from b2fs.core import names, xattrs
from b2fs.core.change import Change
from b2fs.core.inode import ROOT, Inode, largest_info
from b2fs.core.tree import Entries, Node, Tree
from b2fs.errors import (
    B2fsError,
    BadName,
    Exists,
    Invalid,
    IsDirectory,
    NameTooLong,
    NoAttribute,
    NoSpace,
    NotDirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
)

NOW = 1_000
FILE, DIR, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777


class World:
    """A tree that is used by paths; inode numbers count up."""

    def __init__(self, *paths: str, prefix: str = "") -> None:
        root = Inode(ROOT, DIR, 0, 0, 2, 0, 1, 1, 1, complete=True)
        self.tree = Tree(root, prefix)
        self.tree.nodes[ROOT].children = {}
        self.next = 1
        for path in paths:
            self.make(path.rstrip("/"), DIR if path.endswith("/") else FILE)

    def node(self, path: str) -> Node:
        node = self.tree.node(ROOT)
        for part in path.split("/") if path else ():
            child = self.tree.child(node, part.encode())
            if child is None:
                raise NotFound(path)
            node = child
        return node

    def parent(self, path: str) -> tuple[Node, bytes]:
        directory, _, name = path.rpartition("/")
        node = self.node(directory)
        if not node.inode.is_dir:
            raise NotDirectory(directory)
        return node, name.encode()

    def commit(self, change: Change) -> Change:
        self.tree.apply(change)
        return change

    def make(self, path: str, mode: int, **more: object) -> Change:
        self.next += 1
        return self.commit(self.tree.plan_create(*self.parent(path), self.next, mode, 5, 6, NOW, **more))  # type: ignore[arg-type]

    def unlink(self, path: str) -> Change:
        return self.commit(self.tree.plan_unlink(*self.parent(path), NOW))

    def rmdir(self, path: str) -> Change:
        return self.commit(self.tree.plan_rmdir(*self.parent(path), NOW))

    def rename(self, old: str, new: str, **flags: bool) -> Change:
        return self.commit(self.tree.plan_rename(*self.parent(old), *self.parent(new), NOW, **flags))

    def paths(self) -> set[str]:
        """All paths, directories with a trailing slash."""
        found: set[str] = set()

        def walk(node: Node, path: str) -> None:
            for name, ino in (node.children or {}).items():
                child = self.tree.nodes[ino]
                below = f"{path}/{name.decode()}" if path else name.decode()
                found.add(below + "/" * child.inode.is_dir)
                walk(child, below)

        walk(self.tree.node(ROOT), "")
        return found


# ---------------------------------------------------------------- errors

REFUSED: dict[str, tuple[type[B2fsError], Callable[[World], object]]] = {
    "create over a file": (Exists, lambda w: w.make("f", FILE)),
    "create over a directory": (Exists, lambda w: w.make("d", FILE)),
    "mkdir over a file": (Exists, lambda w: w.make("f", DIR)),
    "create with a bad name": (BadName, lambda w: w.make("a\n", FILE)),
    "create of a marker": (BadName, lambda w: w.make("d/.bzEmpty", FILE)),
    "create with a long name": (NameTooLong, lambda w: w.make("x" * 251, FILE)),
    "unlink of nothing": (NotFound, lambda w: w.unlink("d/none")),
    "unlink of a directory": (IsDirectory, lambda w: w.unlink("d")),
    "rmdir of nothing": (NotFound, lambda w: w.rmdir("none")),
    "rmdir of a file": (NotDirectory, lambda w: w.rmdir("f")),
    "rmdir of a full directory": (NotEmpty, lambda w: w.rmdir("d")),
    "rename of nothing": (NotFound, lambda w: w.rename("none", "x")),
    "rename into itself": (Invalid, lambda w: w.rename("d", "d/e/x")),
    "rename into its own entry": (Invalid, lambda w: w.rename("d", "d/x")),
    "file over directory": (IsDirectory, lambda w: w.rename("f", "empty")),
    "directory over file": (NotDirectory, lambda w: w.rename("d", "f")),
    "directory over a full one": (NotEmpty, lambda w: w.rename("empty", "d")),
    "over its own ancestor": (NotEmpty, lambda w: w.rename("d/e", "d")),
    "file over its own ancestor": (IsDirectory, lambda w: w.rename("d/f", "d")),
    "to a bad name": (BadName, lambda w: w.rename("f", "a\x7f")),
    "noreplace over a file": (Exists, lambda w: w.rename("f", "g", noreplace=True)),
    "noreplace onto itself": (Exists, lambda w: w.rename("f", "f", noreplace=True)),
    "noreplace over an empty directory": (Exists, lambda w: w.rename("d", "empty", noreplace=True)),
    "exchange with nothing": (NotFound, lambda w: w.rename("f", "none", exchange=True)),
    "exchange of nothing": (NotFound, lambda w: w.rename("none", "f", exchange=True)),
    "exchange with its own entry": (Invalid, lambda w: w.rename("d", "d/f", exchange=True)),
    "exchange with its own ancestor": (Invalid, lambda w: w.rename("d/e", "d", exchange=True)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    """Each rule of POSIX and of B2's names has its error, and a refused plan changes nothing."""
    error, action = REFUSED[case]
    world = World("f", "g", "empty/", "d/", "d/e/", "d/f")
    before = {ino: node.inode for ino, node in world.tree.nodes.items()}
    with pytest.raises(error) as raised:
        action(world)
    assert type(raised.value) is error
    assert {ino: node.inode for ino, node in world.tree.nodes.items()} == before
    assert world.paths() == {"f", "g", "empty/", "d/", "d/e/", "d/f"}


def test_removed_directory_takes_nothing_more() -> None:
    """A directory that is open but has no name any more gets no new entries."""
    world = World("d/", "f")
    directory = world.node("d")
    directory.lookups = 1
    world.rmdir("d")
    with pytest.raises(NotFound):
        world.tree.plan_create(directory, b"x", 99, FILE, 0, 0, NOW)
    with pytest.raises(NotFound):
        world.tree.plan_rename(world.node(""), b"f", directory, b"f", NOW)


def test_gone_inode_is_not_found() -> None:
    """A number that nobody holds is NotFound."""
    world = World("f")
    ino = world.node("f").ino
    world.unlink("f")
    with pytest.raises(NotFound):
        world.tree.node(ino)


# ---------------------------------------------------------------- changes


def test_create_file() -> None:
    """The new row has a scratch file; its key and the marker of its directory are dirty; the directory's times move."""
    world = World("d/")
    change = world.make("d/x", FILE)
    child, directory = world.node("d/x").inode, world.node("d").inode
    assert (child.mode, child.uid, child.gid, child.nlink, child.size, child.scratch) == (FILE, 5, 6, 1, 0, child.ino)
    assert change.links == [(directory.ino, b"x", child.ino)]
    assert set(change.dirty) == {"d/x", "d/.bzEmpty"}
    assert (directory.mtime_ns, directory.nlink) == (NOW, 2)


def test_create_directory() -> None:
    """Two links, complete and empty at once; the parent gets a link; the marker's key is dirty."""
    world = World()
    change = world.make("d", DIR)
    node = world.node("d")
    assert (node.inode.nlink, node.inode.complete, node.children) == (2, True, {})
    assert world.node("").inode.nlink == 3
    assert set(change.dirty) == {"d/.bzEmpty", ".bzEmpty"}


def test_create_link() -> None:
    """A symlink has its target, and the size of it in bytes; no scratch file."""
    world = World()
    world.make("l", LINK, target="ж")
    inode = world.node("l").inode
    assert (inode.target, inode.size, inode.scratch, inode.is_link) == ("ж", 2, 0, True)


def test_group_of_a_setgid_directory_is_inherited() -> None:
    """The directory's group goes to new entries, the bit itself to new directories only."""
    world = World("d/")
    node = world.node("d")
    node.inode = replace(node.inode, mode=DIR | stat.S_ISGID, gid=77)
    world.make("d/f", FILE)
    world.make("d/e", DIR)
    assert (world.node("d/f").inode.gid, world.node("d/f").inode.mode) == (77, FILE)
    assert (world.node("d/e").inode.gid, world.node("d/e").inode.mode) == (77, DIR | stat.S_ISGID)


def test_unlink() -> None:
    """The inode goes with its only name; key and directory marker are dirty."""
    world = World("d/", "d/x")
    ino = world.node("d/x").ino
    change = world.unlink("d/x")
    assert (change.gone, change.unlinks) == ([ino], [(world.node("d").ino, b"x")])
    assert set(change.dirty) == {"d/x", "d/.bzEmpty"}
    assert ino not in world.tree.nodes


def test_unlinked_file_that_is_open_stays_in_memory() -> None:
    """It has no name and no link, and goes when it is let go."""
    world = World("x")
    node = world.node("x")
    node.handles = 1
    world.unlink("x")
    assert world.tree.node(node.ino) is node
    assert (node.linked, node.parents, world.tree.keys(node)) == (False, [], [])
    node.handles = 0
    world.tree.discard(node)
    assert node.ino not in world.tree.nodes


def test_rmdir() -> None:
    """The parent loses a link; the removed marker's key is dirty."""
    world = World("d/", "d/e/")
    change = world.rmdir("d/e")
    assert world.node("d").inode.nlink == 2
    assert set(change.dirty) == {"d/e/.bzEmpty", "d/.bzEmpty"}


def test_rename_file() -> None:
    """Both keys are dirty, the ctime moves, the mtime does not; the new key is planned before the old one."""
    world = World("a/", "b/", "a/x")
    before = world.node("a/x").inode
    change = world.rename("a/x", "b/y")
    after = world.node("b/y").inode
    assert (after.ino, after.mtime_ns, after.ctime_ns) == (before.ino, before.mtime_ns, NOW)
    assert set(change.dirty) == {"b/y", "a/x", "a/.bzEmpty", "b/.bzEmpty"}
    assert change.gone == []


def test_rename_over_a_file() -> None:
    """What was there is gone in the same change."""
    world = World("a", "b")
    target = world.node("b").ino
    change = world.rename("a", "b")
    assert change.gone == [target]
    assert world.paths() == {"b"}


def test_rename_directory() -> None:
    """One dentry, two subtree keys, whatever is below; a link moves from one parent to the other."""
    world = World("a/", "b/", "a/d/", "a/d/x", "a/d/e/")
    change = world.rename("a/d", "b/d2")
    assert len(change.links) == len(change.unlinks) == 1
    assert {"a/d/", "b/d2/"} <= set(change.dirty)
    assert (world.node("a").inode.nlink, world.node("b").inode.nlink) == (2, 3)
    assert world.tree.keys(world.node("b/d2/x")) == ["b/d2/x"]
    assert world.tree.keys(world.node("b/d2/e")) == ["b/d2/e/.bzEmpty"]


def test_rename_onto_itself_is_nothing() -> None:
    """The same name, or two names of one file: an empty change."""
    world = World("f", "d/")
    assert world.rename("f", "f") == Change()
    assert world.rename("d", "d") == Change()


def test_exchange_file_and_directory() -> None:
    """Both names stay and lead to the other; links follow the directory."""
    world = World("a/", "b/", "a/f", "b/d/", "b/d/x")
    change = world.rename("a/f", "b/d", exchange=True)
    assert world.paths() == {"a/", "b/", "a/f/", "a/f/x", "b/d"}
    assert (world.node("a").inode.nlink, world.node("b").inode.nlink) == (3, 2)
    assert change.unlinks == []
    assert {"a/f", "b/d", "a/f/", "b/d/"} <= set(change.dirty)


def test_key_too_long_for_the_prefix() -> None:
    """The mount's prefix counts: what would not fit into a key is refused where it is made or moved to."""
    world = World("d/", "x", prefix="p" * 980 + "/")
    with pytest.raises(NameTooLong):
        world.make("n" * 20, FILE)
    with pytest.raises(NameTooLong):
        world.rename("x", "d/" + "n" * 20)


def test_attributes_make_the_keys_dirty() -> None:
    """A file's own key, a directory's marker, nothing for what has no name."""
    world = World("d/", "d/x")
    node = world.node("d/x")
    assert world.tree.plan_attributes(node, node.inode).dirty == ["d/x"]
    assert world.tree.plan_attributes(world.node("d"), world.node("d").inode).dirty == ["d/.bzEmpty"]
    assert world.tree.plan_attributes(world.node(""), world.node("").inode).dirty == [".bzEmpty"]
    node.handles = 1
    world.unlink("d/x")
    assert world.tree.plan_attributes(node, node.inode).dirty == []


def test_link() -> None:
    """A second name: the link count, the ctime and the directory's times change; both keys are dirty, for both objects get
    the link id. A third one dirties its own key alone.
    """
    world = World("d/", "x")
    node = world.node("x")
    change = world.commit(world.tree.plan_link(node, *world.parent("d/y"), "ab", NOW + 5))
    assert set(change.dirty) == {"d/y", "x", "d/.bzEmpty"}
    assert world.node("d/y") is node
    assert (node.inode.nlink, node.inode.ctime_ns, node.inode.link) == (2, NOW + 5, "ab")
    assert world.node("d").inode.mtime_ns == NOW + 5
    assert world.tree.keys(node) == ["x", "d/y"]
    change = world.commit(world.tree.plan_link(node, *world.parent("z"), "cd", NOW + 6))
    assert set(change.dirty) == {"z", ".bzEmpty"}
    assert (node.inode.nlink, node.inode.link) == (3, "ab")
    world.unlink("x")
    assert world.tree.path(node) == "d/y"


def test_two_names_of_one_file_change_nothing_between_them() -> None:
    """Renaming one onto the other, or exchanging them, is nothing, as POSIX and Linux have it; not replacing is EEXIST."""
    world = World("x")
    world.commit(world.tree.plan_link(world.node("x"), *world.parent("y"), "ab", NOW))
    assert world.rename("x", "y") == world.rename("x", "y", exchange=True) == Change()
    with pytest.raises(Exists):
        world.rename("x", "y", noreplace=True)


def test_no_link() -> None:
    """A name that is taken, a directory, a file or directory that was removed, and one of unknown content have none."""
    world = World("d/", "x", "y", "gone/", "big")
    tree = world.tree
    for old, new, error in (
        ("x", "y", Exists),
        ("x", "x", Exists),
        ("d", "e", NotPermitted),
        ("x", "s" * 251, NameTooLong),
    ):
        with pytest.raises(error):
            tree.plan_link(world.node(old), *world.parent(new), "ab", NOW)
    gone, file = world.node("gone"), world.node("y")
    file.handles = gone.handles = 1
    world.rmdir("gone")
    world.unlink("y")
    with pytest.raises(NotFound):
        tree.plan_link(world.node("x"), gone, b"z", "ab", NOW)
    with pytest.raises(NotFound):
        tree.plan_link(file, *world.parent("z"), "ab", NOW)
    big = world.node("big")
    big.inode = replace(big.inode, scratch=0, size=5, file_id="id")
    with pytest.raises(NotPermitted):
        tree.plan_link(big, *world.parent("z"), "ab", NOW)


def test_names_in_directories_that_are_not_loaded() -> None:
    """A change of a file makes all its keys dirty; of names that are not in memory the journal says them."""
    world = World("x")
    node = world.node("x")
    node.inode = replace(node.inode, nlink=2)
    world.tree.all_keys = lambda ino: ["x", "far/y"] if ino == node.ino else []
    assert world.tree.plan_attributes(node, node.inode).dirty == ["x", "far/y"]
    world.unlink("x")
    world.tree.all_keys = lambda ino: ["far/y"]
    assert world.tree.path(node) == "far/y"


def test_extended_attribute() -> None:
    """Setting one changes the row and its ctime, not the mtime, and makes the key dirty; removing gives what was before."""
    world = World("d/", "d/x")
    for path, key in (("d/x", "d/x"), ("d", "d/.bzEmpty"), ("", ".bzEmpty")):
        before = world.node(path).inode
        change = world.commit(world.tree.plan_xattr(world.node(path), b"user.a", b"1", NOW + 5))
        assert (change.dirty, change.inodes[0].ctime_ns) == ([key], NOW + 5)
        assert xattrs.unpack(world.node(path).inode.xattrs) == {b"user.a": b"1"}
        world.commit(world.tree.plan_xattr(world.node(path), b"user.a", None, before.ctime_ns))
        assert world.node(path).inode == before
        with pytest.raises(NoAttribute):
            world.tree.plan_xattr(world.node(path), b"user.a", None, NOW)


def test_extended_attribute_of_what_has_none() -> None:
    """A link has no user attributes, as on any Linux file system."""
    world = World()
    world.make("l", LINK, target="t")
    with pytest.raises(NotPermitted):
        world.tree.plan_xattr(world.node("l"), b"user.a", b"1", NOW)


@pytest.mark.parametrize("prefix", ["", "p" * 300 + "/"])
def test_room_for_extended_attributes(prefix: str) -> None:
    """They share B2's header with the path: one byte more is NoSpace and changes nothing, a smaller value has room again;
    a file that is full takes no longer name.
    """
    world = World("x", prefix=prefix)
    node = world.node("x")

    def fits(size: int) -> bool:
        try:
            world.tree.plan_xattr(node, b"user.a", b"v" * size, NOW)
        except NoSpace:
            return False
        return True

    most = bisect.bisect(range(2048), 0, key=lambda size: 0 if fits(size) else 1) - 1
    assert 2048 - 400 - len(prefix) < most < 2048 - len(prefix)
    world.commit(world.tree.plan_xattr(node, b"user.a", b"v" * most, NOW))
    names.check_key(prefix, "x", largest_info(node.inode))
    with pytest.raises(NoSpace):
        world.tree.plan_xattr(node, b"user.b", b"", NOW)
    world.rename("x", "y")
    with pytest.raises(NameTooLong):
        world.rename("y", "yy")
    world.commit(world.tree.plan_xattr(node, b"user.a", b"v" * (most - 1), NOW))
    world.rename("y", "yy")


def test_extended_attribute_of_an_unlinked_file() -> None:
    """A file that is only open any more has attributes too, and no key."""
    world = World("x")
    node = world.node("x")
    node.handles = 1
    world.unlink("x")
    change = world.commit(world.tree.plan_xattr(node, b"user.a", b"1", NOW))
    assert (change.dirty, node.inode.xattrs) == ([], "a~_1")
    with pytest.raises(NoSpace):
        world.tree.plan_xattr(node, b"user.a", b"1" * 2048, NOW)


def test_directory_that_is_not_loaded_is_not_proven_empty() -> None:
    """It can be neither removed nor replaced."""
    world = World("d/", "e/")
    root = world.node("")
    world.node("d").children = None
    with pytest.raises(NotEmpty):
        world.tree.plan_rmdir(root, b"d", NOW)
    with pytest.raises(NotEmpty):
        world.tree.plan_rename(root, b"e", root, b"d", NOW)


def test_change_in_a_directory_that_is_not_loaded() -> None:
    """Its rows are the journal's alone: memory shows them once the directory is loaded, and keeps newer nodes."""
    world = World("d/")
    directory = world.node("d")
    directory.children = None
    fresh = Inode(50, FILE, 0, 0, 1, 3, 1, 1, 1)
    world.tree.apply(Change(inodes=[fresh], links=[(directory.ino, b"x", 50)]))
    assert 50 not in world.tree.nodes
    entries = Entries(directory.ino)
    entries.add([(b"x", fresh)])
    world.tree.load(directory, entries)
    assert world.node("d/x").inode is fresh
    world.tree.load(directory, Entries(directory.ino))
    assert world.node("d/x").inode is fresh


# ---------------------------------------------------------------- any sequence

PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)


class TreeMachine(RuleBasedStateMachine):
    """The tree against a dictionary of paths: True is a directory."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.model: dict[str, bool] = {}

    # the model, in the order in which the kernel checks

    def _parent(self, path: str) -> None:
        parts = path.split("/")[:-1]
        for end in range(1, len(parts) + 1):
            directory = "/".join(parts[:end])
            if directory not in self.model:
                raise NotFound(directory)
            if not self.model[directory]:
                raise NotDirectory(directory) if end == len(parts) else NotFound(directory)

    def _below(self, path: str) -> list[str]:
        return [other for other in self.model if other.startswith(path + "/")]

    def _make(self, path: str, is_dir: bool) -> None:
        self._parent(path)
        if path in self.model:
            raise Exists(path)
        self.model[path] = is_dir

    def _remove(self, path: str, is_dir: bool) -> None:
        self._parent(path)
        if path not in self.model:
            raise NotFound(path)
        if self.model[path] != is_dir:
            raise NotDirectory(path) if is_dir else IsDirectory(path)
        if self._below(path):
            raise NotEmpty(path)
        del self.model[path]

    def _rename(self, old: str, new: str, noreplace: bool, exchange: bool) -> None:
        self._parent(old)
        self._parent(new)
        if old not in self.model:
            raise NotFound(old)
        if self.model[old] and new.startswith(old + "/"):
            raise Invalid(old)
        if exchange:
            if new not in self.model:
                raise NotFound(new)
            if self.model[new] and old.startswith(new + "/"):
                raise Invalid(new)
            one = {path: self.model.pop(path) for path in [old, *self._below(old)]}
            two = {path: self.model.pop(path) for path in [new, *self._below(new)]} if new != old else {}
            self.model |= {new + path[len(old) :]: kind for path, kind in one.items()}
            self.model |= {old + path[len(new) :]: kind for path, kind in two.items()}
            return
        if new in self.model:
            if noreplace:
                raise Exists(new)
            if new == old:
                return
            if self.model[new]:
                if not self.model[old]:
                    raise IsDirectory(new)
                if self._below(new):
                    raise NotEmpty(new)
            elif self.model[old]:
                raise NotDirectory(new)
        moved = {path: self.model.pop(path) for path in [old, *self._below(old)]}
        self.model |= {new + path[len(old) :]: kind for path, kind in moved.items()}

    def _both(self, real: Callable[[], object], model: Callable[[], object]) -> None:
        errors = []
        for action in (model, real):
            try:
                action()
                errors.append(None)
            except B2fsError as error:
                errors.append(type(error))
        assert errors[0] is errors[1], f"the model says {errors[0]}, the tree {errors[1]}"

    @rule(path=PATHS, is_dir=st.booleans())
    def make(self, path: str, is_dir: bool) -> None:
        self._both(lambda: self.world.make(path, DIR if is_dir else FILE), lambda: self._make(path, is_dir))

    @rule(path=PATHS)
    def unlink(self, path: str) -> None:
        self._both(lambda: self.world.unlink(path), lambda: self._remove(path, False))

    @rule(path=PATHS)
    def rmdir(self, path: str) -> None:
        self._both(lambda: self.world.rmdir(path), lambda: self._remove(path, True))

    @rule(old=PATHS, new=PATHS, flags=st.sampled_from([(False, False)] * 3 + [(True, False), (False, True)]))
    def rename(self, old: str, new: str, flags: tuple[bool, bool]) -> None:
        noreplace, exchange = flags
        self._both(
            lambda: self.world.rename(old, new, noreplace=noreplace, exchange=exchange),
            lambda: self._rename(old, new, noreplace, exchange),
        )

    @invariant()
    def same_tree(self) -> None:
        assert self.world.paths() == {path + "/" * is_dir for path, is_dir in self.model.items()}

    @invariant()
    def consistent(self) -> None:
        nodes = self.world.tree.nodes
        assert len(nodes) == len(self.model) + 1, "nothing that has no name is kept"
        for ino, node in nodes.items():
            assert node.ino == ino
            for parent, name in node.parents:
                assert (nodes[parent].children or {})[name] == ino
            assert len(node.parents) == int(ino != ROOT)
            for name, child in (node.children or {}).items():
                assert (ino, name) in nodes[child].parents
            if node.inode.is_dir:
                subdirectories = sum(nodes[child].inode.is_dir for child in (node.children or {}).values())
                assert node.inode.nlink == 2 + subdirectories
            else:
                assert node.inode.nlink == 1


TestTreeMachine = pytest.mark.slow(TreeMachine.TestCase)
TestTreeMachine.settings = settings(max_examples=100, stateful_step_count=30)
