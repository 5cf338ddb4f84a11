"""What leaves memory, and what may not."""

from __future__ import annotations

import stat
import sys

import pytest
from msgspec.structs import replace

from b2fs.core.change import Change
from b2fs.core.inode import ROOT, Inode
from b2fs.core.tree import Entries, Node, Tree
from b2fs.core.unload import shrink

FILE, DIR = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755


def _inode(ino: int, mode: int = FILE, nlink: int = 1) -> Inode:
    return Inode(ino, mode, 0, 0, nlink, 3, 1, 1, 1, complete=stat.S_ISDIR(mode))


def _load(tree: Tree, ino: int, *rows: tuple[bytes, Inode]) -> None:
    entries = Entries(ino)
    entries.add(rows)
    tree.load(tree.node(ino), entries)


@pytest.fixture
def tree() -> Tree:
    """The root with the directories 2 and 3; file 4 in the one, 5 in the other, and 6 in both."""
    tree = Tree(_inode(ROOT, DIR, 4))
    _load(tree, ROOT, (b"d", _inode(2, DIR, 2)), (b"e", _inode(3, DIR, 2)))
    _load(tree, 2, (b"x", _inode(4)), (b"z", _inode(6, nlink=2)))
    _load(tree, 3, (b"y", _inode(5)), (b"z", _inode(6, nlink=2)))
    return tree


def _empty(tree: Tree) -> None:
    for _ in range(3):  # as often as directories lie in one another
        shrink(tree, 0)


def test_all_goes_that_nobody_uses(tree: Tree) -> None:
    """The lowest first, so in two rounds; the root's node stays, and the files with several names are told."""
    assert shrink(tree, 0) == [6]
    assert set(tree.nodes) == {ROOT, 2, 3}
    shrink(tree, 0)
    assert set(tree.nodes) == {ROOT}
    assert tree.node(ROOT).children is None


def test_no_more_goes_than_has_to(tree: Tree) -> None:
    """The directory that was loaded first goes first."""
    shrink(tree, 5)
    assert set(tree.nodes) == {ROOT, 2, 3, 5, 6}
    assert (tree.node(2).children, tree.node(6).parents) == (None, [(3, b"z")])


def test_second_chance(tree: Tree) -> None:
    """A directory that somebody has looked into is passed over once."""
    tree.node(ROOT).used = True
    tree.node(2).used = True
    shrink(tree, 5)
    assert set(tree.nodes) == {ROOT, 2, 3, 4, 6}
    shrink(tree, 4)
    assert 4 not in tree.nodes


@pytest.mark.parametrize("field, value", [("handles", 1), ("fd", 7)])
def test_what_is_open_stays(tree: Tree, field: str, value: int) -> None:
    setattr(tree.node(4), field, value)
    _empty(tree)
    assert set(tree.nodes) == {ROOT, 2, 3, 4, 6}
    setattr(tree.node(4), field, -1 if field == "fd" else 0)
    _empty(tree)
    assert set(tree.nodes) == {ROOT}


def test_open_directory_stays(tree: Tree) -> None:
    tree.node(2).handles = 1
    _empty(tree)
    assert set(tree.nodes) == {ROOT, 2, 3, 4, 6}


def test_what_is_being_written_stays(tree: Tree) -> None:
    """Its size is in memory and on its scratch file, not in its row."""
    tree.node(4).inode = replace(tree.node(4).inode, scratch=9)
    _empty(tree)
    assert 4 in tree.nodes


def test_what_an_operation_refers_to_stays(tree: Tree) -> None:
    """Else there would be two nodes of one inode."""

    def suspended(node: Node) -> object:
        yield node

    for ino, kept in ((2, {2, 4, 6}), (4, {2, 4, 6})):
        operation = suspended(tree.node(ino))
        next(operation)  # type: ignore[call-overload]
        _empty(tree)
        assert set(tree.nodes) == {ROOT, 3, *kept}
        del operation
    _empty(tree)
    assert set(tree.nodes) == {ROOT}


def test_lookups_are_remembered(tree: Tree) -> None:
    """The kernel goes on counting while an inode is not in memory."""
    tree.node(4).lookups, tree.node(2).lookups, tree.node(6).lookups = 3, 2, 1
    _empty(tree)
    assert [tree.lookups(ino) for ino in (2, 4, 5, 6)] == [2, 3, 0, 1]
    tree.forget(4, 1)
    tree.forget(6, 1)
    tree.forget(5, 1)
    assert [tree.lookups(ino) for ino in (2, 4, 5, 6)] == [2, 2, 0, 0]
    _load(tree, ROOT, (b"d", _inode(2, DIR, 2)), (b"e", _inode(3, DIR, 2)))
    _load(tree, 2, (b"x", _inode(4)))
    assert (tree.node(2).lookups, tree.node(2).denied, tree.node(4).lookups) == (2, True, 2)
    assert not tree.node(3).denied
    assert tree.remembered.among(range(10)) == [], "a node has its own count"


def test_more_forgotten_than_told(tree: Tree) -> None:
    """A count below nothing is nothing, in memory and out of it."""
    tree.node(4).lookups, tree.node(5).lookups = -1, 1
    _empty(tree)
    tree.forget(5, 2)
    assert [tree.lookups(ino) for ino in (4, 5)] == [0, 0]


def test_name_takes_no_more_room_than_it_needs(tree: Tree) -> None:
    """A list that was appended to has room for three more: in a directory of 100,000 names that is 2 MB."""
    assert sys.getsizeof(tree.node(4).parents) == sys.getsizeof([None])


def test_file_without_its_directory(tree: Tree) -> None:
    """It comes by its number, takes part when its directory comes, and goes like the others."""
    _empty(tree)
    tree.remembered.put(4, 1)
    node = tree.adopt(_inode(4))
    assert (node.lookups, node.parents) == (1, [])
    _empty(tree)
    assert tree.nodes[4] is node, "somebody refers to it"
    _load(tree, ROOT, (b"d", _inode(2, DIR, 2)), (b"e", _inode(3, DIR, 2)))
    _load(tree, 2, (b"x", _inode(4)))
    assert tree.nodes[4] is node
    assert node.parents == [(2, b"x")]
    del node
    shrink(tree, 3)
    assert set(tree.nodes) == {ROOT, 2, 3}
    tree.adopt(_inode(4))
    shrink(tree, 3)
    assert set(tree.nodes) == {ROOT, 2, 3}


def test_new_directory_goes_too(tree: Tree) -> None:
    """One that was made here was never loaded."""
    new = _inode(7, DIR, 2)
    tree.apply(Change(inodes=[new], links=[(ROOT, b"n", 7)]))
    assert tree.node(7).children == {}
    _empty(tree)
    assert set(tree.nodes) == {ROOT}


def test_directory_that_went(tree: Tree) -> None:
    """One that was removed is nobody's concern any more; one that somebody is still in stays."""
    tree.node(2).lookups = 1
    tree.apply(Change(unlinks=[(ROOT, b"d"), (ROOT, b"e")], gone=[2, 3]))
    _empty(tree)
    assert tree.node(2).children is not None
    assert 3 not in tree.nodes
