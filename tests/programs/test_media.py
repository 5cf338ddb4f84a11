"""sox, whose formats come back to their header when the length is known."""

from __future__ import annotations

import os
from pathlib import Path

from tests.mount.hosts import Host
from tests.programs.support import bytes_of, here_and_elsewhere, run, same

FORMATS = ("wav", "flac", "aiff", "au", "ogg", "w64")


def convert(root: Path) -> None:
    (root / "raw").write_bytes(bytes_of(400_000))
    run("sox", "-R", "-n", "-r", "16000", "tone.wav", "synth", "4", "sine", "440", cwd=root)
    # from a pipe the length is not known before the end
    run("sh", "-c", "cat raw | sox -R -t raw -r 16000 -e signed -b 16 -c 1 - piped.wav", cwd=root)
    for kind in FORMATS:
        run("sox", "-R", "tone.wav", f"copy.{kind}", "reverse", cwd=root)
        run("sox", "-R", f"copy.{kind}", f"back from {kind}.wav", "trim", "1", "2", cwd=root)
    run("sox", "-R", "tone.wav", "piped.wav", "joined.wav", "gain", "-3", cwd=root)


def test_sox(host: Host, plain: Path) -> None:
    """Conversions between six formats, one from a pipe, leave the bytes that they leave on a plain disk."""
    convert(plain)
    convert(host.path)
    for _ in here_and_elsewhere(host):
        same(plain, host.path)
        assert run("soxi", "-D", host.path / "piped.wav").strip() == "12.500000"
        assert os.path.getsize(host.path / "copy.flac") > 10_000
