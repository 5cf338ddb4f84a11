"""What leaves memory: directories that nobody has looked into for long, and what they name. The journal has it all.

Rules
  A directory is unloaded with all its entries or not at all, the lowest first, and a clock with a second chance
  (`Node.used`) chooses which.
  Nothing is dropped that memory alone knows: what is open or being written (the stat of a scratch file is not in its row).
  Nothing is dropped that an operation refers to: else there would be two nodes of one inode. Operations hold nodes
  across suspensions in their local variables, and Python counts those references: a node that has more of
  them than the tree's one is in use.
  How often the kernel was told of an inode is remembered: it may ask for it again by its number.
"""

from __future__ import annotations

import sys

from b2fs.core.inode import ROOT, Inode
from b2fs.core.tree import Node, Tree

_STEPS = 64
"""Directories that are looked at in one go."""


def _references(nodes: dict[int, Node], ino: int) -> int:
    return sys.getrefcount(nodes[ino])


_UNUSED = _references({ROOT: Node(Inode(ROOT, 0, 0, 0, 0, 0, 0, 0, 0))}, ROOT)
"""References to a node that only the tree holds."""


def shrink(tree: Tree, most: int) -> list[int]:
    """Leave `most` nodes in memory if that many can go in a few steps; which of those that went have several names."""
    linked: list[int] = []
    for _ in range(min(_STEPS, len(tree.orphans))):
        if len(tree.nodes) <= most:
            return linked
        ino = tree.orphans.popleft()
        if ino not in tree.nodes or tree.nodes[ino].parents:
            continue  # it is gone, or its directory came
        if _is_busy(tree, ino):
            tree.orphans.append(ino)
        else:
            _drop(tree, ino, linked)
    for _ in range(min(_STEPS, len(tree.order))):
        if len(tree.nodes) <= most:
            return linked
        ino = tree.order.popleft()
        if ino not in tree.nodes or tree.nodes[ino].children is None:
            continue  # it is gone
        if not _unload(tree, ino, linked):
            tree.order.append(ino)
    return linked


def _unload(tree: Tree, ino: int, linked: list[int]) -> bool:
    if _references(tree.nodes, ino) > _UNUSED:
        return False
    directory = tree.nodes[ino]
    was_used, directory.used = directory.used, False
    children = directory.children or {}
    if was_used or directory.handles or not directory.linked or any(_is_busy(tree, each) for each in children.values()):
        return False
    directory.children = None
    for name, child in children.items():
        tree.nodes[child].parents.remove((ino, name))
        if not tree.nodes[child].parents:
            _drop(tree, child, linked)
    return True


def _is_busy(tree: Tree, ino: int) -> bool:
    if _references(tree.nodes, ino) > _UNUSED:
        return True
    node = tree.nodes[ino]
    return bool(node.handles or node.fd >= 0 or node.inode.scratch or node.children is not None or not node.linked)


def _drop(tree: Tree, ino: int, linked: list[int]) -> None:
    node = tree.nodes.pop(ino)
    if node.lookups > 0:
        tree.remembered.put(ino, node.lookups)
    if node.inode.nlink > 1 and not node.inode.is_dir:
        linked.append(ino)
