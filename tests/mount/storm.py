"""A program that writes and writes, and a log of what the file system acknowledged.

    python -m tests.mount.storm ROOT LOG SEED OPERATIONS

It does random operations in ROOT until one fails or OPERATIONS of them are done. Each is a line in LOG before it begins
and an empty line after it returned, so at most the last one is in doubt. `replay` reads the log and says what ROOT must
hold: one state, or the two before and after the operation that was in flight.

Rules
  Log and tree are on different file systems; only the tree's daemon is killed, so what was logged stays.
  Few names: they collide often. Some files stay open over many operations, while others rename and remove them.
  Deterministic: the operations depend on the seed and on what the log says was done before alone.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import msgspec
from msgspec.structs import replace

FOLDERS = ("", "a/", "b/", "a/sub/")
NAMES = ("1", "2", "3", "ф.json")
OPEN_FILES = 3
MAX_WRITE = 40_000
"""One write is one request of the kernel, or two where it finds no page for all of it: each is done in whole or not."""
PAGE = 4096

UNSERVED = (errno.ENOTCONN, errno.ECONNABORTED)
"""What the kernel answers where the daemon is gone."""


class Operation(msgspec.Struct, omit_defaults=True):
    kind: str
    path: str = ""
    target: str = ""
    slot: int = 0
    """Which of the open files."""
    offset: int = 0
    size: int = 0
    label: str = ""
    """What the bytes are made of."""
    skip: int = 0
    """How many of them come before the first."""

    def bytes(self) -> bytes:
        return hashlib.shake_128(self.label.encode()).digest(self.skip + self.size)[self.skip :]

    def cut(self, written: int) -> tuple[Operation, Operation]:
        """The two writes that this one has become: the kernel makes several requests of some, and the daemon may die
        between them.
        """
        rest = replace(self, offset=self.offset + written, size=self.size - written, skip=self.skip + written)
        return replace(self, size=written), rest

    def forms(self) -> list[Operation]:
        """As what it may be there if the daemon died before it returned: nothing, all, and of a write its first requests."""
        if self.kind != "write":
            return [self]
        borders = range(PAGE - self.offset % PAGE, self.size, PAGE)
        return [self, *(self.cut(written)[0] for written in borders)]


class File:
    """The content of one inode, whatever its name."""

    def __init__(self) -> None:
        self.data = b""
        self.mode = 0o644


@dataclass
class Model:
    """What the tree holds."""

    files: dict[str, File] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    open: dict[int, File] = field(default_factory=dict)

    def apply(self, op: Operation) -> None:
        match op.kind:
            case "open":
                file = self.files.setdefault(op.path, File())
                file.data = b""
                self.open[op.slot] = file
            case "reopen":
                self.open[op.slot] = self.files[op.path]
            case "write":
                file = self.open[op.slot]
                padded = file.data.ljust(op.offset, b"\0")
                file.data = padded[: op.offset] + op.bytes() + padded[op.offset + op.size :]
            case "truncate":
                file = self.open[op.slot]
                file.data = file.data[: op.size].ljust(op.size, b"\0")
            case "fsync" | "crash":
                pass
            case "close":
                del self.open[op.slot]
            case "rename":
                self.files[op.target] = self.files.pop(op.path)
            case "unlink":
                del self.files[op.path]
            case "chmod":
                self.files[op.path].mode = op.size
            case "mkdir":
                self.folders.add(op.path)
            case "rmdir":
                self.folders.remove(op.path)
            case "move":
                self._move(op.path, op.target)

    def _move(self, source: str, target: str) -> None:
        def moved(path: str) -> str:
            return target + path.removeprefix(source) if f"{path}/".startswith(source + "/") else path

        self.files = {moved(path): file for path, file in self.files.items()}
        self.folders = {moved(path) for path in self.folders}

    def content(self) -> dict[str, tuple[str, int] | None]:
        """Path to (SHA-1, mode) of a file, None of a folder; comparable with `found`."""
        files: dict[str, tuple[str, int] | None] = {p: (_digest(f.data), f.mode) for p, f in self.files.items()}
        return files | dict.fromkeys(self.folders)


def found(root: Path) -> dict[str, tuple[str, int] | None]:
    """What is really there."""
    content: dict[str, tuple[str, int] | None] = {}
    for folder, folders, names in os.walk(root):
        for name in folders:
            content[str((Path(folder) / name).relative_to(root))] = None
        for name in names:
            path = Path(folder) / name
            content[str(path.relative_to(root))] = (_digest(path.read_bytes()), path.stat().st_mode & 0o7777)
    return content


def replay(log: Path) -> list[Model]:
    """What the log allows the tree to hold: after all that was acknowledged, and with each form of the operation in flight."""
    model, doubtful = _acknowledged(log)
    allowed = [model]
    for form in doubtful.forms() if doubtful is not None else ():
        after = copy.deepcopy(model)
        after.apply(form)
        allowed.append(after)
    return allowed


def _acknowledged(log: Path) -> tuple[Model, Operation | None]:
    model = Model()
    lines = log.read_bytes().splitlines() if log.exists() else []
    doubtful = None
    for line in lines:
        before, doubtful = doubtful, msgspec.json.decode(line, type=Operation) if line else None
        if doubtful is not None and doubtful.kind == "crash":
            if before is not None and doubtful.label:
                model.apply(before)
            model.open.clear()
        elif before is not None and doubtful is None:
            model.apply(before)
    return model, doubtful


def crashed(log: Path, which: int) -> None:
    """Note in the log that the daemon was killed, and which state of `replay` is there: the next storm goes on from it."""
    _, doubtful = _acknowledged(log)
    with log.open("ab") as file:
        if which:
            assert doubtful is not None
            file.write(msgspec.json.encode(doubtful.forms()[which - 1]) + b"\n")
        file.write(msgspec.json.encode(Operation("crash", label="done" if which else "")) + b"\n\n")


def choose(model: Model, random: Random, number: int) -> Operation:
    """The next operation that the model allows."""
    while True:
        folder = random.choice([each for each in FOLDERS if not each or each[:-1] in model.folders])
        path, slot = folder + random.choice(NAMES), random.randrange(OPEN_FILES)
        target = random.choice(FOLDERS) + random.choice(NAMES)
        size = random.choice((0, 7, 300, 5_000, MAX_WRITE))
        label = f"{number} {random.random()}"
        match random.choices(
            (
                "open",
                "reopen",
                "write",
                "truncate",
                "fsync",
                "close",
                "rename",
                "unlink",
                "chmod",
                "mkdir",
                "rmdir",
                "move",
            ),
            (8, 2, 20, 1, 1, 9, 5, 3, 2, 3, 1, 2),
        )[0]:
            case "open" if slot not in model.open:
                return Operation("open", path, slot=slot)
            case "reopen" if slot not in model.open and path in model.files:
                return Operation("reopen", path, slot=slot)
            case "write" if slot in model.open and size:
                end = len(model.open[slot].data)
                offset = random.choice((0, end, end, end // 2, min(end + 100, 200_000)))
                return Operation("write", slot=slot, offset=offset, size=size, label=label)
            case "truncate" if slot in model.open:
                return Operation("truncate", slot=slot, size=size)
            case "fsync" if slot in model.open:
                return Operation("fsync", slot=slot)
            case "close" if slot in model.open:
                return Operation("close", slot=slot)
            case "rename" if path in model.files and path != target and _above(target) in {"", *model.folders}:
                return Operation("rename", path, target)
            case "unlink" if path in model.files:
                return Operation("unlink", path)
            case "chmod" if path in model.files:
                return Operation("chmod", path, size=random.choice((0o600, 0o640, 0o644)))
            case "mkdir":
                missing = [each[:-1] for each in FOLDERS[1:] if each[:-1] not in model.folders]
                missing = [each for each in missing if _above(each) in {"", *model.folders}]
                if missing:
                    return Operation("mkdir", random.choice(missing))
            case "rmdir" if folder and not any(p.startswith(folder) for p in (*model.files, *model.folders)):
                return Operation("rmdir", folder[:-1])
            case "move" if folder in ("a/", "b/") and (other := "b" if folder == "a/" else "a") not in model.folders:
                return Operation("move", folder[:-1], other)
            case _:
                pass


def perform(root: Path, op: Operation, files: dict[int, int]) -> int:
    """How many bytes of it are done; of other things than writes, all."""
    path = root / op.path
    match op.kind:
        case "open":
            files[op.slot] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        case "reopen":
            files[op.slot] = os.open(path, os.O_RDWR)
        case "write":
            return os.pwrite(files[op.slot], op.bytes(), op.offset)
        case "truncate":
            os.ftruncate(files[op.slot], op.size)
        case "fsync":
            os.fsync(files[op.slot])
        case "close":
            os.close(files.pop(op.slot))
        case "rename" | "move":
            os.rename(path, root / op.target)
        case "unlink":
            path.unlink()
        case "chmod":
            path.chmod(op.size)
        case "mkdir":
            path.mkdir()
        case "rmdir":
            path.rmdir()
    return op.size


def main(root: str, log: str, seed: str, operations: str) -> int:
    """0: all done. 1: the file system failed, the error is on stdout."""
    (model,) = replay(Path(log))
    random, files = Random(seed), dict[int, int]()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.umask(0o022)
    number = 0
    rest: Operation | None = None
    while number < int(operations):
        op = rest or choose(model, random, number)
        os.write(descriptor, msgspec.json.encode(op) + b"\n")
        try:
            done = perform(Path(root), op, files)
        except OSError as error:
            # shutil.copytree gathers what failed, as text
            number = error.errno or next((n for n in UNSERVED if f"[Errno {n}]" in str(error)), 0)
            print(f"{op.kind} {op.path} {op.target}: {error.strerror or error}", number, flush=True)
            return 1
        rest = None
        if done < op.size:
            op, rest = op.cut(done)
            os.write(descriptor, msgspec.json.encode(op) + b"\n")
        os.write(descriptor, b"\n")
        model.apply(op)
        number += rest is None
    return 0


def _above(path: str) -> str:
    return path.rpartition("/")[0]


def _digest(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
