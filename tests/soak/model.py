"""A writer's tree as it must be: every system call that returned, and at most one that has not.

Rules
  A call changes the model when it has returned, never before. One that was cut off by a kill is the tree's `pending`
  call: afterwards the mount may show it done, not done, or (a write) done up to some byte; the model then follows
  what is there (`Tree.settle`).
  A stamp is raised before and after each call that touches a node; it is odd while that call runs. A reader that
  found the same even stamps, of the node and of all directories above it, before and after has read what is here.
  A time is None while nobody can know it: from a write until the file was closed.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


def content(label: str, size: int) -> bytes:
    """Bytes that only this label has; whoever meets them knows where they belong."""
    head = f"[{label}]".encode()
    return (head + hashlib.shake_128(label.encode()).digest(max(0, size - len(head))))[:size]


@dataclass(eq=False)
class Node:
    kind: str
    """'file', 'dir' or 'link'."""
    mode: int
    data: bytes = b""
    """A file's bytes, a link's target."""
    mtime_ns: int | None = None
    children: dict[str, Node] = field(default_factory=dict)
    parent: Node | None = None
    name: str = ""
    stamp: int = 0

    def path(self) -> str:
        return f"{self.parent.path()}/{self.name}" if self.parent else self.name

    def chain(self) -> Iterator[Node]:
        """The node and all directories above it."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent

    def signature(self) -> tuple[tuple[int, int], ...]:
        return tuple((id(node), node.stamp) for node in self.chain())

    def is_quiet(self) -> bool:
        return not any(node.stamp % 2 for node in self.chain())

    def add(self, name: str, node: Node) -> None:
        node.parent, node.name = self, name
        self.children[name] = node

    def drop(self) -> None:
        assert self.parent is not None
        del self.parent.children[self.name]
        self.parent = None

    def below(self) -> Iterator[Node]:
        for child in self.children.values():
            yield child
            yield from child.below()


@dataclass
class Pending:
    """A call that is under way."""

    what: str
    node: Node
    apply: Callable[[], None]
    offset: int = 0
    data: bytes = b""
    """Of a write: it may have come through in part."""


class Tree:
    """One writer's directory, whose path from the mount is `root.name`."""

    def __init__(self, name: str) -> None:
        self.root = Node("dir", 0o755, name=name)
        self.pending: Pending | None = None
        self.recent: deque[Node] = deque(maxlen=6)
        """What was touched last: the most likely to be between two places just now."""

    def has(self, node: Node) -> bool:
        return list(node.chain())[-1] is self.root

    def nodes(self, kind: str) -> list[Node]:
        return [node for node in self.root.below() if node.kind == kind]

    def bytes(self) -> int:
        return sum(len(node.data) for node in self.root.below())

    def differences(self, mount: str) -> list[str]:
        """What the mount shows that is not so, one line each."""
        return list(_compare(self.root, os.path.join(mount, self.root.name)))

    def settle(self, mount: str) -> list[str]:
        """After a kill: the mount shows the tree with or without the call that was cut off. What else differs?"""
        pending, self.pending = self.pending, None
        before = self.differences(mount)
        if pending is not None and before:
            if pending.data:
                _follow_write(pending, mount)
            else:
                pending.apply()
            after = self.differences(mount)
            if after:
                return [f"cut off: {pending.what}", *(f"if not done: {line}" for line in before),
                        *(f"if done: {line}" for line in after)]  # fmt: skip
            before = []
        for node in [self.root, *self.root.below()]:
            node.stamp += node.stamp % 2
        return before


def written(old: bytes, offset: int, data: bytes) -> bytes:
    """A file's bytes after a write; a hole before it is zeros."""
    return old[:offset].ljust(offset, b"\0") + data + old[offset + len(data) :]


def _follow_write(pending: Pending, mount: str) -> None:
    """Take over as much of a write as is there, if that is what explains the file."""
    node = pending.node
    try:
        with open(os.path.join(mount, node.path()), "rb") as file:
            found = file.read()
    except OSError:
        return
    whole = written(node.data, pending.offset, pending.data)
    same = next((i for i, (a, b) in enumerate(zip(found, whole, strict=False)) if a != b), min(len(found), len(whole)))
    # the kernel cuts a write where pages begin
    for end in (len(pending.data), same - pending.offset, (same & ~4095) - pending.offset):
        part = written(node.data, pending.offset, pending.data[: max(0, end)])
        if found == part:
            node.data = part
            return


def _compare(node: Node, path: str) -> Iterator[str]:
    try:
        status = os.lstat(path)
        if stat.S_IMODE(status.st_mode) != node.mode and node.kind != "link":
            yield f"{path}: mode {stat.S_IMODE(status.st_mode):o}, should be {node.mode:o}"
        if node.kind == "dir":
            if not stat.S_ISDIR(status.st_mode):
                yield f"{path}: is no directory"
                return
            there = set(os.listdir(path))
            yield from (f"{path}/{name}: is missing" for name in sorted(node.children.keys() - there))
            yield from (f"{path}/{name}: should not be there" for name in sorted(there - node.children.keys()))
            for name in sorted(node.children.keys() & there):
                yield from _compare(node.children[name], os.path.join(path, name))
        elif node.kind == "link":
            if not stat.S_ISLNK(status.st_mode) or os.readlink(path).encode() != node.data:
                yield f"{path}: is not the link it should be"
        else:
            if not stat.S_ISREG(status.st_mode):
                yield f"{path}: is no file"
                return
            if node.mtime_ns is not None and status.st_mtime_ns != node.mtime_ns:
                yield f"{path}: its time is {status.st_mtime_ns}, should be {node.mtime_ns}"
            if status.st_size != len(node.data):
                yield f"{path}: stat says {status.st_size} bytes, should be {len(node.data)}"
            with open(path, "rb") as file:
                found = file.read()
            if found != node.data:
                yield f"{path}: {other(found, node.data)}"
    except OSError as error:
        yield f"{path}: {error}"


def other(found: bytes, wanted: bytes) -> str:
    """How two contents differ, in words that name where the bytes belong."""
    at = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted)))
    zeros = ", zeros from there on" if found[at:] and not any(found[at:]) else ""
    return (
        f"{len(found)} bytes instead of {len(wanted)}, other from byte {at}{zeros}: "
        f"begins {found[:48]!r}, should begin {wanted[:48]!r}; there {found[at : at + 32]!r}, should {wanted[at : at + 32]!r}"
    )
