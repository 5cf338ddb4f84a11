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
_FILES = "b2fs/engine/filesystem.py"
_WRITEBACK = "b2fs/core/writeback.py"
_RECOVERY = "b2fs/engine/recovery.py"
_DISK = "b2fs/adapters/disk.py"
_DAEMON = "b2fs/daemon.py"
_LESSONS = "tests/engine/test_lessons.py::"

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
    # ------------------------------------------------------------ the queue
    Row(
        "queue: the longest due first",
        _WRITEBACK,
        "            heapq.heappush(self._heap, (due_s, entry.generation, entry.key))",
        "            heapq.heappush(self._heap, (due_s, -entry.generation, entry.key))\n"
        "            self._heap.sort(key=lambda item: -item[0])",
        (_LESSONS + "test_first_in_first_out",),
    ),
    Row(
        "queue: what never rests is due at its greatest age",
        _WRITEBACK,
        "        self._put(entry, min(now_s + self.quiet_s, entry.since_s + self.max_age_s) if quiet else now_s)",
        "        self._put(entry, now_s + self.quiet_s if quiet else now_s)",
        (_LESSONS + "test_rewritten_faster_than_its_upload", _LESSONS + "test_nobody_starves"),
    ),
    Row(
        "queue: a file that is never closed is sealed at its greatest age",
        _UPLOAD,
        "            if age_left_s > 0:",
        "            if True:",
        ("tests/engine/test_coalescing.py::test_file_held_open_is_sealed_at_its_greatest_age",),
    ),
    Row(
        "queue: old names are hidden only once the new ones are confirmed",
        _WRITEBACK,
        "        return Step.WAIT if needed else Step.HIDE",
        "        return Step.HIDE",
        (
            _LESSONS + "test_directory_half_of_whose_files_cannot_be_copied",
            "tests/engine/test_order.py::test_old_name_stays_while_the_new_one_fails",
        ),
    ),
    Row(
        "queue: a version at a name that is about to be hidden is nobody's home",
        _UPLOAD,
        "    return named and not now.staged",
        "    return not now.staged",
        ("tests/engine/test_order.py::test_directory_renamed_while_its_file_is_uploaded",),
    ),
    Row(
        "queue: a lost answer is adopted, not repeated",
        _UPLOAD,
        "            version = await self._lost_answer(key, generation, live) if entry.doubtful else None",
        "            version = None",
        ("tests/engine/test_in_flight.py::test_lost_answer_of_an_upload_is_adopted",),
    ),
    Row(
        "queue: what B2 refuses blocks nobody",
        _UPLOAD,
        "            self._again(entry, pause_s, str(error), lasting=not error.may_retry)",
        "            raise",
        ("tests/engine/test_order.py::test_refused_name_is_set_aside",),
    ),
    # ------------------------------------------------------------ content that is not what it was
    Row(
        "spoilt staged content is set aside",
        _RECOVERY,
        "        if found == sha1:\n            return True\n        node",
        "        if found:\n            return True\n        node",
        (_LESSONS + "test_staged_content_that_the_disk_has_spoilt",),
    ),
    Row(
        "spoilt content falls back to the version in B2",
        _RECOVERY,
        "        row = volume.journal.object_of(inode.file_id) if inode.file_id else None",
        "        row = None",
        (_LESSONS + "test_staged_content_that_the_disk_has_spoilt",),
    ),
    Row(
        "spoilt clean content is not uploaded again",
        _UPLOAD,
        "            if not own or not live.size:\n                raise",
        "            raise",
        (_LESSONS + "test_spoilt_clean_content_is_not_uploaded_again",),
    ),
    Row(
        "a cache file that is gone is a miss",
        _DISK,
        "            return os.open(self.blob_path(name), os.O_RDONLY | os.O_CLOEXEC)\n        except FileNotFoundError:",
        "            return os.open(self.blob_path(name), os.O_RDONLY | os.O_CLOEXEC)\n        except FileExistsError:",
        (_LESSONS + "test_cache_files_deleted_by_somebody",),
    ),
    # ------------------------------------------------------------ the ladder
    Row(
        "remote_fsync: fsync waits for B2",
        _FILES,
        "        await self._content.sync(node)\n        await self._reach_b2(node)",
        "        await self._content.sync(node)",
        (_LESSONS + "test_fsync_of_a_path_that_is_to_be_in_b2",),
    ),
    Row(
        "remote_fsync: what B2 does not confirm is an error",
        _FILES,
        "        if left := self._uploader.left(path):",
        "        if left := []:",
        (_LESSONS + "test_fsync_that_b2_does_not_confirm",),
    ),
    Row(
        "B2 did not answer is never: the file does not exist",
        _FILES,
        "        if node is None and not directory.inode.complete:",
        "        if node is None and not directory.inode.complete and self._listing.complete:",
        ("tests/engine/test_reading.py::test_unknown_name_while_b2_is_down",),
    ),
    Row(
        "a stop brings everything to B2 before it ends with 0",
        _DAEMON,
        "            is_done = not await engine.drain()",
        "            is_done = True",
        (
            "tests/mount/test_lifecycle.py::test_drain_timeout_leaves_a_manifest",
            "tests/mount/test_lifecycle.py::test_signal_drains",
        ),
    ),
    Row(
        "a state directory belongs to one bucket",
        _ENGINE,
        "        if known[name] != value:",
        "        if False:",
        ("tests/mount/test_bad_input.py::test_state_of_another_bucket",),
    ),
)
