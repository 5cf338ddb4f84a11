"""The namespace in memory: directories that were loaded, and the rules of POSIX that change them.

Rules
  ``plan_*`` checks the rules and returns a `Change`, or raises one of `b2fs.errors`; it alters nothing.
  ``apply`` shows a committed change in memory; it never waits and never fails.
  A directory is changed only while it is loaded (``children`` is not None): whoever plans has it loaded first.

Invariants
  A directory's ancestors are in memory, and loaded. All children of a loaded directory have nodes.
  ``node.parents`` lists the dentries in loaded directories that lead to it (one for a directory); how many
  names a file has in all is its ``nlink``.
  An inode has one node at most, as long as anybody refers to it (`core.unload`).
"""

from __future__ import annotations

import hashlib
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from msgspec.structs import replace

from b2fs.core import names, xattrs
from b2fs.core.change import Change
from b2fs.core.counts import Counts
from b2fs.core.inode import ROOT, Inode, largest_info
from b2fs.errors import (
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


class Node:
    """An inode in memory. The fields below ``children`` are for the front end and the engine."""

    __slots__ = (
        "inode", "parents", "children", "used",
        "lookups", "denied", "handles", "writers", "entry", "entry_of", "fd", "writes", "opening",
    )  # fmt: skip

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        self.parents: list[tuple[int, bytes]] = []
        self.children: dict[bytes, int] | None = None
        """Directories: name to inode number; None while not loaded from the journal."""
        self.used = False
        """Directories: somebody looked into it since `core.unload` last came by."""
        self.lookups = 0
        """How often the kernel was told of this inode and has not forgotten it."""
        self.denied = False
        """Directories: the kernel was told that some name is absent here, and remembers it."""
        self.handles = 0
        self.writers = 0
        """Handles that may write."""
        self.entry: Any = None
        """The front end's reply, kept between calls; belongs to `entry_of`."""
        self.entry_of: Inode | None = None
        self.fd = -1
        """Descriptor of the scratch file, while it has one."""
        self.writes = 0
        """Counts changes of the scratch file, so that a seal can see that it was overtaken."""
        self.opening: Any = None
        """Set while the scratch file is being made; others wait for it."""

    @property
    def ino(self) -> int:
        return self.inode.ino

    @property
    def linked(self) -> bool:
        """Whether some path leads to it."""
        return self.inode.nlink > 0

    @property
    def held(self) -> bool:
        """Whether the kernel or a program still refers to it."""
        return self.lookups > 0 or self.handles > 0


class Entries:
    """The entries of a directory on their way into memory; in no tree yet."""

    def __init__(self, parent: int) -> None:
        self._parent = parent
        self.children: dict[bytes, int] = {}
        self.nodes: dict[int, Node] = {}

    def add(self, rows: Iterable[tuple[bytes, Inode]]) -> None:
        for name, inode in rows:
            node = self.nodes.get(inode.ino)
            if node is None:
                node = self.nodes[inode.ino] = Node(inode)
                node.parents = [(self._parent, name)]  # one that was appended to has room for three more
            else:
                node.parents.append((self._parent, name))
            self.children[name] = inode.ino


class Tree:
    """Nodes by inode number, with the plans that change them. `prefix` only matters for key lengths."""

    def __init__(self, root: Inode, prefix: str = "") -> None:
        self.prefix = prefix
        self.nodes: dict[int, Node] = {ROOT: Node(root)}
        self.all_keys: Callable[[int], list[str]] = lambda ino: []
        """The keys of every name of a file, in directories that are not loaded too: the journal's answer."""
        self.order: deque[int] = deque()
        """The loaded directories (and some that are gone), from the one that `core.unload` looks at next."""
        self.orphans: deque[int] = deque()
        """Files that came into memory without their directory."""
        self.remembered = Counts()
        """`Node.lookups` of inodes that are not in memory."""

    # ------------------------------------------------------------ looking

    def node(self, ino: int) -> Node:
        try:
            return self.nodes[ino]
        except KeyError:
            raise NotFound(f"inode {ino} is gone") from None

    def child(self, parent: Node, name: bytes) -> Node | None:
        """The node of a name in a loaded directory, None if the name is not there."""
        ino = (parent.children or {}).get(name)
        return None if ino is None else self.nodes[ino]

    def path(self, node: Node) -> str:
        """The node's (first) path below the mount, '' for the root. The node must be linked."""
        if not node.parents and node.inode.ino != ROOT:
            return self.all_keys(node.ino)[0]
        parts: list[bytes] = []
        while node.inode.ino != ROOT:
            parent, name = node.parents[0]
            parts.append(name)
            node = self.nodes[parent]
        return b"/".join(reversed(parts)).decode("utf-8", "surrogateescape")

    def lookups(self, ino: int) -> int:
        """How often the kernel was told of an inode, in memory or not, and has not forgotten it."""
        node = self.nodes.get(ino)
        return self.remembered[ino] if node is None else node.lookups

    def find(self, path: str) -> Node | None:
        """The node of a path, None if there is none, or a directory above it is not loaded."""
        node: Node | None = self.nodes[ROOT]
        for part in path.split("/") if path else ():
            node = self.child(node, part.encode()) if node is not None else None
        return node

    def keys(self, node: Node) -> list[str]:
        """The keys of the objects that describe this node: one a name; a directory's is its marker."""
        if node.inode.is_dir:
            return [names.marker(self.path(node))] if node.linked else []
        if len(node.parents) < node.inode.nlink:
            return self.all_keys(node.ino)
        return [names.join(self.path(self.nodes[parent]), name.decode()) for parent, name in node.parents]

    def is_below(self, node: Node, ancestor: Node) -> bool:
        """Whether `node` is `ancestor` or somewhere below it."""
        while node is not ancestor:
            if not node.parents:
                return False
            node = self.nodes[node.parents[0][0]]
        return True

    def loaded(self) -> Iterator[Node]:
        return (node for node in self.nodes.values() if node.children is not None)

    # ------------------------------------------------------------ plans

    def plan_create(
        self, parent: Node, name: bytes, ino: int, mode: int, uid: int, gid: int, now_ns: int,
        *, target: str = "", rdev: int = 0,
    ) -> Change:  # fmt: skip
        """A new file, directory, symlink or special file. A new regular file has an (empty) scratch file of
        its own number.

        Exists, BadName, NameTooLong; NotFound if the directory itself was removed.
        """
        text = self._new_name(parent, name)
        if parent.inode.mode & stat.S_ISGID:  # the directory's group is inherited, and so is the bit
            gid = parent.inode.gid
            mode |= stat.S_ISGID if stat.S_ISDIR(mode) else 0
        is_dir = stat.S_ISDIR(mode)
        inode = Inode(
            ino=ino, mode=mode, uid=uid, gid=gid, nlink=2 if is_dir else 1, size=len(target.encode()),
            mtime_ns=now_ns, ctime_ns=now_ns, atime_ns=now_ns, rdev=rdev, target=target,
            sha1=hashlib.sha1(target.encode(), usedforsecurity=False).hexdigest() if target else "",
            scratch=ino if stat.S_ISREG(mode) else 0, complete=is_dir,
        )  # fmt: skip
        key = names.join(self.path(parent), text)
        key = names.marker(key) if is_dir else key
        names.check_key(self.prefix, key, largest_info(inode))
        change = Change(inodes=[inode], links=[(parent.ino, name, ino)], dirty=[key])
        self._touch(change, parent, now_ns, links=int(is_dir))
        return change

    def plan_link(self, node: Node, parent: Node, name: bytes, link: str, now_ns: int) -> Change:
        """One more name for a file; `link` becomes its link id if it has none yet.

        Exists, BadName, NameTooLong (also if the id makes an older name too long); NotFound if the file or the directory was
        removed; NotPermitted for a directory, and for content whose SHA-1 nobody knows: its names could not be told apart.
        """
        old = node.inode
        if old.is_dir:
            raise NotPermitted("a directory has one name")
        text = self._new_name(parent, name)
        if not node.linked:
            raise NotFound("the file was removed")
        if old.size and not (old.sha1 or old.scratch or old.staged):
            raise NotPermitted("the SHA-1 of this file is not known: B2 has it as another tool uploaded it")
        inode = replace(old, nlink=old.nlink + 1, ctime_ns=now_ns, link=old.link or link)
        change = Change(
            inodes=[inode], links=[(parent.ino, name, node.ino)], dirty=[names.join(self.path(parent), text)]
        )
        if not old.link:
            change.dirty += self.keys(node)
        for key in change.dirty:
            names.check_key(self.prefix, key, largest_info(inode))
        self._touch(change, parent, now_ns)
        return change

    def plan_unlink(self, parent: Node, name: bytes, now_ns: int) -> Change:
        """NotFound, IsDirectory. An open file lives on in memory until its last handle is released."""
        node = self._existing(parent, name)
        if node.inode.is_dir:
            raise IsDirectory(f"{name!r} is a directory")
        change = Change()
        self._drop(change, node, parent, name, now_ns)
        self._touch(change, parent, now_ns)
        return change

    def plan_rmdir(self, parent: Node, name: bytes, now_ns: int) -> Change:
        """NotFound, NotDirectory, NotEmpty. The directory must be loaded and complete."""
        node = self._existing(parent, name)
        if not node.inode.is_dir:
            raise NotDirectory(f"{name!r} is not a directory")
        if node.children is None or node.children:
            raise NotEmpty(f"{name!r} is not empty")
        change = Change()
        self._drop(change, node, parent, name, now_ns)
        self._touch(change, parent, now_ns, links=-1)
        return change

    def plan_rename(
        self, parent: Node, name: bytes, new_parent: Node, new_name: bytes, now_ns: int,
        *, noreplace: bool = False, exchange: bool = False,
    ) -> Change:  # fmt: skip
        """Give a node another name and place; a directory with all that is below it is one dentry.

        POSIX's errors. A directory that is replaced must be loaded and complete.
        """
        node = self._existing(parent, name)
        if node.inode.is_dir and self.is_below(new_parent, node):
            raise Invalid("a directory cannot move into itself")
        target = self.child(new_parent, new_name)
        if exchange and target is not node:
            return self._plan_exchange(parent, name, new_parent, new_name, now_ns)
        if target is node:  # two names of one file: POSIX wants nothing to happen
            if noreplace:
                raise Exists(f"{new_name!r} exists")
            return Change()
        change = Change()
        if target is None:
            self._check_move(node, new_parent, self._new_name(new_parent, new_name))
        else:
            self._check_replace(node, target, new_name, noreplace)
            self._drop(change, target, new_parent, new_name, now_ns)
        self._move(change, node, parent, name, new_parent, new_name)
        change.inodes.append(replace(node.inode, ctime_ns=now_ns))
        gained = int(node.inode.is_dir)
        lost = int(target is not None and target.inode.is_dir)
        if parent is new_parent:
            self._touch(change, parent, now_ns, links=-lost)
        else:
            self._touch(change, parent, now_ns, links=-gained)
            self._touch(change, new_parent, now_ns, links=gained - lost)
        return change

    def plan_attributes(self, node: Node, inode: Inode) -> Change:
        """The node's row becomes `inode`; its objects are to be looked at."""
        return Change(inodes=[inode], dirty=self.keys(node))

    def plan_xattr(self, node: Node, name: bytes, value: bytes | None, now_ns: int) -> Change:
        """Set an extended attribute, or remove it (`value` None).

        NotPermitted on what is neither file nor directory; NoAttribute if there is none to remove; NoSpace if B2's header
        has no room for it beside the path.
        """
        if not (node.inode.is_file or node.inode.is_dir):
            raise NotPermitted("only files and directories have user.* attributes")
        found = xattrs.unpack(node.inode.xattrs)
        if value is not None:
            found[name] = value
        elif found.pop(name, None) is None:
            raise NoAttribute("not set")
        inode = replace(node.inode, xattrs=xattrs.pack(found), ctime_ns=now_ns)
        if len(inode.xattrs) > len(node.inode.xattrs):
            try:
                for key in self.keys(node) or [""]:
                    names.check_key(self.prefix, key, largest_info(inode))
            except NameTooLong as error:
                raise NoSpace(f"the attribute has no room: {error}") from None
        return self.plan_attributes(node, inode)

    def _plan_exchange(self, parent: Node, name: bytes, new_parent: Node, new_name: bytes, now_ns: int) -> Change:
        node, other = self._existing(parent, name), self._existing(new_parent, new_name)
        if other.inode.is_dir and self.is_below(parent, other):
            raise Invalid("a directory cannot move into itself")
        self._check_move(node, new_parent, new_name.decode())
        self._check_move(other, parent, name.decode())
        change = Change()
        self._move(change, node, parent, name, new_parent, new_name)
        self._move(change, other, new_parent, new_name, parent, name)
        change.unlinks.clear()  # both names stay; the links replace what they led to
        change.inodes += [replace(node.inode, ctime_ns=now_ns), replace(other.inode, ctime_ns=now_ns)]
        shift = int(other.inode.is_dir) - int(node.inode.is_dir)
        self._touch(change, parent, now_ns, links=0 if parent is new_parent else shift)
        if parent is not new_parent:
            self._touch(change, new_parent, now_ns, links=-shift)
        return change

    # ------------------------------------------------------------ pieces of plans

    def _existing(self, parent: Node, name: bytes) -> Node:
        node = self.child(parent, name)
        if node is None:
            raise NotFound(f"no {name!r} here")
        return node

    def _new_name(self, parent: Node, name: bytes) -> str:
        if not parent.linked:
            raise NotFound("the directory was removed")
        if self.child(parent, name) is not None:
            raise Exists(f"{name!r} exists")
        return names.decode(name)

    def _check_move(self, node: Node, parent: Node, text: str) -> None:
        if not parent.linked:
            raise NotFound("the directory was removed")
        key = names.join(self.path(parent), text)
        key = names.marker(key) if node.inode.is_dir else key
        names.check_key(self.prefix, key, largest_info(node.inode))

    def _check_replace(self, node: Node, target: Node, name: bytes, noreplace: bool) -> None:
        if noreplace:
            raise Exists(f"{name!r} exists")
        if target.inode.is_dir:
            if not node.inode.is_dir:
                raise IsDirectory(f"{name!r} is a directory")
            if target.children is None or target.children:
                raise NotEmpty(f"{name!r} is not empty")
        elif node.inode.is_dir:
            raise NotDirectory(f"{name!r} is not a directory")

    def _drop(self, change: Change, node: Node, parent: Node, name: bytes, now_ns: int) -> None:
        """One name goes; with the last one the inode."""
        key = names.join(self.path(parent), name.decode())
        change.unlinks.append((parent.ino, name))
        change.dirty.append(names.marker(key) if node.inode.is_dir else key)
        if node.inode.is_dir or node.inode.nlink == 1:
            change.gone.append(node.ino)
            change.gone_ns = now_ns
        else:
            change.inodes.append(replace(node.inode, nlink=node.inode.nlink - 1, ctime_ns=now_ns))

    def _move(self, change: Change, node: Node, parent: Node, name: bytes, to: Node, new_name: bytes) -> None:
        old_key = names.join(self.path(parent), name.decode())
        new_key = names.join(self.path(to), new_name.decode())
        suffix = "/" if node.inode.is_dir else ""
        change.unlinks.append((parent.ino, name))
        change.links.append((to.ino, new_name, node.ino))
        change.dirty += [new_key + suffix, old_key + suffix]

    def _touch(self, change: Change, directory: Node, now_ns: int, links: int = 0) -> None:
        """An entry of the directory changed: its times, and its link count by `links` subdirectories."""
        inode = directory.inode
        change.inodes.append(replace(inode, mtime_ns=now_ns, ctime_ns=now_ns, nlink=inode.nlink + links))
        change.dirty.append(names.marker(self.path(directory)))

    # ------------------------------------------------------------ memory

    def apply(self, change: Change) -> None:
        """Show a committed change. Rows of directories that are not loaded are the journal's alone."""
        for parent_ino, name in change.unlinks:
            self._detach(parent_ino, name)
        fresh = {inode.ino: inode for inode in change.inodes}
        for parent_ino, name, ino in change.links:
            parent = self.nodes.get(parent_ino)
            if parent is None or parent.children is None:
                continue
            self._detach(parent_ino, name)
            node = self.nodes.get(ino)
            if node is None:
                node = self._add(Node(fresh[ino]))
                if node.inode.is_dir and node.inode.complete and node.inode.nlink == 2:
                    node.children = {}  # just made, so empty
                    self.order.append(ino)
            parent.children[name] = ino
            node.parents.append((parent_ino, name))
        for inode in change.inodes:
            if (known := self.nodes.get(inode.ino)) is not None:
                known.inode = inode
        for ino in change.gone:
            if (known := self.nodes.get(ino)) is not None:
                known.inode = replace(known.inode, nlink=0, ctime_ns=change.gone_ns or known.inode.ctime_ns)
                self.discard(known)

    def load(self, parent: Node, entries: Entries) -> None:
        """Show all entries of a directory as the journal has them. Nodes already in memory are newer and stay."""
        if parent.children is not None:
            return
        for ino in entries.nodes.keys() & self.nodes.keys():
            self.nodes[ino].parents += entries.nodes.pop(ino).parents
        for ino in self.remembered.among(entries.nodes):
            self._recall(entries.nodes[ino])
        self.nodes.update(entries.nodes)
        parent.children = entries.children
        self.order.append(parent.ino)

    def adopt(self, inode: Inode) -> Node:
        """Have a file in memory without its directory."""
        self.orphans.append(inode.ino)
        return self._add(Node(inode))

    def _add(self, node: Node) -> Node:
        self.nodes[node.ino] = node
        self._recall(node)
        return node

    def _recall(self, node: Node) -> None:
        if count := self.remembered.take(node.ino):
            node.lookups = count
            node.denied = True  # nobody knows any more

    def forget(self, ino: int, count: int) -> None:
        """The kernel dropped references to an inode that is not in memory."""
        left = self.remembered.take(ino) - count
        if left > 0:
            self.remembered.put(ino, left)

    def discard(self, node: Node) -> None:
        """Forget an unlinked node that nobody holds."""
        if not node.linked and not node.held:
            self.nodes.pop(node.ino, None)

    def _detach(self, parent_ino: int, name: bytes) -> None:
        parent = self.nodes.get(parent_ino)
        if parent is None or parent.children is None:
            return
        ino = parent.children.pop(name, None)
        if ino is not None:
            self.nodes[ino].parents.remove((parent_ino, name))
