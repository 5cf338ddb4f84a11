"""The protections of b2fs, each with a change that takes it away and the tests that must notice.

Rules
  `old` stands exactly once in `file`; `test_table.py` checks that, and that the tests exist.
  A row's name says which promise it is about, in the words of issue and README.
"""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


_UPLOAD = "b2fs/engine/upload.py"
_CONTENT = "b2fs/engine/content.py"
_CACHE = "b2fs/engine/cache.py"
_VOLUME = "b2fs/engine/volume.py"
_FUSE = "b2fs/frontends/fuse.py"
_ENGINE = "b2fs/engine/engine.py"

ROWS: tuple[Row, ...] = (
    # ------------------------------------------------------------ a bug is an EIO
    Row(
        "a bug is an EIO: the boundary around handlers",
        _FUSE,
        "            raise pyfuse3.FUSEError(errno.EIO) from None\n\n    return boundary",
        "            raise\n\n    return boundary",
        ("tests/mount/test_bugs.py::test_exception_in_any_handler",),
    ),
    Row(
        "a bug is an EIO: the boundary around forget",
        _FUSE,
        "        except Exception:  # forget has no answer; an exception would end the mount",
        "        except KeyError:",
        ("tests/mount/test_bugs.py::test_exception_in_what_no_program_waits_for",),
    ),
    Row(
        "a bug is an EIO: background work begins anew",
        _ENGINE,
        "        try:\n            return await task()\n        except Exception:",
        "        try:\n            return await task()\n        except KeyError:",
        ("tests/mount/test_bugs.py::test_exception_in_background_work",),
    ),
    Row(
        "an unwritable journal makes the mount read-only, for open files too",
        _CONTENT,
        "        volume = self._volume\n        volume.check_writable()\n        while True:",
        "        volume = self._volume\n        while True:",
        ("tests/mount/test_bugs.py::test_journal_that_cannot_be_written",),
    ),
    Row(
        "an unwritable journal ends a drain at once",
        _UPLOAD,
        "while not volume.read_only and not all(",
        "while not all(",
        ("tests/mount/test_bugs.py::test_journal_that_cannot_be_written",),
    ),
    # ------------------------------------------------------------ limits
    Row(
        "cache_size: room is made before a fetch",
        _CACHE,
        "            await self.make_room(length)\n            reserved = True",
        "            self.index.reserve(length)\n            reserved = True",
        ("tests/mount/test_limits.py::test_cache_limit_under_open_files_and_parallel_readers",),
    ),
    Row(
        "cache_size: what was uploaded counts",
        _CACHE,
        "        short = self.index.short(0)\n        if short:\n            self._evict(short)",
        "        return",
        ("tests/mount/test_limits.py::test_stream_through_a_small_cache",),
    ),
    Row(
        "dirty_size: writers wait for room",
        _CONTENT,
        "            if volume.budget.room(size - node.inode.size):\n                return",
        "            return",
        (
            "tests/mount/test_limits.py::test_stream_through_a_small_cache",
            "tests/mount/test_limits.py::test_writers_wait_then_have_no_space",
        ),
    ),
    Row(
        "dirty_size: the wait is bounded",
        _VOLUME,
        "        if trio.current_time() >= deadline_s:\n            raise NoSpace(",
        "        if False:\n            raise NoSpace(",
        ("tests/engine/test_reading.py::test_full_budget_is_no_space_in_the_end",),
    ),
    Row(
        "a full disk: a reserve is left for the journal",
        _VOLUME,
        "min(_RESERVE // block, blocks // _RESERVE_PART)",
        "0",
        (
            "tests/mount/test_limits.py::test_disk_that_is_full_is_waited_for",
            "tests/mount/test_limits.py::test_disk_that_stays_full",
        ),
    ),
)
