"""What the application does to its data directory, as functions on a directory: one reader, one thing after another.

Rules
  A workload returns the files that it read, each once, as a path to a number of bytes: what a fetch of anything else
  was for nothing. It checks nothing else; that the bytes are right is what the tests are for.
  The paths are those of `b2fs.devbucket.sample`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

from b2fs.devbucket.sample import dictation_id

Read = dict[str, int]
Workload = Callable[[Path], Read]

BIG = dictation_id(2)
"""A dictation of the sample with more than 60 files."""
_AUDIO = 12
_COPIED = 52
_ZIPPED = 60


class Reader:
    """Reads files below a directory and remembers which."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.read: Read = {}

    def whole(self, path: str) -> bytes:
        with open(f"{self.directory}/{path}", "rb") as file:
            data = file.read()
        self.read[path] = len(data)
        return data

    def document(self, path: str) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.whole(path))
        return found


def index(directory: Path) -> Read:
    """The index page: for each dictation a listing, info.json, and sentences.json if the former has no count."""
    reader = Reader(directory)
    reader.document("categories.json")
    for identifier in sorted(os.listdir(directory / "dictations")):
        folder = f"dictations/{identifier}"
        path = f"{directory}/{folder}"
        if not os.path.isdir(path) or not os.path.exists(f"{path}/info.json"):
            continue
        info = reader.document(f"{folder}/info.json")
        inside = [name for name in sorted(os.listdir(path)) if os.path.isdir(f"{path}/{name}")]
        if "sentences_count" not in info and os.path.exists(f"{path}/{inside[0]}/sentences.json"):
            reader.document(f"{folder}/{info['language_original']}/sentences.json")
        os.path.exists(f"{path}/cover.webp")
    return reader.read


def open_dictation(directory: Path) -> Read:
    """The page of a dictation, and the first twelve recordings played."""
    reader = Reader(directory)
    folder = f"dictations/{BIG}"
    info = reader.document(f"{folder}/info.json")
    for language in (info["language_original"], info["language_translation"]):
        reader.document(f"{folder}/{language}/sentences.json")
    for number in range(_AUDIO):
        name = f"{folder}/en/{number:03}_en_avto.mp3"
        os.stat(directory / name)
        reader.whole(name)
    return reader.read


def copy_to_temp(directory: Path) -> Read:
    """What the editor does when it opens: 52 recordings of a dictation, copied with their times."""
    reader = Reader(directory)
    target = directory / "temp" / BIG
    target.mkdir(parents=True)
    for path in _media(directory)[:_COPIED]:
        shutil.copy2(directory / path, target / path.replace("/", "_"))
        reader.read[path] = (directory / path).stat().st_size
    return reader.read


def export(directory: Path) -> Read:
    """A zip of 60 files of a dictation, written elsewhere."""
    reader = Reader(directory)
    target = directory.parent / "export.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in _media(directory)[:_ZIPPED]:
            archive.write(directory / path, path)
            reader.read[path] = (directory / path).stat().st_size
    target.unlink()
    return reader.read


def program(*words: str) -> Workload:
    """A program that walks the whole tree and reads no file."""

    def run(directory: Path) -> Read:
        subprocess.run([*words, str(directory)], stdout=subprocess.DEVNULL, check=True)
        return {}

    return run


def _media(directory: Path) -> list[str]:
    """The recordings of the big dictation, as os.walk finds them."""
    found = []
    for folder, _, names in os.walk(directory / "dictations" / BIG):
        found += [os.path.relpath(os.path.join(folder, name), directory) for name in sorted(names)]
    return [path for path in found if path.endswith((".mp3", ".webm"))]
