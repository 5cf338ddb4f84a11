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


_PREFETCH = "b2fs/engine/prefetch.py"
_PREDICTOR = "b2fs/core/prefetch.py"
_PIN = "b2fs/core/pin.py"
_PINS = "b2fs/engine/pins.py"
_UPLOAD = "b2fs/engine/upload.py"
_DRAIN = "b2fs/engine/drain.py"
_CONTENT = "b2fs/engine/content.py"
_CACHE = "b2fs/engine/cache.py"
_VOLUME = "b2fs/engine/volume.py"
_FUSE = "b2fs/frontends/fuse.py"
_BUSY_POLL = "b2fs/frontends/busy_poll.py"
_ENGINE = "b2fs/engine/engine.py"
_FILES = "b2fs/engine/filesystem.py"
_WRITEBACK = "b2fs/core/writeback.py"
_RECOVERY = "b2fs/engine/recovery.py"
_DISK = "b2fs/adapters/disk.py"
_DAEMON = "b2fs/daemon.py"
_MERGING = "b2fs/engine/merging.py"
_RETRY = "b2fs/engine/retry.py"
_CLIENT = "b2fs/adapters/b2/client.py"
_LARGE = "b2fs/adapters/b2/large.py"
_PARTS = "b2fs/core/parts.py"
_REAPER = "b2fs/engine/reaper.py"
_JOURNAL = "b2fs/adapters/journal.py"
_INODE = "b2fs/core/inode.py"
_UNLOAD = "b2fs/core/unload.py"
_LESSONS = "tests/engine/test_lessons.py::"
_POWER = "tests/power/test_engine.py::"
_FAULTS = "tests/mount/test_faults.py::test_the_app_sees_nothing_of"

ROWS: tuple[Row, ...] = (
    # ------------------------------------------------------------ a bug is an EIO
    Row(
        "a bug is an EIO: the boundary around handlers",
        _FUSE,
        "            raise pyfuse3.FUSEError(errno.EIO) from None\n        finally:",
        "            raise\n        finally:",
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
        _DRAIN,
        "while not volume.read_only and not all(",
        "while not all(",
        ("tests/mount/test_bugs.py::test_journal_that_cannot_be_written",),
    ),
    Row(
        "memory: a large directory is not loaded for a file of it",
        "b2fs/engine/volume.py",
        "self.journal.has_more(directory.ino, _INLINE_ENTRIES)",
        "False",
        ("tests/engine/test_memory.py::test_single_names_of_a_directory",),
    ),
    Row(
        "memory: a file that was looked up alone is one node",
        "b2fs/engine/volume.py",
        "self.tree.nodes.get(inode.ino) or self._adopt(inode)",
        "self._adopt(inode)",
        ("tests/engine/test_memory.py::test_single_names_of_a_directory",),
    ),
    # ------------------------------------------------------------ prefetch
    Row(
        "prefetch: a part of the lanes is left to reads",
        _PREFETCH,
        "volume.settings.fetches - max(1, volume.settings.fetches // _LANES_LEFT)",
        "volume.settings.fetches",
        ("tests/engine/test_prefetch.py::test_reads_do_not_wait_behind_prefetches",),
    ),
    Row(
        "prefetch: off where too little of it is read",
        _PREFETCH,
        "if queue is self._predicted and not self._predictor.expects(wanted.blob):",
        "if False:",
        ("tests/engine/test_prefetch.py::test_random_access_switches_it_off",),
    ),
    Row(
        "prefetch: predictions that were not read are judged wrong",
        _PREDICTOR,
        "                    self._judges[prediction.ground].judge(False)\n\n    def _is_read(",
        "                    pass\n\n    def _is_read(",
        ("tests/core/test_prefetch.py::test_off_on_random_access_and_on_again",),
    ),
    Row(
        "prefetch: a kind of guess that fails switches off itself only",
        _PREDICTOR,
        "{ground: _Judge(limit) for ground, limit in _UNJUDGED.items()}",
        "dict.fromkeys(_UNJUDGED, _Judge(256))",
        ("tests/core/test_prefetch.py::test_each_ground_is_judged_by_itself",),
    ),
    Row(
        "prefetch: who goes from one directory to the next is no reader of one",
        _PREDICTOR,
        " and not self._was_listed(members[1].series[0])",
        "",
        ("tests/core/test_prefetch.py::test_who_goes_straight_to_a_document_is_believed_to_play_what_it_lists",),
    ),
    Row(
        "prefetch: what is not listed yet is looked for again",
        _PREFETCH,
        "                self._predictor.cut(member)\n                break",
        "                continue",
        ("tests/engine/test_prefetch.py::test_an_index_while_the_bucket_is_being_listed",),
    ),
    Row(
        "prefetch: what is unread fills a part of the cache",
        _PREFETCH,
        "unread + size > index.limit // _CACHE_PART or ",
        "",
        ("tests/engine/test_prefetch.py::test_what_is_unread_fills_a_quarter_of_the_cache",),
    ),
    Row(
        "prefetch: what had no room is looked for again",
        _PREFETCH,
        "self._left_out |= queue is self._named",
        "pass",
        ("tests/engine/test_prefetch.py::test_what_had_no_room_is_looked_for_again",),
    ),
    Row(
        "prefetch: it evicts nothing that was read",
        _PREFETCH,
        " or index.short(coming + size) > index.cold_bytes:",
        ":",
        ("tests/engine/test_prefetch.py::test_it_takes_nothing_from_what_was_read",),
    ),
    Row(
        "prefetch: it stops when B2 refuses",
        _PREFETCH,
        "        pause_s = retry.backoff_s(self._failures, fault)",
        "        pause_s = 0.0",
        ("tests/engine/test_prefetch.py::test_a_capped_account_is_left_alone",),
    ),
    Row(
        "prefetch: a read that joins a fetch is retried",
        _CACHE,
        "if not (flight.wanted and error.may_retry):",
        "if True:",
        ("tests/engine/test_prefetch.py::test_a_read_takes_over_the_fetch_that_is_under_way",),
    ),
    # ------------------------------------------------------------ pins
    Row(
        "pin: what comes is in no order of eviction",
        _CACHE,
        "self.index.add(name, size, kept=self.is_pinned(name))",
        "self.index.add(name, size)",
        ("tests/engine/test_pins.py::test_pinned_files_are_fetched_and_stay",),
    ),
    Row(
        "pin: the list of the coldest ends before it",
        _JOURNAL,
        "(*after, KEPT_S, limit)",
        "(*after, 2 * KEPT_S, limit)",
        ("tests/engine/test_pins.py::test_a_start_fetches_nothing_that_is_here",),
    ),
    Row(
        "pin: it fills a part of the cache",
        _PIN,
        "self.bytes + pin.size > self.limit or ",
        "",
        ("tests/engine/test_pins.py::test_half_of_the_cache",),
    ),
    Row(
        "pin: who goes leaves room to who was left out",
        _PINS,
        "self._want(*self._pins.look_again())",
        "pass",
        ("tests/engine/test_pins.py::test_half_of_the_cache",),
    ),
    Row(
        "pin: what is pinned no more may go",
        _PINS,
        "self._cache.unkeep(before.stem)",
        "pass",
        ("tests/engine/test_pins.py::test_names_decide",),
    ),
    Row(
        "pin: what the last run has pinned may go",
        _PINS,
        "        await self._free_marked()\n",
        "",
        ("tests/engine/test_pins.py::test_a_pattern_that_is_taken_away",),
    ),
    Row(
        "pin: what is removed may go",
        _PINS,
        "[ino for ino in change.gone if self._pins.get(ino) is not None]",
        "list[int]()",
        ("tests/engine/test_pins.py::test_what_another_host_changes_is_fetched_again",),
    ),
    Row(
        "pin: a file that is being written keeps its version",
        _PINS,
        "elif _is_clean(inode) and self._pins.put(",
        "elif self._pins.put(",
        ("tests/engine/test_pins.py::test_the_earlier_version_stays_while_a_file_is_written",),
    ),
    Row(
        "pin: a full disk may take it",
        _CACHE,
        "self._evict(size, pinned_too=True)",
        "pass",
        ("tests/engine/test_pins.py::test_a_full_disk_takes_them_last",),
    ),
    Row(
        "pin: a full disk takes it last",
        _CACHE,
        "and self.index.used == before:",
        "or True:",
        ("tests/engine/test_pins.py::test_a_full_disk_takes_them_last",),
    ),
    Row(
        "pin: nothing is fetched to a full disk",
        _PINS,
        " or not self._volume.disk_room(size):",
        ":",
        ("tests/engine/test_pins.py::test_nothing_is_fetched_to_a_full_disk",),
    ),
    Row(
        "pin: a part of the lanes is left to reads",
        _PINS,
        "trio.Semaphore(max(1, self._volume.settings.fetches // LANES_PART))",
        "trio.Semaphore(self._volume.settings.fetches)",
        ("tests/engine/test_pins.py::test_large_files_come_chunk_by_chunk",),
    ),
    Row(
        "pin: it is no prediction",
        _CACHE,
        "if not flight.wanted and not self.index.is_kept(name):",
        "if not flight.wanted:",
        ("tests/engine/test_pins.py::test_pinned_files_are_fetched_and_stay",),
    ),
    Row(
        "pin: it is fetched until it is here",
        _PINS,
        "            self._later(ino, retry.backoff_s(self._failures, fault))",
        "            pass",
        ("tests/engine/test_pins.py::test_faults",),
    ),
    # ------------------------------------------------------------ semantics
    Row(
        "POSIX: O_TRUNC empties, whatever the access mode",
        _FILES,
        "        if flags & os.O_TRUNC:",
        "        if flags & os.O_TRUNC and flags & os.O_ACCMODE != os.O_RDONLY:",
        ("tests/posix/test_open.py::test_trunc_empties",),
    ),
    Row(
        "POSIX: O_TRUNC by a stranger clears the set-id bits",
        _FUSE,
        "privileged=ctx.uid == 0",
        "privileged=True",
        ("tests/posix/test_open.py::test_trunc_clears_set_id_bits",),
    ),
    Row(
        "POSIX: a truncate by a stranger clears the set-id bits",
        _FILES,
        "new.size is not None and uid != 0",
        "new.size is not None and not uid >= 0",
        ("tests/posix/test_data.py::test_change_clears_set_id_bits",),
    ),
    Row(
        "POSIX: a write by a stranger clears the set-id bits",
        _FILES,
        "(is_nothing or is_chown",
        "(is_chown",
        ("tests/posix/test_data.py::test_change_clears_set_id_bits",),
    ),
    Row(
        "POSIX: a chown that names nobody is for the owner",
        _FILES,
        " and uid not in (0, old.uid) and not node.writers",
        " and False",
        ("tests/posix/test_agreement.py::test_calls_on_objects",),
    ),
    Row(
        "POSIX: a write by a stranger is no chown",
        _FILES,
        " and not node.writers:",
        ":",
        ("tests/posix/test_data.py::test_change_clears_set_id_bits",),
    ),
    Row(
        "FUSE: a write is one request",
        "b2fs/frontends/handshake.py",
        "flags |= offered & _HANDLE_KILLPRIV_V2",
        "flags |= 0",
        ("tests/mount/test_handshake.py::test_the_kernel_asks_for_capabilities_once",),
    ),
    Row(
        "FUSE: nobody stands between us and the kernel after its first message",
        "b2fs/frontends/handshake.py",
        "        os.dup2(self._kernel, descriptor, inheritable=False)",
        "        pass",
        ("tests/mount/test_handshake.py::test_the_first_message_and_its_answer_pass_by",),
    ),
    Row(
        "close: the times of a file are on disk, and its quiet period begins",
        _FILES,
        "                self._content.closed(node)",
        "                pass",
        ("tests/mount/test_lifecycle.py::test_sigkill_after_close_loses_nothing",),
    ),
    Row(
        "POSIX: the last unlink changes the ctime",
        "b2fs/core/tree.py",
        "replace(known.inode, nlink=0, ctime_ns=change.gone_ns or known.inode.ctime_ns)",
        "replace(known.inode, nlink=0)",
        ("tests/posix/test_data.py::test_unlink_changes_ctime",),
    ),
    Row(
        "POSIX: an open file outlives its name",
        _FILES,
        "            if not node.held:\n                self._content.release(node)\n\n    # ----",
        "            self._content.discard(node)\n\n    # ----",
        ("tests/posix/test_data.py::test_open_file_outlives_its_name",),
    ),
    Row(
        "POSIX: a time too far becomes the farthest",
        _INODE,
        "return min(max(time_ns, -_FARTHEST_NS), _FARTHEST_NS)",
        "return time_ns",
        ("tests/posix/test_deviations.py::test_farthest_times",),
    ),
    Row(
        "POSIX: O_CREAT opens what has just come",
        _FILES,
        "        if not flags & os.O_EXCL and self._tree.child(directory, name) is not None:",
        "        if False:",
        ("tests/posix/test_news.py::test_create_of_what_has_just_come",),
    ),
    Row(
        "POSIX: the kernel checks the rights",
        _FUSE,
        """        if allow_other:
            options.add("allow_other")""",
        """        options.discard("default_permissions")
        if allow_other:
            options.add("allow_other")""",
        ("tests/posix/test_directories.py::test_sticky", "tests/posix/test_times.py::test_who_may_set_times"),
    ),
    Row(
        "POSIX: a listing keeps its positions",
        _FILES,
        "        if start == 0:\n            directory",
        "        if True:\n            directory",
        ("tests/posix/test_directories.py::test_removal_while_listing",),
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
        "            due_s, _, key = heapq.heappop(self._heap)\n            entry = self.entries.get(key)\n"
        "            if entry is not None and not entry.running and entry.due_s == due_s:\n                entry.running",
        "            due_s, _, key = max(item for item in self._heap if item[0] <= now_s)\n"
        "            self._heap.remove((due_s, _, key))\n            heapq.heapify(self._heap)\n"
        "            entry = self.entries.get(key)\n"
        "            if entry is not None and not entry.running and entry.due_s == due_s:\n                entry.running",
        (_LESSONS + "test_first_in_first_out",),
    ),
    Row(
        "queue: what never rests is due at its greatest age",
        _WRITEBACK,
        "            self._put(entry, max(entry.due_s, min(now_s + self.quiet_s, entry.since_s + self.max_age_s)))",
        "            self._put(entry, now_s + self.quiet_s)",
        (_LESSONS + "test_rewritten_faster_than_its_upload", _LESSONS + "test_nobody_starves"),
    ),
    Row(
        "queue: a file that is never closed is sealed at its greatest age",
        _UPLOAD,
        "not self._volume.waiting_writers and age_left_s > 0",
        "not self._volume.waiting_writers",
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
        "queue: a lost answer is adopted, not repeated",
        _UPLOAD,
        "            version = self._lost_answer(newest, generation, live)",
        "            version = None",
        (
            "tests/engine/test_in_flight.py::test_lost_answer_of_an_upload_is_adopted",
            "tests/mount/test_kill.py::test_version_whose_answer_the_kill_took_is_adopted",
        ),
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
        "        if found == sha1:\n            return False\n        node",
        "        if found:\n            return False\n        node",
        (_LESSONS + "test_staged_content_that_the_disk_has_spoilt",),
    ),
    Row(
        "spoilt clean content is not uploaded again",
        _UPLOAD,
        "            if not is_clean:\n                raise",
        "            raise",
        (_LESSONS + "test_spoilt_clean_content_is_not_uploaded_again",),
    ),
    Row(
        "a cache file that is gone is a miss",
        _DISK,
        "        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)\n    except FileNotFoundError:",
        "        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)\n    except FileExistsError:",
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
        "        if left := self._drain.left(path, mark):",
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
    # ------------------------------------------------------------ power loss
    Row(
        "power: fsync puts the content on stable storage",
        _CONTENT,
        "            await volume.seam.thread(disk_module.fsync, own)",
        "            pass",
        (_POWER + "test_fsync_is_enough",),
    ),
    Row(
        "power: fsync puts the journal on stable storage",
        _CONTENT,
        "            pass\n        await volume.sync()",
        "            pass",
        (_POWER + "test_fsync_is_enough",),
    ),
    Row(
        "power: fsync puts the content's name on stable storage",
        _CONTENT,
        "            await volume.seam.thread(volume.disk.sync_names)\n            now = node.inode",
        "            now = node.inode",
        (_POWER + "test_fsync_is_enough",),
    ),
    Row(
        "power: sealed content is on stable storage before a row names it",
        _DISK,
        "                os.fsync(fd)\n            finally:\n                os.close(fd)\n            fsync_directory",
        "                pass\n            finally:\n                os.close(fd)\n            fsync_directory",
        (_POWER + "test_a_sealed_file_needs_no_fsync", _POWER + "test_an_fsynced_file_is_overwritten_and_sealed"),
    ),
    Row(
        "power: nothing is deleted before the journal has forgotten it for good",
        "b2fs/engine/reaper.py",
        "            await self._sync()",
        "            pass",
        (_POWER + "test_names_are_written_back_before_the_journal",),
    ),
    Row(
        "power: a start deletes nothing before the journal has forgotten it for good",
        _RECOVERY,
        "            disk.sync_names()\n            volume.journal.sync()",
        "            pass",
        (_POWER + "test_the_power_goes_after_a_kill",),
    ),
    Row(
        "power: content that no fsync covered is not trusted",
        _RECOVERY,
        "lost_power and found.synced != found.scratch",
        "False",
        (_POWER + "test_close_without_fsync", _POWER + "test_what_went_is_reported"),
    ),
    Row(
        "power: O_TRUNC leaves what an fsync acknowledged until what replaces it is as safe",
        _CONTENT,
        "        if size == 0 and node.inode.scratch and node.inode.synced == node.inode.scratch:",
        "        if False:",
        (_POWER + "test_an_fsynced_file_is_overwritten",),
    ),
    Row(
        "power: what unhashed content replaced is kept until that is hashed",
        _CONTENT,
        "            synced = before if before and inode.sha1 and inode.synced != number else inode.synced",
        "            synced = inode.synced if inode.synced == number else 0",
        (_POWER + "test_an_fsynced_file_is_overwritten_and_frozen",),
    ),
    Row(
        "power: a file that was opened with O_TRUNC is not sealed before it is written",
        _CONTENT,
        "            if patient and node.writers > 0:\n                return None\n",
        "",
        (_POWER + "test_an_fsynced_file_is_emptied_while_it_is_sealed",),
    ),
    Row(
        "power: fsync of a directory covers the files in it",
        _FILES,
        "            if child is not None and child.inode.unsealed not in (0, child.inode.synced):",
        "            if False:",
        (_POWER + "test_fsync_of_a_directory_keeps_its_files", _POWER + "test_fsync_of_a_file_that_is_frozen"),
    ),
    Row(
        "power: a flush is acknowledged once the journal knows it for good",
        _DRAIN,
        "                await volume.sync()\n                await volume.reaper.reap()",
        "                pass",
        (_POWER + "test_a_flush_that_was_acknowledged",),
    ),
    Row(
        "power: an fsync is noted, so that the content is trusted",
        _CONTENT,
        "                volume.commit(Change(inodes=[replace(now, synced=number)]))\n                self._drop",
        "                self._drop",
        (_POWER + "test_fsync_is_enough",),
    ),
    Row(
        "power: a file is made safe before it takes the name of one that is",
        _FILES,
        "        if replaced.inode.synced or replaced.inode.staged:\n",
        "        if False:\n",
        (_POWER + "test_rename_over_by_a_file_that_was_never_fsynced",),
    ),
    Row(
        "power: no scratch name goes before the staged one is on the disk",
        _REAPER,
        "            await self._seam.thread(self._disk.sync_names)\n",
        "",
        (_POWER + "test_names_are_written_back_before_the_journal",),
    ),
    Row(
        "power: a power loss is noticed",
        _ENGINE,
        '        journal.set_meta("boot", boot)\n',
        "",
        (_POWER + "test_close_without_fsync",),
    ),
    Row(
        "power: frozen content that nobody fsynced is distrusted",
        _RECOVERY,
        "lost_power and not found.sha1 and found.synced != found.staged",
        "False",
        (_POWER + "test_a_stop_does_not_make_frozen_content_safe",),
    ),
    Row(
        "power: a stop does not call unsealed content safe",
        _ENGINE,
        "if not volume.read_only and not journal.has_unsealed():",
        "if True:",
        (_POWER + "test_a_stop_does_not_make_frozen_content_safe",),
    ),
    Row(
        "power: sealed content is compared with its SHA-1",
        _RECOVERY,
        "        if found == sha1:",
        "        if True:",
        (
            _POWER + "test_a_damaged_staged_file",
            _POWER + "test_a_short_staged_file",
        ),
    ),
    Row(
        "power: the state directory's own name is on the disk",
        _DISK,
        "                fsync_directory(os.path.dirname(self.root))\n",
        "                pass\n",
        (_POWER + "test_the_first_fsync_of_a_new_state_directory",),
    ),
    Row(
        "power: a file that falls back to B2 is as the version there",
        _INODE,
        '    mtime_ns = int(_fields(described)["t"])',
        "    mtime_ns = -1",
        (_POWER + "test_a_damaged_staged_file",),
    ),
    Row(
        "power: a checkpoint syncs",
        _JOURNAL,
        "PRAGMA synchronous = NORMAL",
        "PRAGMA synchronous = OFF",
        (_POWER + "test_a_checkpoint_comes_between",),
    ),
    # ------------------------------------------------------------ faults of B2
    Row(
        "faults: a passing fault of a read is retried",
        _RETRY,
        "                if not error.may_retry:\n                    raise",
        "                raise",
        ("tests/engine/test_reading.py::test_passing_read_fault_is_not_seen", f"{_FAULTS}[503 on everything else]"),
    ),
    Row(
        "faults: a failed upload gets another upload URL",
        _CLIENT,
        "            self._urls.append(target)\n            return answers.row(answer)",
        "            return answers.row(answer)",
        (f"{_FAULTS}[503 on upload]",),
    ),
    Row(
        "faults: bytes that arrive are checked",
        _CLIENT,
        "            if digest is not None and digest.hexdigest() != sha1:",
        "            if False:",
        (f"{_FAULTS}[corrupted download]",),
    ),
    Row(
        "faults: what B2 confirms is compared with what was sent",
        _CLIENT,
        "    if version.key != key or version.size != size or (sha1 and version.sha1 != sha1):",
        "    if False:",
        ("tests/adapters/test_b2_client.py::test_wrong_confirmation",),
    ),
    Row(
        "faults: a stale listing hides nothing that an earlier run brought to B2",
        _MERGING,
        "        if young or row.generation >= volume.start_generation:",
        "        if row.generation >= volume.start_generation:",
        ("tests/mount/test_faults.py::test_stale_listing_after_a_restart_hides_nothing",),
    ),
    Row(
        "faults: a stale listing undoes nothing that we did",
        "b2fs/core/merge.py",
        "    if row.generation >= began:\n        return False",
        "    pass",
        ("tests/core/test_merge.py::test_what_we_wrote_after_the_listing_began_wins",),
    ),
    Row(
        "faults: an outage at a start is waited out",
        _ENGINE,
        "            except BucketError as error:\n                attempts += 1\n                pause_s = min(",
        "            except KeyError as error:\n                attempts += 1\n                pause_s = min(",
        ("tests/mount/test_outage.py::test_outage_over_restarts",),
    ),
    # ------------------------------------------------------------ crash recovery and the end
    Row(
        "SIGKILL: what was written is adopted",
        _RECOVERY,
        '            kept["scratch"].add(going_on.scratch)',
        "            pass",
        ("tests/mount/test_kill.py::test_nothing_acknowledged_is_lost",),
    ),
    Row(
        "SIGKILL: what waits for B2 is taken up again",
        _ENGINE,
        "        count = volume.restore_intents()",
        "        count = 0",
        ("tests/mount/test_kill.py::test_nothing_acknowledged_is_lost",),
    ),
    Row(
        "SIGKILL: a large upload goes on with its parts",
        _UPLOAD,
        "await volume.bucket.upload(key, path, size, sha1, info, kind, entry.doubtful, known)",
        "await volume.bucket.upload(key, path, size, sha1, info, kind, False, known)",
        ("tests/mount/test_large.py::test_killed_daemon_goes_on_with_its_parts",),
    ),
    Row(
        "rescue brings an orphaned state directory to B2",
        "b2fs/rescue.py",
        "await engine.drain(report=lambda: self._report(engine))",
        "pass",
        ("tests/mount/test_rescue.py::test_rescue_of_a_killed_daemon",),
    ),
    Row(
        "a drain ends though a program goes on writing",
        _DRAIN,
        "if concerns(key) and entry.reached <= mark and not",
        "if concerns(key) and not",
        (_LESSONS + "test_drain_ends_while_a_program_goes_on_writing",),
    ),
    Row(
        "power: what has a name in the cache is on the disk, large blobs",
        _CACHE,
        "                await volume.seam.thread(volume.disk.secure_part, number)",
        "                pass",
        (_POWER + "test_the_cache_may_be_anything",),
    ),
    Row(
        "power: what has a name in the cache is on the disk",
        "b2fs/engine/settling.py",
        "            kept |= await volume.seam.thread(volume.disk.secure_parts, parts)",
        "            kept |= {*parts}",
        (_POWER + "test_the_cache_may_be_anything",),
    ),
    Row(
        "faults: one odd refusal of a key that has worked is not believed",
        "b2fs/adapters/b2/account.py",
        "        return error if self._refusals >= _BELIEVED else",
        "        return error if self._refusals >= 1 else",
        ("tests/adapters/test_b2_client.py::test_key_that_was_accepted_is_not_given_up_at_once",),
    ),
    # ------------------------------------------------------------ what the kernel is told
    Row(
        "notices: none about a name that the kernel never asked for",
        _FUSE,
        "        if changed.is_new and node is not None and not node.denied:",
        "        if False:",
        ("tests/mount/test_notices.py::test_new_names_that_nobody_asked_for",),
    ),
    Row(
        "notices: none about a directory that the kernel has looked up",
        _FUSE,
        "        if not self._has_looked(parent, name):",
        "        if True:",
        ("tests/mount/test_notices.py::test_directory_that_was_looked_up",),
    ),
    Row(
        "notices: who was told that a name is absent hears of it",
        _FUSE,
        "                directory.denied = True",
        "                pass",
        ("tests/mount/test_notices.py::test_name_that_was_absent_appears",),
    ),
    # ------------------------------------------------------------ extended attributes, hard links
    Row(
        "xattr: a change is a new version",
        "b2fs/core/inode.py",
        '        fields += f";x={inode.xattrs}"',
        '        fields += ""',
        ("tests/engine/test_xattrs.py::test_a_change_is_one_version",),
    ),
    Row(
        "xattr: they stand in fileInfo",
        "b2fs/core/inode.py",
        "        info[INFO_XATTR] = inode.xattrs",
        "        pass",
        ("tests/engine/test_xattrs.py::test_attributes_reach_another_host",),
    ),
    Row(
        "xattr: they are in the journal",
        "b2fs/adapters/journal.py",
        "scratch, synced, xattrs, link,\n        complete != 0",
        'scratch, synced, "", link,\n        complete != 0',
        ("tests/engine/test_xattrs.py::test_survives_sigkill",),
    ),
    Row(
        "xattr: a directory's come with its marker",
        "b2fs/engine/merging.py",
        "ctime_ns=described.ctime_ns, xattrs=described.xattrs,",
        "ctime_ns=described.ctime_ns,",
        ("tests/engine/test_xattrs.py::test_attributes_reach_another_host",),
    ),
    Row(
        "xattr: what has no room is refused",
        "b2fs/core/tree.py",
        '                for key in self.keys(node) or [""]:',
        "                for key in []:",
        ("tests/engine/test_xattrs.py::test_what_cannot_be_set",),
    ),
    Row(
        "xattr: no later chown makes the header too long",
        "b2fs/core/inode.py",
        '    return to_info(replace(inode, uid=_LARGEST_ID, gid=_LARGEST_ID, mtime_ns=_LONGEST_TIME), _LONGEST_OPERATION, "")',
        '    return to_info(inode, _LONGEST_OPERATION, "")',
        ("tests/engine/test_xattrs.py::test_full_header_reaches_b2",),
    ),
    Row(
        "xattr: a directory does not move to where a file would have no room",
        "b2fs/engine/filesystem.py",
        "            names.check_key(prefix, names.marker(key) if inode.is_dir else key, largest_info(inode))",
        "            pass",
        ("tests/engine/test_xattrs.py::test_directory_that_gets_a_longer_name",),
    ),
    Row(
        "link: a change makes the keys in other directories dirty",
        "b2fs/core/tree.py",
        "        if len(node.parents) < node.inode.nlink:\n            return self.all_keys(node.ino)\n",
        "",
        ("tests/engine/test_links.py::test_change_by_one_name",),
    ),
    Row(
        "link: the first name's object gets the link id",
        "b2fs/core/tree.py",
        "            change.dirty += self.keys(node)\n        for key",
        "            pass\n        for key",
        ("tests/engine/test_links.py::test_second_name",),
    ),
    Row(
        "link: a file moves out of the version of a name that it lost",
        "b2fs/engine/upload.py",
        "            if home:\n                volume.commit(",
        "            if home and not home:\n                volume.commit(",
        ("tests/engine/test_links.py::test_change_by_one_name",),
    ),
    Row(
        "link: the same when another host removed the name",
        "b2fs/engine/merging.py",
        "self._volume.other_home(old, key) or old.file_id",
        "old.file_id",
        ("tests/engine/test_links.py::test_another_host_removes_a_name",),
    ),
    Row(
        "link: a name goes whose version is not the file's home",
        "b2fs/engine/merging.py",
        'inode.file_id == row.file_id or inode.link != ""',
        "inode.file_id == row.file_id",
        ("tests/engine/test_links.py::test_another_host_removes_a_name",),
    ),
    Row(
        "link: objects with one id are one file",
        "b2fs/engine/merging.py",
        "            if not has_body or (inode.size, inode.sha1)",
        "            if not has_body and (inode.size, inode.sha1)",
        ("tests/engine/test_links.py::test_second_name",),
    ),
    Row(
        "link: a copy by another tool is no name",
        "b2fs/core/inode.py",
        '    return link if _LINK_ID.fullmatch(link) and field == _link_field(link, key) else ""',
        '    return link if _LINK_ID.fullmatch(link) else ""',
        ("tests/engine/test_links.py::test_copy_by_another_tool_is_no_name",),
    ),
    Row(
        "link: the front end hears of it",
        "b2fs/engine/merging.py",
        "                self._volume.on_change(Changed(inode.ino, None))",
        "                pass",
        ("tests/engine/test_links.py::test_another_host_removes_a_name",),
    ),
    Row(
        "link: fsync reaches B2 by every name",
        "b2fs/engine/filesystem.py",
        "else self._tree.keys(node)\n",
        "else [self._tree.path(node)]\n",
        ("tests/engine/test_links.py::test_fsync_of_a_file_whose_other_name_wants_b2",),
    ),
    Row(
        "link: content of unknown SHA-1 has one name",
        "b2fs/core/tree.py",
        "        if old.size and not (old.sha1 or old.scratch or old.staged):",
        "        if False:",
        ("tests/core/test_tree.py::test_no_link",),
    ),
    Row(
        "link: a flush is about the name that was asked for",
        "b2fs/engine/engine.py",
        "self.volume.tree.path(child) if child.inode.is_dir else names.join(real, name)",
        "self.volume.tree.path(child)",
        ("tests/engine/test_links.py::test_flush_is_about_the_name_that_was_asked_for",),
    ),
    Row(
        "link: an old name is hidden after the new one is there",
        _VOLUME,
        "                if not is_there and self.schedule.covers(key):",
        "                if False:",
        ("tests/engine/test_links_elsewhere.py::test_old_name_of_a_linked_file_stays_until_the_new_one_is_there",),
    ),
    Row(
        "link: symlinks that point elsewhere are two",
        _MERGING,
        "has_body = inode.is_file or inode.is_link",
        "has_body = inode.is_file",
        ("tests/engine/test_links_elsewhere.py::test_symlinks_of_one_id_that_point_elsewhere",),
    ),
    Row(
        "a name that was given while the listing waited stays",
        _MERGING,
        "if volume.schedule.covers(key) or (old is not None and self._is_written(old.ino)):",
        "if old is not None and self._is_written(old.ino):",
        ("tests/engine/test_loading.py::test_name_that_is_given",),
    ),
    Row(
        "a row that changed while its directory was loaded is read again",
        _VOLUME,
        "            self._overtaken.update(inode.ino for inode in change.inodes if inode.ino not in self.tree.nodes)\n",
        "",
        ("tests/engine/test_loading.py::test_row_that_changes",),
    ),
    Row(
        "names that changed while their directory was loaded are read again",
        _VOLUME,
        "            self._overtaken.update([link[0] for link in change.links] + [name[0] for name in change.unlinks])\n",
        "",
        ("tests/engine/test_loading.py::test_name_that_is_forgotten",),
    ),
    Row(
        "symlink: a target that only its version knows is copied",
        _UPLOAD,
        "        elif live.size and not live.target:",
        "        elif live.is_file and live.size:",
        ("tests/engine/test_special.py::test_changed_by_another_host",),
    ),
    Row(
        "symlinks and special files: an old name is hidden after the new one is there, and goes with its object",
        _UPLOAD,
        "        if row is None or live.is_dir or not",
        "        if row is None or not live.is_file or not",
        (
            "tests/engine/test_special.py::test_old_name_stays_until_the_new_one_is_there",
            "tests/engine/test_special.py::test_removed_by_another_host",
        ),
    ),
    Row(
        "symlink: an object that is too large for one is a file",
        _INODE,
        "    is_odd = stat.S_ISLNK(mode) and version.size > _LONGEST_TARGET",
        "    is_odd = False",
        ("tests/engine/test_special.py::test_body_that_is_too_large_for_a_target",),
    ),
    Row(
        "xattr: a foreign name that nobody could set says nothing",
        "b2fs/core/xattrs.py",
        "for name, value in pairs if _can_be(USER + name)}",
        "for name, value in pairs if name}",
        ("tests/core/test_xattrs.py::test_foreign_name_that_none_could_set",),
    ),
    Row(
        "first start: tables and version come together",
        "b2fs/adapters/journal.py",
        "{schema.WHOLE} {version} COMMIT",
        "{schema.WHOLE} COMMIT",
        ("tests/adapters/test_journal.py::test_a_first_start_that_ends_after_any_transaction",),
    ),
    Row(
        "the journal: no checkpoint that SQLite's WAL-reset bug could meet",
        "b2fs/adapters/journal.py",
        "            if self._db.total_changes == self._moved:",
        "            if False:",
        ("tests/adapters/test_journal.py::test_checkpoint_is_for_what_is_new",),
    ),
    # ------------------------------------------------------------ changes in large files
    Row(
        "large changes: a copied part has the SHA-1 of the local bytes",
        _LARGE,
        "        if copied != sha1:",
        "        if False:",
        ("tests/adapters/test_b2_base.py::test_a_wrong_hint_changes_no_byte",),
    ),
    Row(
        "large changes: without a base all is uploaded",
        _CLIENT,
        "            except BaseLost:",
        "            except ZeroDivisionError:",
        ("tests/adapters/test_b2_base.py::test_base_that_is_gone",),
    ),
    Row(
        "large changes: what is sent makes parts that B2 takes",
        _PARTS,
        "            start = done + limits.least  #",
        "            pass  #",
        ("tests/core/test_parts.py::test_any_cut",),
    ),
    Row(
        "large changes: what differs is not named as the same",
        _DISK,
        "        if os.pread(whole, size, offset + start) == os.pread(part, size, start):",
        "        if True:",
        ("tests/engine/test_base.py::test_page_in_an_object_that_was_written_here",),
    ),
    # ------------------------------------------------------------ memory
    Row(
        "memory: an inode has one node, as long as an operation refers to it",
        _UNLOAD,
        "    if _references(tree.nodes, ino) > _UNUSED:\n        return False",
        "    if False:\n        return False",
        ("tests/core/test_unload.py::test_what_an_operation_refers_to_stays",),
    ),
    Row(
        "memory: the same for what an operation has found in a directory",
        _UNLOAD,
        "    if _references(tree.nodes, ino) > _UNUSED:\n        return True",
        "    if False:\n        return True",
        ("tests/core/test_unload.py::test_what_an_operation_refers_to_stays",),
    ),
    Row(
        "memory: the stat of a scratch file is not in its row",
        _UNLOAD,
        "node.fd >= 0 or node.inode.scratch or",
        "node.fd >= 0 or",
        ("tests/core/test_unload.py::test_what_is_being_written_stays",),
    ),
    Row(
        "memory: a directory that is not loaded is not proven empty",
        "b2fs/core/tree.py",
        "        if node.children is None or node.children:",
        "        if node.children:",
        ("tests/core/test_tree.py::test_directory_that_is_not_loaded_is_not_proven_empty",),
    ),
    Row(
        "memory: what is gone by its number is stale, so that the kernel looks the name up again",
        _VOLUME,
        "            raise Stale(",
        "            raise NotDirectory(",
        ("tests/engine/test_memory.py::test_what_went_meanwhile",),
    ),
    Row(
        "memory: how often the kernel was told of an inode outlives its node",
        _UNLOAD,
        "    if node.lookups > 0:",
        "    if False:",
        (
            "tests/core/test_unload.py::test_lookups_are_remembered",
            "tests/engine/test_memory.py::test_what_went_meanwhile",
        ),
    ),
    Row(
        "memory: what the kernel forgot takes no room",
        "b2fs/core/counts.py",
        "        if block == self._empty:",
        "        if False:",
        ("tests/core/test_counts.py::test_they_count_as_a_dict_does",),
    ),
    Row(
        "memory: rows share the numbers that are equal",
        _JOURNAL,
        "@lru_cache(_FEW)",
        "",
        ("tests/adapters/test_journal.py::test_equal_numbers_are_shared",),
    ),
    Row(
        "growth: nothing that is asked for often reads a whole table",
        "b2fs/adapters/schema.py",
        "CREATE INDEX object_hidden ON object (uploaded_ms) WHERE file_id = '';",
        "",
        ("tests/adapters/test_journal.py::test_nothing_reads_a_whole_table",),
    ),
    Row(
        "growth: an eviction goes on where the last one was",
        _CACHE,
        "        gone: list[str] = []\n        while wanted",
        '        gone: list[str] = []\n        self._coldest = (-1, 0, "")\n        while wanted',
        ("tests/engine/test_memory.py::test_eviction_goes_on_where_it_was",),
    ),
    # ------------------------------------------------------------ from the start to the end
    Row(
        "end: nothing is closed while somebody of the engine's nursery is left",
        _ENGINE,
        "                nursery.cancel_scope.cancel()\n        # Nobody",
        "                nursery.cancel_scope.cancel()\n                journal.close()\n        # Nobody",
        ("tests/engine/test_reading.py::test_a_stop_closes_nothing_that_is_in_use",),
    ),
    Row(
        "end: a crash of the interpreter names its place",
        "b2fs/ops/logs.py",
        "    faulthandler.enable()\n",
        "",
        ("tests/mount/test_bugs.py::test_crash_of_the_interpreter_names_its_place",),
    ),
    Row(
        "start: ready waits for the first names of an unknown bucket",
        _DAEMON,
        "_FIRST_NAMES_S = 1.0",
        "_FIRST_NAMES_S = 0.0",
        ("tests/mount/test_lifecycle.py::test_first_names_come_before_ready",),
    ),
    Row(
        "start: ready waits for no names that do not come",
        _DAEMON,
        "_FIRST_NAMES_S = 1.0",
        "_FIRST_NAMES_S = 60.0",
        ("tests/mount/test_lifecycle.py::test_first_names_come_before_ready",),
    ),
    Row(
        "start: who waited for a mount that knows its bucket comes before the listing",
        "b2fs/engine/listing.py",
        "_LATER_S = 2.0",
        "_LATER_S = 0.0",
        ("tests/engine/test_reading.py::test_later_start_looks_for_news_after_the_first_readers",),
    ),
    Row(
        "start: who waited for a mount comes before the sweep of its cache",
        "b2fs/engine/engine.py",
        "_SWEEP_S = 5.0",
        "_SWEEP_S = 0.0",
        ("tests/engine/test_reading.py::test_the_cache_is_swept",),
    ),
    Row(
        "start: what a crash left in the cache does not wait",
        "b2fs/engine/engine.py",
        "        if self._ended_in_order:\n",
        "        if True:\n",
        ("tests/engine/test_reading.py::test_the_cache_is_swept",),
    ),
    Row(
        "settling: what was evicted meanwhile gets no place",
        "b2fs/engine/settling.py",
        "        if self.blobs.get(name) is not blob:",
        "        if False:",
        ("tests/engine/test_reading.py::test_a_version_gets_another_id_before_its_blob_has_settled",),
    ),
    Row(
        "versions that end alike are two",
        _JOURNAL,
        "AND +file_id = ?",
        "AND +file_id >= ?",
        ("tests/adapters/test_journal.py::test_what_is_not_in_b2",),
    ),
    Row(
        "busy polling: others have a turn",
        _BUSY_POLL,
        "if answered_s - self._turn_began_s < _TURN_S:",
        "if True:",
        ("tests/mount/test_busy_poll.py::test_others_have_a_turn_while_requests_keep_coming",),
    ),
    Row(
        "busy polling: nobody is looked for while a handler waits",
        _FUSE,
        "requests.under_way += 1",
        "pass",
        ("tests/mount/test_busy_poll.py::test_handlers_that_wait_are_counted",),
    ),
)
