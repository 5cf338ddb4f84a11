"""Who may do what with an inode: the permission checks of the kernel.

Rules
  Nothing here suspends or looks anything up. A check returns, or raises an OSError with the kernel's errno.
  Who has the effective user 0 has every capability, everybody else has none.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import NoReturn

from b2fs.core.inode import Inode
from b2fs.core.tree import Node

READ, WRITE, SEARCH = os.R_OK, os.W_OK, os.X_OK
_SGID_AND_GROUP_EXECUTION = stat.S_ISGID | stat.S_IXGRP


def fail(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))


def _protected(what: str) -> int:
    """The host's setting fs.protected_…: it holds for its own directories, so the engine's are held to it too."""
    return int(Path(f"/proc/sys/fs/protected_{what}").read_text())


class Process:
    """Whoever makes the calls."""

    def __init__(self) -> None:
        self.uid = self.gid = 0
        self.groups: tuple[int, ...] = ()
        self.mask = 0o022

    @property
    def privileged(self) -> bool:
        return self.uid == 0

    def is_in(self, gid: int) -> bool:
        return gid == self.gid or gid in self.groups

    def owns(self, inode: Inode) -> bool:
        return self.privileged or self.uid == inode.uid

    def may(self, inode: Inode, mask: int) -> bool:
        """generic_permission: the bits of the owner, else of the group, else of the others; root's capability."""
        shift = 6 if self.uid == inode.uid else 3 if self.is_in(inode.gid) else 0
        if not mask & ~(inode.mode >> shift):
            return True
        return self.privileged and (inode.is_dir or not mask & SEARCH or bool(inode.mode & 0o111))

    def need(self, inode: Inode, mask: int) -> None:
        """EACCES if he may not."""
        if not self.may(inode, mask):
            fail(errno.EACCES)

    # ------------------------------------------------------------ names

    def check_create(self, directory: Node, child: Node | None) -> None:
        """may_create: of a name in a directory."""
        if child is not None:
            fail(errno.EEXIST)
        if not directory.linked:
            fail(errno.ENOENT)
        self.need(directory.inode, WRITE | SEARCH)

    def check_delete(self, directory: Node, child: Node, want_dir: bool) -> None:
        """may_delete: of a name that is a directory's, or is not to be one's."""
        self.need(directory.inode, WRITE | SEARCH)
        is_sticky = directory.inode.mode & stat.S_ISVTX and not self.privileged
        if is_sticky and self.uid not in (child.inode.uid, directory.inode.uid):
            fail(errno.EPERM)
        if want_dir != child.inode.is_dir:
            fail(errno.ENOTDIR if want_dir else errno.EISDIR)
        if not directory.linked:
            fail(errno.ENOENT)

    def check_link(self, inode: Inode) -> None:
        """may_linkat, and what vfs_link says of directories."""
        plain = stat.S_ISREG(inode.mode) and not inode.mode & stat.S_ISUID
        safe = plain and inode.mode & _SGID_AND_GROUP_EXECUTION != _SGID_AND_GROUP_EXECUTION
        if _protected("hardlinks") and not self.owns(inode) and not (safe and self.may(inode, READ | WRITE)):
            fail(errno.EPERM)

    def check_open_in_sticky(self, directory: Inode, inode: Inode) -> None:
        """may_create_in_sticky: O_CREAT of what somebody else has put into a directory for all."""
        kind = "fifos" if stat.S_ISFIFO(inode.mode) else "regular" if stat.S_ISREG(inode.mode) else ""
        if not kind or not directory.mode & stat.S_ISVTX or inode.uid in (directory.uid, self.uid):
            return
        if directory.mode & (0o002 if (level := _protected(kind)) == 1 else 0o022) and level:
            fail(errno.EACCES)

    # ------------------------------------------------------------ attributes

    def check_owner(self, inode: Inode) -> None:
        if not self.owns(inode):
            fail(errno.EPERM)

    def check_chown(self, inode: Inode, uid: int | None, gid: int | None) -> None:
        """chown_ok and chgrp_ok."""
        if self.privileged:
            return
        mine = self.uid == inode.uid
        if uid is not None and not (mine and uid == inode.uid):
            fail(errno.EPERM)
        if gid is not None and not (mine and (gid == inode.gid or self.is_in(gid))):
            fail(errno.EPERM)

    def mode_to_set(self, inode: Inode, mode: int) -> int:
        """What a chmod leaves: setgid is for who is in the group."""
        return mode if self.privileged or self.is_in(inode.gid) else mode & ~stat.S_ISGID

    def mode_to_create(self, directory: Inode, mode: int) -> int:
        """What the kernel leaves of the mode of something new: the umask, and setgid of a group he is not in."""
        both = mode & _SGID_AND_GROUP_EXECUTION == _SGID_AND_GROUP_EXECUTION
        if both and directory.mode & stat.S_ISGID and not self.privileged and not self.is_in(directory.gid):
            mode &= ~stat.S_ISGID
        return mode & ~self.mask

    def check_xattr(self, inode: Inode, name: bytes, mask: int) -> None:
        """xattr_permission."""
        if name.startswith((b"security.", b"system.")):
            return
        if name.startswith(b"trusted."):
            if not self.privileged:
                fail(errno.EPERM if mask & WRITE else errno.ENODATA)
            return
        if name.startswith(b"user."):
            if not stat.S_ISREG(inode.mode) and not inode.is_dir:
                fail(errno.EPERM if mask & WRITE else errno.ENODATA)
            if inode.is_dir and inode.mode & stat.S_ISVTX and mask & WRITE:
                self.check_owner(inode)
        self.need(inode, mask)


def without_privileges(mode: int) -> int:
    """What FUSE leaves of a file's mode when a stranger writes or truncates, or somebody gives it away."""
    mode &= ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode
