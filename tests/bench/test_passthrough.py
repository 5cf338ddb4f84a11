"""The bare pass-through is a file system, if a small one: else its speed would say nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.measure import is_root
from bench.peers import Binding, Peer
from tests.tree import compare, tree

pytestmark = [pytest.mark.fuse, pytest.mark.slow]


@pytest.fixture
def binding(tmp_path: Path) -> Iterator[Binding]:
    peer = Binding(tmp_path / "peer")
    try:
        peer.start()
        yield peer
    finally:
        peer.close()


def work(directory: Path) -> None:
    """A little of everything that the rows do."""
    (directory / "a").mkdir()
    for number in range(300):
        (directory / "a" / f"f{number}").write_bytes(bytes([number % 256]) * number * 50)
    (directory / "a/f7").rename(directory / "g7")
    shutil.copy2(directory / "a/f9", directory / "g9")
    (directory / "a/f8").unlink()
    with open(directory / "a/f10", "r+b") as file:
        file.truncate(20)
        file.seek(30_000)
        file.write(b"end")
    (directory / "a/f11").write_bytes(b"shorter")
    os.chmod(directory / "a/f12", 0o600)
    os.utime(directory / "a", ns=(10**18, 10**18))


def test_it_passes_through(binding: Binding, tmp_path: Path) -> None:
    """What was done through it is what the same work leaves in a plain directory, there and through it."""
    plain = Peer(tmp_path / "plain")
    for directory in (binding.path, plain.path):
        work(directory)
    wanted = tree(plain.path)
    now_ns = min(entry.mtime_ns for entry in wanted.values())
    assert compare(wanted, tree(binding.path), clock_ns=now_ns) == []
    assert compare(wanted, tree(binding.backing), clock_ns=now_ns) == []
    assert not (binding.path / "a/f8").exists()


def test_the_kernel_forgets_one_mount(binding: Binding) -> None:
    """A forgotten mount asks its daemon again, for names and for bytes; before, the kernel knew."""
    if not is_root():
        pytest.skip("a remount needs root")
    path = binding.path / "file"
    path.write_bytes(b"old")
    assert path.read_bytes() == b"old"
    (binding.backing / "file").write_bytes(b"new")
    assert path.read_bytes() == b"old"
    binding.forget_kernel()
    assert path.read_bytes() == b"new"
