"""The app itself on the mount: round after round of its story, each on a sample site of its own.

Rules
  A round that the daemon's end interrupts is excused from then on: calls before it must have been right.
  After a restart the files of an interrupted round that its story does not write must be whole.
  The next round removes the site of the last one while it may still be on its way to B2.
"""

from __future__ import annotations

import os
import shutil
import time
from typing import Any

from b2fs.devbucket.sample import sample_site, write_tree
from tests.app.client import Answer, Client
from tests.app.expected import Expected
from tests.app.server import TEMPORARY, serve
from tests.app.story import FLOWS, SEEDED, Story, StoryReport
from tests.soak.scene import GONE, Gone, Scene

_DICTATIONS = 4
"""The story edits the fourth dictation of the sample."""
_FOLDER = "site"


class _Report(StoryReport):
    """Knows when each failure came."""

    def __init__(self, expected: Expected) -> None:
        super().__init__(expected=expected)
        self.times_s: list[float] = []

    def fail(self, flow: str, text: str) -> None:
        self.times_s.append(time.monotonic())
        super().fail(flow, text)


class _Client(Client):
    """Does not begin a call when the mount is about to go."""

    scene: Scene

    def call(self, *args: Any, **kwargs: Any) -> Answer:
        if self.scene.is_closed or self.scene.over.is_set():
            raise Gone
        self.scene.calls["site"] = (f"{self.flow} {args[:2]}", time.monotonic())
        try:
            return super().call(*args, **kwargs)
        finally:
            del self.scene.calls["site"]
            self.scene.count("app requests")


class Site:
    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.expected: Expected | None = None
        """What the site holds, when the last round came to its end."""
        self._untouched: dict[str, bytes] = {}
        """What an interrupted round never writes; empty if none was interrupted."""
        self._folder = ""
        self._round = 0

    def begin(self) -> None:
        os.mkdir(self.scene.inside(_FOLDER))

    def run(self) -> None:
        self.scene.run("site", self._turn)

    def _turn(self) -> None:
        scene, last = self.scene, self._folder
        self._round += 1
        self.expected = None
        self._untouched = {}
        if last:
            self._call(f"rmtree {last}", lambda: _remove(scene.inside(last)))
        self._folder = f"{_FOLDER}/round{self._round}"
        for file in sample_site(_DICTATIONS):
            self._call(f"sample {file.path}", lambda file=file: write_tree([file], self.scene.host.path / self._folder))
        self._untouched = {
            file.path: file.data for file in sample_site(_DICTATIONS)
            if file.path.startswith("dictations/") and not file.path.startswith(f"dictations/{SEEDED}/")
        }  # fmt: skip
        report = _Report(Expected.of_sample(_DICTATIONS))
        try:
            with serve(scene.inside(self._folder)) as url:
                self._story(url, report)
        except OSError as error:
            if error.errno in GONE:
                raise Gone from None
            raise
        except RuntimeError as error:  # the server did not start
            if scene.is_closed or scene.host.ended():
                raise Gone from None
            scene.fail(f"the app: {error}")
            return
        finally:
            self._judge(report)
        self.expected, self._untouched = report.expected, {}
        scene.count("app rounds")

    def _call(self, what: str, action: Any) -> None:
        """File by file, so that the gate is seen; the app's own errors are failures of the run."""
        while True:
            try:
                self.scene.call("site", what, action)
                return
            except OSError as error:
                if "No space" not in str(error):
                    raise
                self.scene.count("no room (ENOSPC)")
                if self.scene.over.wait(0.5):
                    raise Gone from None

    def _story(self, url: str, report: _Report) -> None:
        client = _Client(url, report)
        client.scene = self.scene
        story = Story(client, report.expected)
        try:
            story.begin(0)
            for when, names in FLOWS:
                if when == "round":
                    story.begin_round(0)
                for name in names:
                    story.run(name)
            story.run("final_check")
        finally:
            client.close()

    def _judge(self, report: _Report) -> None:
        killed_s = self.scene.killed_s
        bad = [text for text, at in zip(report.failures, report.times_s, strict=True) if at < killed_s]
        self.scene.count("app failures excused by a kill", len(report.failures) - len(bad))
        if bad:
            self.scene.fail(f"the app, round {self._round}: {len(bad)} wrong answers, the first: " + "; ".join(bad[:5]))

    def check(self) -> list[str]:
        """Nobody writes: what the site must hold is there."""
        if not self._folder:
            return []
        root = self.scene.inside(self._folder)
        if self.expected is None:
            return [line for path, data in self._untouched.items() if (line := _wrong(root, path, data))]
        problems = [line for path, data in self.expected.files.items() if (line := _wrong(root, path, data))]
        for folder, _, names in os.walk(root):
            for name in names:
                path = os.path.relpath(os.path.join(folder, name), root)
                if path not in self.expected.files and not path.startswith(TEMPORARY):
                    problems.append(f"{path}: should not be there")
        return problems


def _wrong(root: str, path: str, data: bytes) -> str:
    try:
        with open(os.path.join(root, path), "rb") as file:
            return "" if file.read() == data else f"site: {path} has other bytes"
    except OSError as error:
        return f"site: {path}: {error}"


def _remove(folder: str) -> None:
    if os.path.lexists(folder):  # else a kill came just after it
        shutil.rmtree(folder)
