"""The manifest of what an end left behind."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from b2fs.config import load
from b2fs.ops import manifest

LEFT = [{"path": "a", "size": 1, "sha1": "", "why": "B2 is down"}]


def test_a_disk_that_takes_no_manifest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A manifest that cannot be written keeps no end from going on: the log has the list, and no older one stays."""
    config = load(flags={"state_dir": str(tmp_path)}, environ={})
    assert manifest.write(config, LEFT) == str(tmp_path / manifest.NAME)
    (tmp_path / f"{manifest.NAME}.new").symlink_to("/dev/full")
    with caplog.at_level(logging.ERROR):
        assert manifest.write(config, LEFT) == ""
    assert "not in B2: a (1 bytes): B2 is down" in caplog.text and "cannot be written" in caplog.text
    assert list(tmp_path.iterdir()) == []
