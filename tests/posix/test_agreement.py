"""Every call on every kind of object by every kind of user: mount and engine answer and leave what the host's disk does.

Rules
  Nothing is expected here but agreement: the plain directory is the oracle, of results, errnos, and what is there
  afterwards (types, modes, owners, link counts, contents, which times changed). It is asked once for both.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest

from tests.posix.support import (
    GROUP,
    OLD_NS,
    OTHER,
    OWNER,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    UTIME_NOW,
    UTIME_OMIT,
    Looks,
    look,
    make_fifo,
    make_socket,
    outcome,
    put,
    renameat2,
    rmtree,
    stats,
    touch_all,
    user,
    utimensat,
    utimes_now,
)
from tests.posix.system import MACHINE, on, os

pytestmark = pytest.mark.slow

_LONG = "n" * 250
"""The longest name on both."""


def _full(path: str) -> None:
    os.mkdir(path)
    put(f"{path}/inner")


def _mode(make: Callable[[str], object], mode: int) -> Callable[[str], None]:
    def made(path: str) -> None:
        make(path)
        os.chmod(path, mode)

    return made


def _link(target: str) -> Callable[[str], None]:
    return lambda path: os.symlink(target, path)


MAKERS: dict[str, Callable[[str], object]] = {
    "absent": lambda path: None,
    "file": put,
    "empty file": lambda path: put(path, b""),
    "secret file": lambda path: put(path, mode=0o600),
    "public file": lambda path: put(path, mode=0o666),
    "group's file": lambda path: put(path, mode=0o060),
    "closed file": lambda path: put(path, mode=0),
    "suid file": lambda path: put(path, mode=0o6777),
    "sgid file": lambda path: put(path, mode=0o2676),
    "read-only file": lambda path: put(path, mode=0o444),
    "dir": os.mkdir,
    "full dir": _full,
    "closed dir": _mode(_full, 0),
    "public dir": _mode(_full, 0o777),
    "sticky dir": _mode(_full, 0o1777),
    "sgid dir": _mode(os.mkdir, 0o2777),
    "fifo": make_fifo,
    "socket": make_socket,
    "device": lambda path: os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(250, 250)),
    "link to file": _link("../there/file"),
    "link to dir": _link("../there/dir"),
    "dangling link": _link("../there/none"),
    "link to itself": lambda path: os.symlink(os.path.basename(path), path),
}
OTHER_PATHS = (
    "there/file/x", "there/file/", "there/dir/", "there/dir/.", "there/dir/..", "there/none/", "there/none/x", ".",
    "", "there/dangling/", "there/link/", "there/link/x", "there/link/.", "there/loop/x", "there/" + _LONG,
    "there/" + "n" * 256, "there/dir/inner/../inner", "there/closed/inner", "there/closed/none", "x" * 5000,
)  # fmt: skip


def _make_there() -> None:
    """What paths lead through: an object of several kinds."""
    os.mkdir("there")
    put("there/file", mode=0o666)
    _full("there/dir")
    os.symlink("none", "there/dangling")
    os.symlink("dir", "there/link")
    os.symlink("loop", "there/loop")
    _full("there/closed")
    os.chmod("there/closed", 0o700)


def _own(path: str, uid: int) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    os.lchown(path, uid, GROUP)
    if mode & 0o6000:  # which a change of owner has cleared
        os.chmod(path, stat.S_IMODE(mode))
    if stat.S_ISDIR(mode):
        for name in os.listdir(path):
            _own(os.path.join(path, name), uid)


def _opening(flags: int) -> Callable[[str], Any]:
    def call(path: str) -> Any:
        fd = os.open(path, flags | os.O_NONBLOCK, 0o640)
        try:
            return stat.filemode(os.fstat(fd).st_mode)
        finally:
            os.close(fd)

    return call


def _writing(flags: int) -> Callable[[str], Any]:
    def call(path: str) -> Any:
        fd = os.open(path, flags | os.O_NONBLOCK)
        try:
            return os.write(fd, b"XX")
        finally:
            os.close(fd)

    return call


_FLAGS = {
    "": 0,
    "creat": os.O_CREAT,
    "creat excl": os.O_CREAT | os.O_EXCL,
    "trunc": os.O_TRUNC,
    "creat trunc": os.O_CREAT | os.O_TRUNC,
    "creat excl trunc": os.O_CREAT | os.O_EXCL | os.O_TRUNC,
    "append": os.O_APPEND,
    "directory": os.O_DIRECTORY,
    "nofollow": os.O_NOFOLLOW,
    "creat nofollow": os.O_CREAT | os.O_NOFOLLOW,
    "path": os.O_PATH,
    "path nofollow": os.O_PATH | os.O_NOFOLLOW,
    "creat directory": os.O_CREAT | os.O_DIRECTORY,
    "sync": os.O_SYNC,
    "noatime": os.O_NOATIME,
}


def _linking(path: str) -> Any:
    os.link(path, "here/further")
    found = os.lstat(path).st_nlink, os.path.samestat(os.lstat(path), os.lstat("here/further"))
    os.unlink("here/further")
    return found


def _lstat(path: str) -> Any:
    found = os.lstat(path)
    return stat.filemode(found.st_mode), found.st_uid, found.st_gid, found.st_nlink, found.st_rdev


CALLS: dict[str, Callable[[str], Any]] = {
    **{f"open r {name}": _opening(os.O_RDONLY | flags) for name, flags in _FLAGS.items()},
    **{f"open w {name}": _opening(os.O_WRONLY | flags) for name, flags in _FLAGS.items()},
    "open rw": _opening(os.O_RDWR),
    "write": _writing(os.O_WRONLY),
    "append": _writing(os.O_WRONLY | os.O_APPEND),
    "stat": lambda path: stat.filemode(os.stat(path).st_mode),
    "lstat": _lstat,
    "access": lambda path: [os.access(path, mode, effective_ids=True) for mode in range(8)],
    "statvfs": lambda path: os.statvfs(path).f_frsize > 0,
    "listdir": lambda path: sorted(os.listdir(path)),
    "chdir": lambda path: os.close(os.open(path, os.O_PATH | os.O_DIRECTORY)),
    **{f"chmod {mode:o}": lambda path, mode=mode: os.chmod(path, mode) for mode in (0, 0o1755, 0o2755, 0o4755)},
    "chown -1 -1": lambda path: os.chown(path, -1, -1),
    "chown owner": lambda path: os.chown(path, OWNER, -1),
    "chown other": lambda path: os.chown(path, OTHER, -1),
    "chgrp group": lambda path: os.chown(path, -1, GROUP),
    "chgrp other": lambda path: os.chown(path, -1, OTHER),
    "lchown both": lambda path: os.lchown(path, OTHER, OTHER),
    "lchown same": lambda path: os.lchown(path, OWNER, GROUP),
    **{f"truncate {size}": lambda path, size=size: os.truncate(path, size) for size in (3, 7, 100, -1)},
    "utimensat set": lambda path: utimensat(path, (5, 6), (7, 8)),
    "utimensat nofollow": lambda path: utimensat(path, (5, 6), (7, 8), 0x100),
    "utimensat now": lambda path: utimensat(path, (0, UTIME_NOW), (0, UTIME_NOW)),
    "utimensat null": utimes_now,
    "utimensat now omit": lambda path: utimensat(path, (0, UTIME_NOW), (0, UTIME_OMIT)),
    "utimensat omit now": lambda path: utimensat(path, (0, UTIME_OMIT), (0, UTIME_NOW)),
    "utimensat omit": lambda path: utimensat(path, (0, UTIME_OMIT), (0, UTIME_OMIT)),
    "utimensat omit set": lambda path: utimensat(path, (0, UTIME_OMIT), (7, 8)),
    "utimensat set omit": lambda path: utimensat(path, (7, 8), (0, UTIME_OMIT)),
    "utimensat now set": lambda path: utimensat(path, (0, UTIME_NOW), (7, 8)),
    "utimensat bad": lambda path: utimensat(path, (0, 1_000_000_000), (7, 8)),
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "mkdir": lambda path: os.mkdir(path, 0o777),
    "mkdir sgid": lambda path: os.mkdir(path, 0o3777),
    "mkfifo": lambda path: os.mkfifo(path, 0o666),
    "mknod file": lambda path: os.mknod(path, 0o6666 | stat.S_IFREG),
    "mknod device": lambda path: os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3)),
    "mknod block": lambda path: os.mknod(path, 0o666 | stat.S_IFBLK, os.makedev(7, 99)),
    "mknod socket": lambda path: os.mknod(path, 0o666 | stat.S_IFSOCK),
    "bind": make_socket,
    "link from": _linking,
    "link to": lambda path: os.link("there/file", path),
    "symlink": lambda path: os.symlink("target", path),
    "symlink empty": lambda path: os.symlink("", path),
    "readlink": os.readlink,
}  # fmt: skip
USERS = {"root": 0, "owner": OWNER, "group": GROUP, "other": OTHER}


Results = list[Any]
PLACES_OF_OBJECTS = ("./there", *(f"./here/{kind}" for kind in MAKERS))


def _is_below(path: str, place: str) -> bool:
    return path == place or path.startswith(place + "/")


class Scene:
    """The same objects in a directory of each target: `there`, and `here/KIND` each. What a call has changed is made anew."""

    def __init__(self, system: Any, parent: str) -> None:
        self._system, self._parent = system, parent
        self._stats: dict[str, os.stat_result] = {}
        """How they looked when they were made, those that are as they were made."""

    def act(self, call: Callable[[str], Any], uid: int, skip: tuple[str, ...]) -> Results:
        """What a call comes to on each object and path, and how they look afterwards."""
        results: Results = []
        with self._in_directory("scene"):
            before = self._complete()
            with user(uid) if uid else nullcontext():
                for kind in MAKERS:
                    if kind not in skip:
                        results.append((kind, outcome(lambda kind=kind: call(f"here/{kind}"))))  # type: ignore[misc]
                results += [(path[:40], outcome(lambda path=path: call(path))) for path in OTHER_PATHS]  # type: ignore[misc]
            after = look(".", before)
            results += sorted(after.items())
            self._stats = self._untouched(before, after)
        return results

    def anew(self, act: Callable[[], Results]) -> Results:
        """Do something in an empty directory."""
        with self._in_directory("empty"):
            results = act()
            for name in os.listdir("."):
                rmtree(name)
        return results

    def _complete(self) -> dict[str, os.stat_result]:
        """Make what is not there, or not as it was made; what they all look like."""
        if not self._stats:
            for name in os.listdir("."):
                rmtree(name)
            os.chmod(".", 0o755)
            os.lchown(".", 0, 0)
            os.mkdir("here")
            os.chmod("here", 0o777)
        made = [place for place in PLACES_OF_OBJECTS if place not in self._stats]
        for place in made:
            self._remove(place)
            if place == "./there":
                _make_there()
            else:
                MAKERS[place.removeprefix("./here/")](place)
                _own(place, OWNER)
            if os.path.lexists(place):
                touch_all(place)
        for each in (".", "./here") if made else ():
            os.utime(each, ns=(OLD_NS, OLD_NS))
            self._stats[each] = os.lstat(each)
        for place in made:
            self._stats |= stats(place) if os.path.lexists(place) else {}
        return self._stats

    @staticmethod
    def _remove(path: str) -> None:
        if os.path.lexists(path):
            rmtree(path) if stat.S_ISDIR(os.lstat(path).st_mode) else os.unlink(path)

    @staticmethod
    def _untouched(before: dict[str, os.stat_result], after: Looks) -> dict[str, os.stat_result]:
        """What need not be made anew; nothing, if something changed that belongs to no object."""
        changed = {path for path in before.keys() | after.keys() if path not in after or after[path].ctime != "same"}
        places = {place for place in PLACES_OF_OBJECTS if any(_is_below(path, place) for path in changed)}
        lost = [path for path in changed - {".", "./here"} if not any(_is_below(path, place) for place in places)]
        modes = [after[path].mode != f"{stat.S_IMODE(before[path].st_mode):o}" for path in (".", "./here")]
        owners = [(after[path].uid, after[path].gid) != before[path][4:6] for path in (".", "./here")]
        if lost or any(modes) or any(owners):
            return {}
        return {path: each for path, each in before.items() if not any(_is_below(path, place) for place in places)}

    @contextmanager
    def _in_directory(self, name: str) -> Iterator[None]:
        """Work there; made if it is not there."""
        with on(self._system):
            path = os.path.join(self._parent, name)
            if not os.path.exists(path):
                os.mkdir(path)
            before, mask = os.getcwd(), os.umask(0o022)
            os.chdir(path)
            try:
                yield
            finally:
                os.chdir(before)
                os.umask(mask)


class Scenes:
    """The scenes of a module, and what the plain directory has answered."""

    def __init__(self, plain: str) -> None:
        self.plain = Scene(MACHINE, plain)
        self.others: dict[str, Scene] = {}
        self.answers: dict[str, Results] = {}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    return Scenes(str(tmp_path_factory.mktemp("plain")))


Agree = Callable[[Callable[[Scene], Results]], None]


@pytest.fixture(params=[pytest.param("mount", marks=pytest.mark.fuse), "engine"])
def agrees(request: pytest.FixtureRequest, scenes: Scenes) -> Agree:
    """Asserts that what is done comes to the same on the plain directory and on the target; says only what differs."""
    target = request.param
    if target not in scenes.others:
        host = request.getfixturevalue("mounted" if target == "mount" else "engine")
        scenes.others[target] = Scene(MACHINE, str(host.path)) if target == "mount" else Scene(host.system, "/")

    def check(act: Callable[[Scene], Results]) -> None:
        case = request.node.name.replace(f"{target}-", "")
        if case not in scenes.answers:
            scenes.answers[case] = act(scenes.plain)
        plain, other = scenes.answers[case], act(scenes.others[target])
        differences = [f"plain {a} | {target} {b}" for a, b in zip(plain, other, strict=True) if a != b]
        assert not differences, "\n".join(differences)

    return check


@pytest.mark.parametrize(
    ("call", "who"),
    [(call, who) for call in CALLS for who in USERS if not call.startswith("open") or who in ("owner", "other")],
)
def test_calls_on_objects(agrees: Agree, call: str, who: str) -> None:
    """One call, on each kind of object that `owner` owns, and on paths that are odd in some way."""
    skip = ("device",) if call.startswith(("open", "write", "append")) else ()  # test_deviations.py
    agrees(lambda scene: scene.act(CALLS[call], USERS[who], skip))


NAMED = ("absent", "file", "dir", "full dir", "fifo", "device", "link to dir", "dangling link")
RENAMES = {
    "rename": os.rename,
    "noreplace": lambda old, new: renameat2(old, new, RENAME_NOREPLACE),
    "exchange": lambda old, new: renameat2(old, new, RENAME_EXCHANGE),
}


@pytest.mark.parametrize("places", [("p", "p"), ("p", "q")], ids=["here", "elsewhere"])
@pytest.mark.parametrize("rename", RENAMES)
@pytest.mark.parametrize("old", NAMED)
def test_renames(agrees: Agree, old: str, rename: str, places: tuple[str, str]) -> None:
    """Every kind of object renamed to the name of every kind, within a directory and between two."""

    def act() -> Results:
        results: Results = []
        for number, new in enumerate(NAMED):
            base = str(number)
            for directory in (base, f"{base}/p", f"{base}/q"):
                os.mkdir(directory)
            paths = f"{base}/{places[0]}/old", f"{base}/{places[1]}/new"
            MAKERS[old](paths[0])
            MAKERS[new](paths[1])
            touch_all(base)
            before = stats(base)
            results.append((new, outcome(lambda paths=paths: RENAMES[rename](*paths))))  # type: ignore[misc]
            results += sorted(look(base, before).items())
        return results

    agrees(lambda scene: scene.anew(act))


PLACES = {
    # mode and owner of a directory
    "open": (0o777, 0),
    "sticky": (0o1777, 0),
    "own sticky": (0o1755, OWNER),
    "closed": (0o755, 0),
    "own": (0o755, OWNER),
    "own without write": (0o555, OWNER),
    "own without search": (0o600, OWNER),
    "group's sgid": (0o2770, 0),
}
NAMINGS: dict[str, Callable[[str], Any]] = {
    # what is done in a directory that holds `file` and `dir` of OWNER and `file2` and `dir2` of OTHER
    "create": _opening(os.O_CREAT | os.O_RDWR),
    "create suid": lambda path: os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o6777)),
    "mkdir": lambda path: os.mkdir(path, 0o2777),
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "move out": lambda path: os.rename(path, "away/moved"),
    "move in": lambda path: os.rename("away/there", path),
    "move dir in": lambda path: os.rename("away/dir", path),
    "move within": lambda path: os.rename(path, path + "+"),
    "exchange": lambda path: renameat2("away/there", path, RENAME_EXCHANGE),
    "move over": lambda path: os.rename(path, os.path.dirname(path) + "/file2"),
}


@pytest.mark.parametrize("who", ["owner", "group", "other"])
@pytest.mark.parametrize("naming", NAMINGS)
def test_rights_in_directories(agrees: Agree, naming: str, who: str) -> None:
    """Names come, go and change in directories of every mode, for each user, for objects of each owner."""

    def act() -> Results:
        results: Results = []
        for place, (mode, owner) in PLACES.items():
            os.mkdir(place)
            os.mkdir("away")
            os.chmod("away", 0o777)
            put("away/there")
            os.mkdir("away/dir")
            for suffix, uid in (("", OWNER), ("2", OTHER)):
                put(f"{place}/file{suffix}", mode=0o664)
                os.mkdir(f"{place}/dir{suffix}")
                for name in ("file", "dir"):
                    os.chown(f"{place}/{name}{suffix}", uid, GROUP)
            for name in ("away/there", "away/dir"):
                os.chown(name, OWNER, GROUP)
            os.chown(place, owner, GROUP)
            os.chmod(place, mode)
            for each in (place, "away"):
                touch_all(each)
            before = stats(place) | stats("away")
            with user(USERS[who]):
                for name in ("file", "file2", "dir", "dir2", "none"):
                    path = f"{place}/{name}"
                    results.append((path, outcome(lambda path=path: NAMINGS[naming](path))))  # type: ignore[misc]
            results += sorted((look(place, before) | look("away", before)).items())
            rmtree("away")
            rmtree(place)
        return results

    agrees(lambda scene: scene.anew(act))
