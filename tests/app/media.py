"""What libsndfile, mpg123 and Pillow do to files, without them: the same calls in the same order, simpler contents.

Rules
  Every function that writes has a pure twin that gives the bytes (`mp3_bytes`, `wav_bytes`, `picture_bytes`), so that
  the driver of the story knows what the server must have written without asking it.
  Files are written unbuffered, as C libraries do: each `write` here is one system call.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator

READ_STEP = 400
"""Bytes that mpg123 asks for at a time."""
WAV_BLOCK = 1024
"""Bytes that libsndfile writes at a time into a wav file."""
WAV_READ = 8192
_MP3_FRAMES = 46
_EXPANSION = 3
"""How many bytes of sound this mp3 "decoder" makes of one byte of file."""


def mp3_bytes(sound: bytes) -> bytes:
    """What `write_mp3` leaves in the file."""
    frames = b"".join(_frames(sound))
    return _mp3_header(len(frames)) + frames


def write_mp3(path: str, sound: bytes) -> None:
    """Write a small mp3 as libsndfile does: tiny writes, an fsync that is not the last word, a tail, the header again."""
    *frames, tail = _frames(sound)
    with open(path, "wb", buffering=0) as file:
        file.write(_mp3_header(0))
        file.writelines(frames)  # unbuffered: one write each
        os.fsync(file.fileno())
        file.write(tail)
        file.seek(0)
        file.write(_mp3_header(sum(map(len, frames)) + len(tail)))


def read_mp3(path: str) -> bytes:
    """Decode an mp3 file as mpg123 does: look for resource forks that never exist, then read in tiny steps."""
    folder, name = os.path.split(path)
    for probe in (os.path.join(folder, f"._{name}"), os.path.join(path, "..namedfork", "rsrc")):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.close(os.open(probe, os.O_RDONLY))
    steps = []
    with open(path, "rb", buffering=0) as file:
        while step := file.read(READ_STEP):
            steps.append(step)
    return sound_of(b"".join(steps))


def sound_of(mp3: bytes) -> bytes:
    """The sound that `read_mp3` decodes from a file with these bytes."""
    return mp3 * _EXPANSION


def wav_bytes(sound: bytes) -> bytes:
    """What `write_wav` leaves in the file."""
    return _wav_header(len(sound)) + sound


def write_wav(path: str, sound: bytes) -> None:
    """Write a wav file as libsndfile does: until the last write its header says that it is empty."""
    with open(path, "wb", buffering=0) as file:
        file.write(_wav_header(0))
        file.writelines(sound[at : at + WAV_BLOCK] for at in range(0, len(sound) - WAV_BLOCK, WAV_BLOCK))
        os.fsync(file.fileno())
        file.write(sound[file.tell() - 44 :])
        file.seek(0)
        file.write(_wav_header(len(sound)))


def read_wav(path: str, length: int = sys.maxsize) -> bytes:
    """The first `length` bytes of sound in a wav file, read in blocks."""
    sound = b""
    with open(path, "rb", buffering=0) as file:
        file.read(44)
        while len(sound) < length and (block := file.read(WAV_READ)):
            sound += block
    return sound[:length]


def picture_bytes(source: bytes, size: int) -> bytes:
    """A picture of `size` bytes made from another."""
    return b"RIFF" + (size - 8).to_bytes(4, "little") + b"WEBPVP8 " + hashlib.shake_128(source).digest(size - 16)


def write_picture(path: str, source: bytes, size: int) -> None:
    """Save a picture as Pillow does: opened for reading and writing, one write."""
    with open(path, "w+b") as file:
        file.write(picture_bytes(source, size))


def _frames(sound: bytes) -> Iterator[bytes]:
    """The frames of an mp3 of `sound`: 10 to 80 bytes each, whatever its length."""
    sizes = [10 + 35 * number % 71 for number in range(_MP3_FRAMES)]
    noise = hashlib.shake_128(sound).digest(sum(sizes))
    start = 0
    for size in sizes:
        yield noise[start : start + size]
        start += size


def _mp3_header(size: int) -> bytes:
    return b"\xff\xf3\x84\xc4Xing" + size.to_bytes(4, "big")


def _wav_header(size: int) -> bytes:
    return b"RIFF" + (36 + size).to_bytes(4, "little") + b"WAVEfmt " + bytes(20) + b"data" + size.to_bytes(4, "little")
