"""What others do to the bucket: it appears by a refresh, a stale listing changes nothing, and ours is never lost."""

from __future__ import annotations

import contextlib
import os

import pytest
import trio
import trio.testing

from b2fs.core.bucket import Page, Version
from b2fs.core.change import Change
from b2fs.core.inode import ROOT
from b2fs.errors import BucketError, Fault, NotEmpty, NotFound
from tests.engine.seams import HookSeam
from tests.engine.world import DOWN, Mount, World
from tests.fakes.bucket import Planted


@pytest.fixture
def large_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every directory is loaded as large ones are: by a thread, while other things happen."""
    monkeypatch.setattr("b2fs.engine.volume._INLINE_ENTRIES", -1)


class _Stale:
    """From now on listings and heads say what the bucket was when this was made, until `end`."""

    def __init__(self, world: World) -> None:
        self._bucket = world.bucket
        self._objects = world.bucket.objects()
        self._real = world.bucket.objects
        world.bucket.objects = lambda: self._objects  # type: ignore[method-assign]

    def end(self) -> None:
        self._bucket.objects = self._real  # type: ignore[method-assign]


async def test_creation_change_and_deletion_appear(world: World, autojump_clock: object) -> None:
    """After a refresh the tree is what another client left in the bucket."""
    for name in ("kept", "changed", "gone", "d/gone"):
        world.bucket.put(name, b"old")
    async with world.mount() as m:
        await m.tree()
        world.bucket.put("changed", b"new content")
        world.bucket.put("new/x", b"x")
        world.bucket.hide_now("gone")
        world.bucket.hide_now("d/gone")
        await m.refresh()
        tree = await m.tree()
        assert {path: entry.content for path, entry in tree.items()} == {
            "kept": b"old", "changed": b"new content", "new": b"", "new/x": b"x",
        }  # fmt: skip
        assert m.dirty() == set()


async def test_changes_while_we_were_away(world: World, autojump_clock: object) -> None:
    """The same when they were made between two runs."""
    for name in ("changed", "gone"):
        world.bucket.put(name, b"old")
    async with world.mount() as m:
        await m.tree()
    world.bucket.put("changed", b"new")
    world.bucket.hide_now("gone")
    async with world.mount(listing=False) as m:
        assert await m.read("changed") == b"old"
        await m.refresh()
        assert {path: entry.content for path, entry in (await m.tree()).items()} == {"changed": b"new"}


async def test_open_handle_keeps_its_version(world: World, autojump_clock: object) -> None:
    """Who has a file open goes on reading the version that was opened, cached or not; a new open sees the new one."""
    for name in ("overwritten", "deleted"):
        world.bucket.put(name, bytes(3 << 20))
    async with world.mount() as m:
        handles = [await m.open(name) for name in ("overwritten", "deleted")]
        for handle in handles:
            assert await m.files.read(handle, 0, 10) == bytes(10)
        world.bucket.put("overwritten", b"\1" * (3 << 20))
        world.bucket.hide_now("deleted")
        await m.refresh()
        for handle in handles:
            assert await m.files.read(handle, 0, 4 << 20) == bytes(3 << 20)
        assert await m.read("overwritten") == b"\1" * (3 << 20)
        assert not await m.exists("deleted")
        for handle in handles:
            await m.close(handle)
        assert not await m.exists("deleted")


async def test_equal_content_of_another_client_keeps_the_inode(world: World, autojump_clock: object) -> None:
    """A new version with equal bytes and attributes is not a change for anybody here."""
    info = {"src_last_modified_millis": "1600000000000"}
    world.bucket.put("x", b"same", info)
    async with world.mount() as m:
        ino = (await m.node("x")).ino
        world.bucket.put("x", b"same", info)
        await m.refresh()
        assert (await m.node("x")).ino == ino
        assert await m.read("x") == b"same"


async def test_stale_listing_cannot_undo_what_we_did(world: World, autojump_clock: object) -> None:
    """Delete, create, rename, change, all confirmed; a listing from before that is merged: nothing happens."""
    for name in ("deleted", "renamed", "changed", "d/x"):
        world.bucket.put(name, b"old")
    async with world.mount() as m:
        await m.tree()
        stale = _Stale(world)
        world.bucket.head = _head_of(stale)  # type: ignore[method-assign]
        await m.unlink("deleted")
        await m.rename("renamed", "elsewhere")
        await m.write("changed", b"new")
        await m.write("created", b"new")
        await m.rename("d", "e")
        expected = await m.tree()
        await m.drained()
        await m.refresh()
        assert await m.tree() == expected
        stale.end()
        await m.refresh()
        assert await m.tree() == expected
        assert m.dirty() == set()
    assert await world.seen_by_another() == expected


def _head_of(stale: _Stale):  # type: ignore[no-untyped-def]
    async def head(key: str) -> Version | None:
        return stale._real().get(key)

    return head


async def test_stale_listing_after_an_unheard_hide(world: World, autojump_clock: object) -> None:
    """Our delete took effect, its answer was lost: a listing from before it still does not bring the file back."""
    world.bucket.put("x", b"old")
    async with world.mount() as m:
        stale = _Stale(world)
        world.bucket.faults.append(Planted("hide", DOWN, after=True))
        await m.unlink("x")
        await m.idle()
        await m.refresh()
        assert not await m.exists("x")
        stale.end()


@pytest.mark.slow
async def test_listing_that_fails_midway_proves_nothing(world: World, autojump_clock: object) -> None:
    """Of 2500 names the second page fails: no directory is complete, no name is taken as absent; later all are there."""
    for number in range(2500):
        world.bucket.put(f"f{number:05}", b"")
    pages: list[str] = []
    async with world.mount(listing=False, upload=False) as m:
        real = world.bucket.list_page

        async def failing(prefix: str, start: str, delimiter: str, limit: int) -> Page:
            pages.append(start)
            if len(pages) == 2:
                raise BucketError(Fault.TRANSIENT, "down")
            return await real(prefix, start, delimiter, limit)

        world.bucket.list_page = failing  # type: ignore[method-assign]
        with pytest.raises(BucketError):
            await m.refresh()
        assert not m.volume.tree.node(1).inode.complete
        assert not m.engine.listing.complete
        world.bucket.list_page = real  # type: ignore[method-assign]
        assert await m.exists("f02400")
        await m.refresh()
        assert len(await m.names()) == 2500


@pytest.mark.slow
async def test_directory_listing_that_fails_midway(world: World, autojump_clock: object) -> None:
    """The same for one directory with a delimiter: retried from where it was, then complete."""
    for number in range(1500):
        world.bucket.put(f"d/f{number:05}", b"")
    async with world.mount(listing=False, upload=False) as m:
        await m.names("")
        world.bucket.faults += [Planted("list_page", DOWN, "d/") for _ in range(3)]
        assert len(await m.names("d")) == 1500
        with pytest.raises(NotFound):
            await m.node("d/other")


FOREIGN = {
    "a//b": "empty part",
    "/x": "leading slash",
    "../y": "parent",
    "./z": "itself",
    "q" * 256: "too long",
    "d/" + "s" * 300 + "/x": "too long part",
    "both": "a file",
    "both/x": "and a directory",
}


async def test_foreign_objects(world: World, autojump_clock: object) -> None:
    """Objects that no path can show are reported and left alone; all others are there, whatever their fileInfo says."""
    for key in FOREIGN:
        world.bucket.put(key, b"foreign")
    world.bucket.put("fine", b"1", {"src_last_modified_millis": "not a number", "b2fs": "m=99;u=x;;g=-1;n=1e9;o"})
    world.bucket.put("far", b"1", {"src_last_modified_millis": "9" * 30})
    world.bucket.put("odd", b"1", {"b2fs": "m=50644;u=0;g=0;n=0"})
    world.bucket.put("m" * 253, b"1")
    world.bucket.put("made/", b"")
    world.bucket.put("marked/.bzEmpty", b"")
    before = world.bucket.objects()
    for listing in (True, False):
        async with world.mount(f"s{listing}", listing=listing) as m:
            if not listing:
                assert (await m.node("m" * 253)).inode.size == 1
            tree = await m.tree()
            empty = set() if listing else {"a", "d"}  # directories whose only objects cannot be shown
            assert set(tree) == {"fine", "far", "odd", "m" * 253, "made", "marked", "both", "both/x"} | empty
            assert tree["both"].mode == 0o040755
            assert {tree[name].mode for name in ("fine", "far", "odd")} == {0o100644}
            ignored = dict(m.engine.listing.ignored())
            assert any(key.startswith("a/") for key in ignored)
            assert "both" in ignored
            await m.drained()
            await m.idle()
    assert world.bucket.objects() == before


async def test_last_character_of_unicode(world: World, autojump_clock: object) -> None:
    """A name that begins with the highest code point is an ordinary one: not new at each refresh."""
    world.bucket.put("\U0010ffffx", b"1")
    world.bucket.put("d/\U0010ffffx", b"1")
    async with world.mount() as m:
        before = [(await m.node(path)).ino for path in ("\U0010ffffx", "d/\U0010ffffx")]
        await m.refresh()
        assert [(await m.node(path)).ino for path in ("\U0010ffffx", "d/\U0010ffffx")] == before
        await m.rename("d", "e")
        await m.idle()
    assert set(world.bucket.files()) == {"\U0010ffffx", "e/\U0010ffffx"}


# ---------------------------------------------------------------- both sides at once


async def test_change_here_wins_over_a_change_there(world: World, autojump_clock: object) -> None:
    """Both changed one file: ours is on top, theirs is in the history."""
    world.bucket.put("x", b"base")
    async with world.mount() as m:
        await m.write("x", b"ours")
        theirs = world.bucket.put("x", b"theirs")
        await m.refresh()
        assert await m.read("x") == b"ours"
        await m.drained()
        await m.refresh()
        assert await m.read("x") == b"ours"
    assert world.bucket.content("x") == b"ours"
    assert theirs in world.bucket.versions("x")


async def test_deleted_there_and_changed_here(world: World, autojump_clock: object) -> None:
    """What we changed comes back."""
    world.bucket.put("x", b"base")
    async with world.mount() as m:
        await m.write("x", b"ours")
        world.bucket.hide_now("x")
        await m.refresh()
        assert await m.read("x") == b"ours"
        await m.drained()
    assert world.bucket.files() == {"x": b"ours"}


async def test_renamed_here_and_changed_there(world: World, autojump_clock: object) -> None:
    """Their new version keeps the old name, our file has the new one: both contents are there."""
    world.bucket.put("a", b"base")
    async with world.mount() as m:
        await m.read("a")
        await m.rename("a", "b")
        theirs = world.bucket.put("a", b"theirs")
        await m.refresh()
        await m.drained()
        assert await m.read("b") == b"base"
    assert world.bucket.content("b") == b"base"
    assert theirs in world.bucket.versions("a")


async def test_moved_directory_and_a_listing_before_its_files_are_looked_at(
    world: World, autojump_clock: object
) -> None:
    """A dirty file in a directory that was just moved is not replaced by what another client put at its new path."""
    async with world.mount() as m:
        await m.mkdir("d")
        await m.write("d/x", b"ours")
        await m.rename("d", "e")
        theirs = world.bucket.put("e/x", b"theirs")
        await m.refresh()
        assert await m.read("e/x") == b"ours"
        await m.drained()
        assert await m.read("e/x") == b"ours"
    assert world.bucket.content("e/x") == b"ours"
    assert theirs in world.bucket.versions("e/x")


@pytest.mark.usefixtures("large_directories")
async def test_write_between_a_listing_and_its_merge(world: World, autojump_clock: object) -> None:
    """A file that is written while the merge waits for its directory to be loaded keeps what was written."""
    world.bucket.put("d/x", b"base")
    async with world.mount() as m:
        await m.tree()
    seam = HookSeam()
    async with world.mount(seam=seam, listing=False) as m:
        await m.volume.load(m.volume.tree.node(1))
        world.bucket.put("d/x", b"theirs")

        async def written_once_loaded() -> None:
            await m.write("d/x", b"ours")

        await _load_between(m, seam, written_once_loaded)
        assert await m.read("d/x") == b"ours"
        await m.drained()
    assert world.bucket.content("d/x") == b"ours"


async def _load_between(m: Mount, seam: HookSeam, write) -> None:  # type: ignore[no-untyped-def]
    """Load `d` for a program that writes as soon as it is loaded, and let a refresh wait for that load too."""
    go = trio.Event()
    seam.before["load_directory"] = go.wait

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(m.refresh)
        await trio.testing.wait_all_tasks_blocked()
        go.set()


async def test_directory_that_others_emptied_goes(world: World, autojump_clock: object) -> None:
    """A directory without marker goes with its last object; one that we made here stays."""
    world.bucket.put("d/e/x", b"1")
    async with world.mount() as m:
        await m.tree()
        await m.mkdir("ours")
        await m.drained()
        world.bucket.hide_now("d/e/x")
        await m.refresh()
        assert set(await m.tree()) == {"ours"}
        await m.drained()


async def test_rmdir_of_what_is_not_known_yet(world: World, autojump_clock: object) -> None:
    """A directory that looks empty only because it was not listed cannot be removed."""
    world.bucket.put("d/x", b"1")
    async with world.mount(listing=False) as m:
        with pytest.raises(NotEmpty):
            await m.rmdir("d")


async def test_rename_of_what_is_not_known_yet(world: World, autojump_clock: object) -> None:
    """Renaming a directory that was never looked into moves all that is below it."""
    for key in ("d/x", "d/deep/y", "d/deep/er/z"):
        world.bucket.put(key, key.encode())
    async with world.mount(listing=False) as m:
        await m.rename("d", "e")
        await m.idle()
    assert world.bucket.files() == {"e" + key[1:]: key.encode() for key in ("d/x", "d/deep/y", "d/deep/er/z")}


async def test_production_loops_find_what_others_do(world: World, autojump_clock: object) -> None:
    """With all background work running: our changes get there, theirs appear within the refresh interval."""
    world.bucket.put("x", b"1")
    async with world.mount(serve=True, refresh_s=600.0) as m:
        await trio.sleep(10.0)
        await m.write("mine", os.urandom(10))
        world.bucket.put("theirs", b"2")
        await trio.sleep(700.0)
        assert set(await m.tree()) == {"x", "mine", "theirs"}
        assert m.dirty() == set()


async def test_deleting_what_never_got_there_hides_nothing_of_others(world: World, autojump_clock: object) -> None:
    """We made a file and deleted it, unsure whether it ever got to B2; what another client made there meanwhile stays."""
    async with world.mount() as m:
        world.bucket.faults.append(Planted("upload", DOWN, "a"))
        await m.write("a", b"ours")
        await m.until(lambda: not world.bucket.faults)
        await m.unlink("a")
        world.bucket.put("a", b"theirs")
        await m.idle()
    assert world.bucket.files() == {"a": b"theirs"}


async def test_restart_hides_nothing_of_others(world: World, autojump_clock: object) -> None:
    """The same for an intent that was left by an earlier run."""
    async with world.mount(upload=False) as m:
        await m.write("a", b"ours")
        await m.unlink("a")
    world.bucket.put("a", b"theirs")
    async with world.mount(listing=False) as m:
        await m.drained()
    assert world.bucket.files() == {"a": b"theirs"}


async def test_writer_of_a_file_that_others_replaced(world: World, autojump_clock: object) -> None:
    """What is written through a handle that was opened for writing before their change is not lost: it goes on top."""
    world.bucket.put("x", b"base")
    async with world.mount() as m:
        handle = await m.open("x", os.O_RDWR)
        theirs = world.bucket.put("x", b"theirs")
        await m.refresh()
        await m.files.write(handle, 0, b"OURS")
        await m.close(handle)
        await m.drained()
        await m.refresh()
        assert await m.read("x") == b"OURS"
    assert world.bucket.content("x") == b"OURS"
    assert theirs in world.bucket.versions("x")


async def test_writer_of_a_file_that_others_deleted(world: World, autojump_clock: object) -> None:
    """The same when they deleted it."""
    world.bucket.put("x", b"base")
    async with world.mount() as m:
        handle = await m.open("x", os.O_RDWR)
        world.bucket.hide_now("x")
        await m.refresh()
        await m.files.write(handle, 0, b"OURS")
        await m.close(handle)
        await m.drained()
        assert await m.read("x") == b"OURS"


@pytest.mark.usefixtures("large_directories")
@pytest.mark.parametrize("order", range(4), indirect=True)
@pytest.mark.parametrize("removal", ["rmdir", "rename"])
async def test_full_directory_comes_while_an_empty_one_is_removed(
    world: World, autojump_clock: object, order: int, removal: str
) -> None:
    """rmdir d (or a rename over it) that waits while `mv e d` puts a full directory there: NotEmpty, nothing is lost."""
    for key in ("d/.bzEmpty", "f/.bzEmpty", "e/y"):
        world.bucket.put(key, b"")
    async with world.mount():
        pass
    seam = HookSeam()
    async with world.mount(seam=seam, listing=False) as m:
        await m.volume.load(m.volume.tree.node(1))
        go = trio.Event()
        seam.before["load_directory"] = go.wait

        async def remove() -> None:
            with contextlib.suppress(NotEmpty, NotFound):
                await (m.rmdir("d") if removal == "rmdir" else m.rename("f", "d"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.rename, "e", "d")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(remove)
            await trio.testing.wait_all_tasks_blocked()
            go.set()
        assert {"d/y", "e/y"} & set(await m.tree())
        await m.drained()
    assert {"d/y", "e/y"} & set(world.bucket.objects())


async def test_new_files_of_a_directory_come_by_one_commit(world: World, autojump_clock: object) -> None:
    """Forty new files cost the journal one transaction, not forty; later ones among them come in too."""
    for number in range(0, 40, 2):
        world.bucket.put(f"d/{number:02}", b"1")
    async with world.mount(upload=False) as m:
        commits: list[int] = []
        commit = m.volume.journal.commit

        def counted(change: Change) -> None:
            commits.append(len(change.inodes))
            commit(change)

        m.volume.journal.commit = counted  # type: ignore[method-assign]
        for number in range(1, 40, 2):
            world.bucket.put(f"d/{number:02}", b"2")
        world.bucket.put("d/00", b"changed")
        await m.refresh()
        assert sorted(commits) == [1, 20]
        assert await m.names("d") == [f"{number:02}" for number in range(40)]
        assert await m.read("d/00") == b"changed"


async def test_page_that_fails_while_the_one_before_is_merged(world: World, autojump_clock: object) -> None:
    """The next page is asked for meanwhile; its fault is the listing's, and what came before it stays."""
    for number in range(1500):
        world.bucket.put(f"d/{number:04}", b"")
    real = world.bucket.list_page

    async def failing(prefix: str, start: str, delimiter: str, limit: int) -> Page:
        if start:
            raise DOWN
        return await real(prefix, start, delimiter, limit)

    async with world.mount(upload=False, listing=False) as m:
        world.bucket.list_page = failing  # type: ignore[method-assign]
        with pytest.raises(BucketError, match="B2 is down"):
            await m.refresh()
        assert not m.engine.listing.complete
        journal = m.volume.journal
        assert len(journal.subtree(ROOT)) == 1001, "the directory, a page of files"
        assert len(journal.objects("", "", None)) == 1000
        world.bucket.list_page = real  # type: ignore[method-assign]
        await m.refresh()
        assert len(journal.subtree(ROOT)) == 1501
        assert len(journal.objects("", "", None)) == 1500


async def test_new_names_around_what_is_here(world: World, autojump_clock: object) -> None:
    """Names of a directory that is not in memory are read some at a time, in an order that is not the keys': 'dir.txt' comes
    before 'dir/x'. Nothing that is here is made a second time, and what is only here stays.
    """
    for number in range(250):  # more than are read at once
        world.bucket.put(f"dir/{number:03}", b"old")
    for number in range(150):  # more than are read at once, between two that the same slice brings
        world.bucket.put(f"m{number:03}/x", b"old")
    world.bucket.put("zone/old", b"old")
    world.bucket.put("zoo/old", b"old")
    async with world.mount() as m:
        await m.tree()
        await m.write("dir/0005", b"ours")
        await m.drained()
        await m.write("dir/0015", b"not there yet")
    world.bucket.put("dir.txt", b"new")
    for number in range(2, 230):
        world.bucket.put(f"dir/{number:03}5", b"new")
    world.bucket.put("zone.d/new", b"new")
    world.bucket.put("zone/new", b"new")
    world.bucket.put("zoo/new", b"new")
    async with world.mount(listing=False) as m:
        before = m.engine.volume.journal.entry(ROOT, b"dir")
        await m.refresh()
        after = m.engine.volume.journal.entry(ROOT, b"dir")
        assert before is not None and after is not None and before.ino == after.ino
        tree = await m.tree()
        expected = {f"dir/{number:03}": b"old" for number in range(250)}
        expected |= {f"dir/{number:03}5": b"new" for number in range(2, 230)} | {
            "dir/0005": b"ours",
            "dir/0015": b"not there yet",
        }
        expected |= {"dir/0005": b"ours", "dir/0015": b"not there yet", "dir.txt": b"new"}
        expected |= {"zone.d/new": b"new", "zone/new": b"new", "zone/old": b"old"}
        expected |= {f"m{number:03}/x": b"old" for number in range(150)} | {"zoo/old": b"old", "zoo/new": b"new"}
        assert {path: tree[path].content for path in expected} == expected
        assert tree.keys() - expected.keys() == {
            "dir",
            "zone",
            "zone.d",
            "zoo",
            *(f"m{number:03}" for number in range(150)),
        }


async def test_slice_with_directories_markers_and_what_is_in_the_way(world: World, autojump_clock: object) -> None:
    """One slice brings directories of directories, their markers, and a file with the name of one of them: each is as if it
    had come alone.
    """
    async with world.mount("other") as m:
        await m.mkdir("a", 0o700)
        await m.mkdir("a/b", 0o711)
        await m.write("a/b/file", b"x", 0o600)
        await m.mkdir("empty", 0o750)
        expected = await m.tree()
        await m.drained()
    world.bucket.put("clash", b"a file")
    world.bucket.put("clash/below", b"x")
    async with world.mount() as m:
        tree = await m.tree()
        assert tree.pop("clash/below").content == b"x"
        assert tree.pop("clash").content == b""
        assert tree == expected
        assert dict(m.engine.listing.ignored()).keys() == {"clash"}
        assert (await m.node("a")).inode.nlink == 3
        assert (await m.node("")).inode.nlink == 5
