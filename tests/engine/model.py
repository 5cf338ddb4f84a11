"""The naive model: a mount is a dictionary of paths, and time is what the caller says.

Rules
  `apply` returns a new tree or raises one of `b2fs.errors`, as POSIX has it; nothing is shared between trees.
  A step is data, so that a history can be printed, shrunk and repeated.
"""

from __future__ import annotations

from typing import Any

import msgspec

from b2fs.errors import (
    B2fsError,
    Exists,
    Invalid,
    IsDirectory,
    NoAttribute,
    NotDirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
)
from tests.engine.world import Entry, Mount, Tree

_TYPE = 0o170000
_DIR, _FILE, _LINK = 0o040000, 0o100000, 0o120000

Step = tuple[Any, ...]
"""(operation, path, arguments…)"""


def _kind(entry: Entry) -> int:
    return entry.mode & _TYPE


class Model:
    """A tree whose root is a directory too, under the path ''."""

    def __init__(self, tree: Tree | None = None, ids: dict[str, int] | None = None) -> None:
        self.tree: Tree = dict(tree or {})
        self.ids = dict(ids or {})
        """Of files that have had two names: which file a path is."""

    # ------------------------------------------------------------ looking

    def _get(self, path: str) -> Entry:
        directory, _, _ = path.rpartition("/")
        if directory:
            self._directory(directory)
        try:
            return self.tree[path]
        except KeyError:
            raise NotFound(path) from None

    def _directory(self, path: str) -> None:
        if path and _kind(self._get(path)) != _DIR:
            raise NotDirectory(path)

    def _parent(self, path: str) -> None:
        self._directory(path.rpartition("/")[0])

    def _below(self, path: str) -> list[str]:
        return [other for other in self.tree if other.startswith(path + "/")]

    def _touch(self, path: str, now_ns: int) -> None:
        directory = path.rpartition("/")[0]
        if directory:
            self.tree[directory] = msgspec.structs.replace(self.tree[directory], mtime_ns=now_ns)

    # ------------------------------------------------------------ steps

    def apply(self, step: Step, now_ns: int) -> Model:
        after = Model(self.tree, self.ids)
        getattr(after, f"_{step[0]}")(now_ns, *step[1:])
        after._agree(step[1])
        return after

    def _agree(self, changed: str) -> None:
        """All names of the file that was changed show the same, and which they are."""
        self.ids = {path: ino for path, ino in self.ids.items() if path in self.tree}
        for path, ino in self.ids.items():
            if self.ids.get(changed) == ino:
                self.tree[path] = self.tree[changed]
        for path in self.tree:
            names = tuple(sorted(other for other in self.ids if self.ids[other] == self.ids.get(path)))
            self.tree[path] = msgspec.structs.replace(self.tree[path], names=names if len(names) > 1 else ())

    def _write(self, now_ns: int, path: str, data: bytes) -> None:
        self._parent(path)
        old = self.tree.get(path)
        if old is not None and _kind(old) != _FILE:
            raise IsDirectory(path)
        is_new = old is None
        old = old or Entry(_FILE | 0o644, now_ns)
        self.tree[path] = msgspec.structs.replace(old, mtime_ns=now_ns, content=data)
        if is_new:
            self._touch(path, now_ns)

    def _file(self, path: str) -> Entry:
        entry = self._get(path)
        if _kind(entry) != _FILE:
            raise IsDirectory(path)
        return entry

    def _patch(self, now_ns: int, path: str, offset: int, data: bytes) -> None:
        old = self._file(path)
        content = old.content.ljust(offset, b"\0")
        content = content[:offset] + data + content[offset + len(data) :]
        self.tree[path] = msgspec.structs.replace(old, mtime_ns=now_ns, content=content)

    def _truncate(self, now_ns: int, path: str, size: int) -> None:
        old = self._file(path)
        content = old.content[:size].ljust(size, b"\0")
        self.tree[path] = msgspec.structs.replace(old, mtime_ns=now_ns, content=content)

    def _chmod(self, now_ns: int, path: str, mode: int) -> None:
        old = self._get(path)
        self.tree[path] = msgspec.structs.replace(old, mode=_kind(old) | mode)

    def _utime(self, now_ns: int, path: str, mtime_ns: int) -> None:
        self.tree[path] = msgspec.structs.replace(self._get(path), mtime_ns=mtime_ns)

    def _setxattr(self, now_ns: int, path: str, name: str, value: bytes | None) -> None:
        old = self._get(path)
        if _kind(old) == _LINK:
            raise NotPermitted(path)
        if value is None and name not in old.xattrs:
            raise NoAttribute(path)
        kept = {key: each for key, each in old.xattrs.items() if key != name}
        self.tree[path] = msgspec.structs.replace(old, xattrs=kept if value is None else kept | {name: value})

    def _new(self, now_ns: int, path: str, entry: Entry) -> None:
        self._parent(path)
        if path in self.tree:
            raise Exists(path)
        self.tree[path] = entry
        self._touch(path, now_ns)

    def _mkdir(self, now_ns: int, path: str) -> None:
        self._new(now_ns, path, Entry(_DIR | 0o755, now_ns))

    def _symlink(self, now_ns: int, path: str, target: str) -> None:
        self._new(now_ns, path, Entry(_LINK | 0o777, now_ns, target.encode()))

    def _link(self, now_ns: int, path: str, new: str) -> None:
        old = self._get(path)
        self._parent(new)
        if _kind(old) == _DIR:
            raise NotPermitted(path)
        self._new(now_ns, new, old)
        self.ids[new] = self.ids.setdefault(path, now_ns)

    def _unlink(self, now_ns: int, path: str) -> None:
        if _kind(self._get(path)) == _DIR:
            raise IsDirectory(path)
        del self.tree[path]
        self.ids.pop(path, None)
        self._touch(path, now_ns)

    def _rmdir(self, now_ns: int, path: str) -> None:
        if _kind(self._get(path)) != _DIR:
            raise NotDirectory(path)
        if self._below(path):
            raise NotEmpty(path)
        del self.tree[path]
        self._touch(path, now_ns)

    def _rename(self, now_ns: int, old: str, new: str, flags: int = 0) -> None:
        self._parent(old)
        self._parent(new)
        node = self._get(old)
        if _kind(node) == _DIR and (new == old or new.startswith(old + "/")) and new != old:
            raise Invalid(old)
        target = self.tree.get(new)
        if flags == 2:
            self._exchange(now_ns, old, new)
            return
        if target is not None:
            if flags == 1:
                raise Exists(new)
            if new == old or (old in self.ids and self.ids[old] == self.ids.get(new)):
                return
            if _kind(target) == _DIR:
                if _kind(node) != _DIR:
                    raise IsDirectory(new)
                if self._below(new):
                    raise NotEmpty(new)
            elif _kind(node) == _DIR:
                raise NotDirectory(new)
        moved = {path: self.tree.pop(path) for path in [old, *self._below(old)]}
        self.tree |= {new + path[len(old) :]: entry for path, entry in moved.items()}
        self._carry({path: new + path[len(old) :] for path in moved}, new)
        self._touch(old, now_ns)
        self._touch(new, now_ns)

    def _carry(self, moves: dict[str, str], replaced: str = "") -> None:
        """Paths became others."""
        self.ids.pop(replaced, None)
        moved = {moves[path]: self.ids.pop(path) for path in moves if path in self.ids}
        self.ids |= moved

    def _exchange(self, now_ns: int, old: str, new: str) -> None:
        self._get(new)
        if _kind(self.tree[new]) == _DIR and old.startswith(new + "/"):
            raise Invalid(new)
        if old == new or (old in self.ids and self.ids[old] == self.ids.get(new)):
            return
        one = {path: self.tree.pop(path) for path in [old, *self._below(old)]}
        two = {path: self.tree.pop(path) for path in [new, *self._below(new)]}
        self.tree |= {new + path[len(old) :]: entry for path, entry in one.items()}
        self.tree |= {old + path[len(new) :]: entry for path, entry in two.items()}
        there = {path: new + path[len(old) :] for path in one}
        self._carry(there | {path: old + path[len(new) :] for path in two})
        self._touch(old, now_ns)
        self._touch(new, now_ns)


async def run_step(mount: Mount, step: Step) -> type[B2fsError] | None:
    """Do a step on a mount; the class of its error."""
    try:
        await getattr(mount, step[0])(*step[1:])
    except B2fsError as error:
        return type(error)
    return None


def outcome(model: Model, step: Step, now_ns: int) -> tuple[Model, type[B2fsError] | None]:
    """What the model says to a step: the tree after it, and the class of its error."""
    try:
        return model.apply(step, now_ns), None
    except B2fsError as error:
        return model, type(error)


def objects_of(tree: Tree) -> dict[str, bytes]:
    """The objects that a bucket holds for a tree, without the root's marker."""
    return {f"{path}/.bzEmpty" if _kind(entry) == _DIR else path: entry.content for path, entry in tree.items()}
