"""A small app at work on a directory: what the real one does to its files, with a model of what must be there.

    app = Workload(mount.path, cold)      cold: what the bucket holds already and nobody has read yet
    app.run(4)                            four rounds; or `with at_work(app):` round after round, in a thread
    assert app.failures == [] and app.differences() == []

One round is one dictation: record into temp/, rewrite categories.json, save (copy2, documents by O_TRUNC, the cover by
rename-over), read back, clear temp/; now and then a saved dictation is moved or deleted. The steps are those of the real
app (the facts about the workload); a tree never grows much: the same few dictations are saved again and again.

Rules
  Deterministic: the bytes and the order of the steps depend on the seed and the number of the round alone.
  Every answer of the file system is compared with the model. What differs, and every error, is a line in `failures`;
  the app goes on, as if the step had been done.
  Bytes are never written twice: a second version of the same bytes in the bucket is one too many.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from tests.app.steps import noise
from tests.tree import tree

PACE_S = 0.03
"""Between two rounds: so that a long fault does not mean thousands of them."""
END_S = 100.0
"""Within this a round ends, whatever B2 does (the read deadline is a minute)."""

_DICTATIONS = 5
_RECORDED_NS = 1_600_000_000_123_456_789
COPIED = "copied"
"""Folder to which one unread object goes in each round: the bytes are only in B2, so B2 has to copy them."""


def cold_objects(small: int = 60, large: int = 1) -> dict[str, bytes]:
    """Objects for the bucket that an app reads for the first time: recordings, and some of several chunks."""
    files = {f"cold/small/{number:02}.mp3": noise(f"cold {number}", 3_000 + 311 * number) for number in range(small)}
    files |= {f"cold/large/{number}.wav": noise(f"large {number}", (5 << 20) + 1234) for number in range(large)}
    files["categories.json"] = json.dumps({"saved": []}).encode()
    return files


class Workload:
    def __init__(self, root: Path, cold: Mapping[str, bytes], seed: int = 0) -> None:
        self.root = root
        self.files = dict(cold)
        """What the tree must hold: path to bytes."""
        self.folders = {folder for path in cold for folder in _above(path)}
        self.stamps: dict[str, tuple[int, int]] = {}
        """(mtime in ns, mode) of the files that got theirs from copy2."""
        self.failures: list[str] = []
        self.rounds = 0
        self.reads_cold = True
        """False: nothing is read that is only in B2."""
        self._seed = seed
        self._cold = deque(path for path in cold if path.startswith("cold/small/"))
        self._large = [path for path in cold if path.startswith("cold/large/")]

    def run(self, rounds: int) -> None:
        for _ in range(rounds):
            self.round()

    def round(self) -> None:
        number, random = self.rounds, Random(f"{self._seed} {self.rounds}")
        name = f"d{number % _DICTATIONS}"
        temp, saved = f"temp/{name}", f"dictations/{name}"
        recordings = [f"{index:03}_en.mp3" for index in range(random.randint(2, 4))]
        for each in recordings:
            self.write(f"{temp}/en/{each}", noise(f"{self._seed} {number} {each}", random.randint(2_000, 30_000)))
            self.stamp(f"{temp}/en/{each}", _RECORDED_NS + number)
        categories = json.loads(self.files["categories.json"])
        self.read("categories.json")
        categories["saved"].append(f"{name} {number}")
        self.write("categories.json", json.dumps(categories).encode())
        for each in recordings:
            self.copy(f"{temp}/en/{each}", f"{saved}/en/{each}")
        for document in ("info.json", "en/sentences.json"):
            text = f"{self._seed} {number} {document} " * random.randint(3, 90)
            self.write(f"{saved}/{document}", json.dumps(text).encode())
        self.write(f"{saved}/cover.new", noise(f"{self._seed} {number} cover", random.randint(900, 6_000)))
        self.rename(f"{saved}/cover.new", f"{saved}/cover.webp")
        self.write(f"history/h_{number:03}.json", json.dumps([self._seed, number] * 300).encode())
        self.absent(f"{saved}/._cover.webp")
        self.read(random.choice(sorted(path for path in self.files if path.startswith("dictations/"))))
        self.names(f"{saved}/en")
        if self.reads_cold:
            for _ in range(min(2, len(self._cold))):
                self.read(self._cold.popleft())
            if self._large:
                self.read_piece(self._large[number % len(self._large)], random)
        if self._cold:
            self.rename(self._cold[0], f"{COPIED}/{number:03}.mp3")
            self._cold.popleft()
        self.remove(temp)
        if number % 4 == 3:
            self.move(saved, f"archive/{name}")
        elif number % 5 == 4:
            self.remove(saved)
        self.rounds += 1

    # ------------------------------------------------------------ one step, in the tree and in the model

    def write(self, path: str, data: bytes) -> None:
        def step() -> None:
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            with open(self.root / path, "wb") as file:
                half = len(data) // 2
                file.write(data[:half])
                file.flush()
                file.write(data[half:])

        self._do(f"write {path}", step)
        self.files[path] = data
        self.stamps.pop(path, None)
        self.folders |= _above(path)

    def stamp(self, path: str, mtime_ns: int) -> None:
        self._do(f"utime {path}", lambda: os.utime(self.root / path, ns=(mtime_ns, mtime_ns)))
        self._do(f"chmod {path}", lambda: os.chmod(self.root / path, 0o640))
        self.stamps[path] = (mtime_ns, 0o640)

    def copy(self, source: str, target: str) -> None:
        """copy2: bytes, then times and mode, by path, after the close."""

        def step() -> None:
            (self.root / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.root / source, self.root / target)

        self._do(f"copy {source} to {target}", step)
        self.files[target], self.stamps[target] = self.files[source], self.stamps[source]
        self.folders |= _above(target)

    def rename(self, source: str, target: str) -> None:
        def step() -> None:
            (self.root / target).parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.root / source, self.root / target)

        self._do(f"rename {source} to {target}", step)
        self.files[target] = self.files.pop(source)
        self.stamps.pop(target, None)
        self.folders |= _above(target)

    def move(self, source: str, target: str) -> None:
        """A directory, to where an older one of that name may be."""
        if target in self.folders:
            self.remove(target)
        self._do(f"mkdir above {target}", lambda: (self.root / target).parent.mkdir(parents=True, exist_ok=True))
        self._do(f"move {source} to {target}", lambda: os.rename(self.root / source, self.root / target))
        self.folders |= _above(target)
        for known in (self.files, self.stamps):
            for path in [path for path in known if path.startswith(source + "/")]:
                known[target + path.removeprefix(source)] = known.pop(path)  # type: ignore[index]  # same keys
        for folder in [each for each in self.folders if f"{each}/".startswith(source + "/")]:
            self.folders.remove(folder)
            self.folders.add(target + folder.removeprefix(source))

    def remove(self, folder: str) -> None:
        self._do(f"rmtree {folder}", lambda: shutil.rmtree(self.root / folder))
        for path in [path for path in self.files if path.startswith(folder + "/")]:
            del self.files[path]
            self.stamps.pop(path, None)
        self.folders = {each for each in self.folders if not f"{each}/".startswith(folder + "/")}

    def read(self, path: str) -> None:
        self._compare(f"read {path}", lambda: _digest((self.root / path).read_bytes()), _digest(self.files[path]))

    def read_piece(self, path: str, random: Random) -> None:
        """Some bytes out of the middle, as a player does that was told to jump."""
        data = self.files[path]
        start = random.randrange(len(data) - 50_000)

        def step() -> str:
            with open(self.root / path, "rb") as file:
                file.seek(start)
                return _digest(file.read(50_000))

        self._compare(f"read {path} from {start}", step, _digest(data[start : start + 50_000]))

    def names(self, folder: str) -> None:
        paths = {path for path in (*self.files, *self.folders) if path.startswith(folder + "/")}
        wanted = sorted({path.removeprefix(folder + "/").partition("/")[0] for path in paths})
        self._compare(f"list {folder}", lambda: sorted(os.listdir(self.root / folder)), wanted)

    def absent(self, path: str) -> None:
        def step() -> bool:
            try:
                os.stat(self.root / path)
            except FileNotFoundError:
                return True
            return False

        self._compare(f"look for {path}", step, True)

    # ------------------------------------------------------------ the end

    def differences(self) -> list[str]:
        """How the tree differs from the model: names, kinds, bytes, and the times and modes that copy2 set."""
        found = tree(self.root)
        lines = [f"{path}: missing" for path in sorted((self.files.keys() | self.folders) - found.keys())]
        lines += [f"{path}: one too many" for path in sorted(found.keys() - self.files.keys() - self.folders)]
        for path, data in self.files.items():
            here = found.get(path)
            if here is not None and (here.kind, here.size, here.sha1) != ("file", len(data), _digest(data)):
                lines.append(f"{path}: {here}, not {len(data)} bytes {_digest(data)}")
            if here is not None and path in self.stamps and (here.mtime_ns, here.mode) != self.stamps[path]:
                lines.append(f"{path}: time and mode {here.mtime_ns, here.mode}, not {self.stamps[path]}")
        return lines

    # ------------------------------------------------------------ inside

    def _do(self, what: str, step: Callable[[], object]) -> None:
        try:
            step()
        except OSError as error:
            self.failures.append(f"round {self.rounds}, {what}: {error}")

    def _compare(self, what: str, step: Callable[[], Any], wanted: object) -> None:
        try:
            got = step()
        except OSError as error:
            self.failures.append(f"round {self.rounds}, {what}: {error}")
            return
        if got != wanted:
            self.failures.append(f"round {self.rounds}, {what}: {got} instead of {wanted}")


@contextmanager
def at_work(app: Workload) -> Iterator[None]:
    """The app works round after round, until the block is left; then its last round is waited for."""
    stop = threading.Event()

    def work() -> None:
        try:
            app.round()
            while not stop.wait(PACE_S):
                app.round()
        except Exception as error:  # a bug of the workload must not pass for a quiet end
            app.failures.append(f"round {app.rounds} breaks off: {error!r}")

    thread = threading.Thread(target=work, name="workload", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(END_S)
        if thread.is_alive():
            app.failures.append(f"round {app.rounds} hangs")


def _above(path: str) -> set[str]:
    """Every folder that a path is in."""
    parts = path.split("/")
    return {"/".join(parts[:count]) for count in range(1, len(parts))}


def _digest(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()
