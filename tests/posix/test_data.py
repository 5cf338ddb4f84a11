"""The bytes of files: reading, writing, holes, truncation, maps, copies in the kernel."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from tests.posix.support import OLD_NS, OTHER, fails, get, opened, outcome, put, user
from tests.posix.system import os

KIB, MIB = 1024, 1024 * 1024
SIZES = (0, 1, 2, 511, 4095, 4096, 4097, 128 * KIB - 1, 128 * KIB + 1, 2 * MIB, 2 * MIB + 1)
CUTS = (0, 1, 4095, 4096, 4097, 2 * MIB - 1)


def pattern(size: int, seed: int = 1) -> bytes:
    return bytes((seed + index * 7) % 251 for index in range(997)) * (size // 997 + 1)


@pytest.mark.parametrize("size", SIZES)
def test_written_is_read(root: Path, size: int) -> None:
    """Files of any size read back whole, in pieces, and past their end."""
    data = pattern(size)[:size]
    put("f", data)
    assert get("f") == data
    assert os.stat("f").st_size == size
    with opened("f") as fd:
        for offset in (0, 1, size // 2, max(0, size - 1), size, size + 1, size + 5000):
            for length in (0, 1, 4096, 70_000):
                assert os.pread(fd, length, offset) == data[offset : offset + length]


@pytest.mark.parametrize("offset", [0, 1, 3, 7, 8, 4095, 4096, 5000, 2 * MIB + 3])
@pytest.mark.parametrize("size", [1, 5, 4096, 9000])
def test_write_anywhere(root: Path, offset: int, size: int) -> None:
    """A write inside, across and behind the end leaves the rest, and zeros between."""
    put("f")
    data = pattern(size, 5)[:size]
    expected = bytearray(b"content".ljust(offset, b"\0"))
    expected[offset : offset + size] = data
    with opened("f") as fd:
        assert os.pwrite(fd, data, offset) == size
        assert os.fstat(fd).st_size == len(expected)
        assert os.pread(fd, len(expected) + 1, 0) == expected
    assert get("f") == expected


@pytest.mark.parametrize("size", CUTS)
@pytest.mark.parametrize("before", [0, 4096, 5000, 2 * MIB + 1])
@pytest.mark.parametrize("call", ["truncate", "ftruncate"])
def test_truncate(root: Path, before: int, size: int, call: str) -> None:
    """Truncation up and down: what is kept is kept, what comes is zeros, and what was cut never comes back."""
    data = pattern(before)[:before]
    put("f", data)
    os.utime("f", ns=(OLD_NS, OLD_NS))
    if call == "truncate":
        os.truncate("f", size)
    else:
        with opened("f") as fd:
            os.ftruncate(fd, size)
            assert os.fstat(fd).st_size == size
    assert os.stat("f").st_size == size
    assert os.stat("f").st_mtime_ns > OLD_NS
    assert get("f") == data[:size].ljust(size, b"\0")
    os.truncate("f", before)
    assert get("f") == data[: min(size, before)].ljust(before, b"\0")


def test_truncate_while_mapped_and_open(root: Path) -> None:
    """A cut that goes through a page leaves zeros behind it when the file grows again."""
    put("f", b"x" * 10_000)
    with opened("f") as fd:
        os.pread(fd, 10_000, 0)
        os.ftruncate(fd, 5000)
        os.ftruncate(fd, 10_000)
        assert os.pread(fd, 10_000, 0) == b"x" * 5000 + bytes(5000)


@pytest.mark.parametrize(("mode", "left"), [(0o6777, 0o777), (0o4777, 0o777), (0o2777, 0o777)])
@pytest.mark.parametrize(
    "how",
    [
        "write",
        "truncate",
        pytest.param("map", marks=pytest.mark.kernel("maps")),
        pytest.param("copy", marks=pytest.mark.kernel("copies")),
    ],
)
@pytest.mark.parametrize("who", [0, OTHER])
def test_change_clears_set_id_bits(root: Path, mode: int, left: int, how: str, who: int) -> None:
    """Whoever changes the content without privileges takes the set-id bits away; root does not."""
    put("f")
    put("source", b"X")
    os.chmod("f", mode)
    if who:
        with user(who):
            _change(how)
    else:
        _change(how)
    keeps = who == 0 or how == "map"
    assert os.stat("f").st_mode & 0o7777 == (mode if keeps else left)
    assert get("f")[:1] == (b"c" if how == "truncate" else b"X")


def _change(how: str) -> None:
    with opened("f") as fd:
        if how == "write":
            os.write(fd, b"X")
        elif how == "truncate":
            os.ftruncate(fd, 1)
        elif how == "copy":
            with opened("source", os.O_RDONLY) as source:
                os.copy_file_range(source, fd, 1)
        else:
            with mmap.mmap(fd, 7) as area:
                area[0:1] = b"X"


def test_vectors(root: Path) -> None:
    """readv, writev, preadv and pwritev."""
    with opened("f", os.O_CREAT | os.O_RDWR) as fd:
        assert os.writev(fd, [b"ab", b"", b"cde"]) == 5
        assert os.pwritev(fd, [b"XY", b"Z"], 4) == 3
        os.lseek(fd, 0, os.SEEK_SET)
        first, second = bytearray(3), bytearray(10)
        assert os.readv(fd, [first, second]) == 7
        assert (first, second[:4]) == (b"abc", b"dXYZ")
        assert os.preadv(fd, [first], 1) == 3 and first == b"bcd"


def test_no_bytes(root: Path) -> None:
    """A write of nothing changes neither size nor times."""
    put("f")
    os.utime("f", ns=(OLD_NS, OLD_NS))
    with opened("f") as fd:
        assert os.write(fd, b"") == 0
        assert os.pwrite(fd, b"", 100) == 0
    assert (os.stat("f").st_size, os.stat("f").st_mtime_ns) == (7, OLD_NS)


def test_far_hole(root: Path) -> None:
    """A byte at 1 GiB makes a file of that size whose hole reads as zeros and costs no room here."""
    with opened("f", os.O_CREAT | os.O_RDWR) as fd:
        os.pwrite(fd, b"x", 1 << 30)
        assert os.fstat(fd).st_size == (1 << 30) + 1
        for offset in (0, 4096, (1 << 30) - 5):
            assert os.pread(fd, 5, offset) == bytes(5)
        os.ftruncate(fd, 0)


@pytest.mark.parametrize("whence", [os.SEEK_SET, os.SEEK_CUR, os.SEEK_END])
def test_seek(root: Path, whence: int) -> None:
    """lseek counts from the start, the position, and the end as it is now."""
    put("f", b"0123456789")
    with opened("f") as fd, opened("f") as other:
        os.read(fd, 3)
        os.pwrite(other, b"ab", 10)
        assert os.lseek(fd, 2, whence) == {os.SEEK_SET: 2, os.SEEK_CUR: 5, os.SEEK_END: 14}[whence]


def test_seek_data_and_hole(root: Path) -> None:
    """SEEK_DATA finds data where there is some; SEEK_HOLE finds the end at the latest."""
    put("f", b"x" * 100)
    with opened("f") as fd:
        assert os.lseek(fd, 50, os.SEEK_DATA) == 50
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 100


# ---------------------------------------------------------------- maps


@pytest.mark.kernel("maps")
def test_shared_map(root: Path) -> None:
    """A shared map shows what is written, and what is put into it is in the file after msync."""
    put("f", b"a" * 10_000)
    os.utime("f", ns=(OLD_NS, OLD_NS))
    with opened("f") as fd, mmap.mmap(fd, 10_000) as area:
        os.pwrite(fd, b"XYZ", 4095)
        assert area[4094:4099] == b"aXYZa"
        area[5000:5003] = b"map"
        assert os.pread(fd, 3, 5000) == b"map"
        area.flush()
    assert get("f")[4094:5004] == b"aXYZ" + b"a" * 902 + b"map" + b"a"
    assert os.stat("f").st_mtime_ns > OLD_NS


@pytest.mark.kernel("maps")
def test_private_map(root: Path) -> None:
    """What is put into a private map stays there."""
    put("f", b"a" * 5000)
    with (
        opened("f", os.O_RDONLY) as fd,
        mmap.mmap(fd, 5000, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as area,
    ):
        area[10:13] = b"own"
        assert area[9:14] == b"aowna"
    assert get("f") == b"a" * 5000


@pytest.mark.kernel("maps")
def test_map_outlives_handle_and_name(root: Path) -> None:
    """A map works after its file was closed, renamed, and removed."""
    put("f", b"a" * 5000)
    fd = os.open("f", os.O_RDWR)
    area = mmap.mmap(fd, 5000)
    os.close(fd)
    os.rename("f", "g")
    area[0:3] = b"one"
    area.flush()
    assert get("g")[:4] == b"onea"
    os.unlink("g")
    area[0:3] = b"two"
    assert area[:4] == b"twoa"
    area.close()


@pytest.mark.kernel("maps")
def test_map_of_a_grown_file(root: Path) -> None:
    """mmap of what ftruncate made, the way databases do it."""
    with opened("f", os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, 20_000)
        with mmap.mmap(fd, 20_000) as area:
            area[19_990:20_000] = b"0123456789"
    assert get("f") == bytes(19_990) + b"0123456789"


@pytest.mark.kernel("maps")
def test_map_of_a_read_only_handle(root: Path) -> None:
    """A shared writable map needs a writable handle; an executable one works."""
    put("f")
    with opened("f", os.O_RDONLY) as fd:
        with fails("EACCES"):
            mmap.mmap(fd, 7, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        mmap.mmap(fd, 7, prot=mmap.PROT_READ | mmap.PROT_EXEC).close()
    with opened("f", os.O_WRONLY) as fd, fails("EACCES"):
        mmap.mmap(fd, 7, prot=mmap.PROT_READ)


# ---------------------------------------------------------------- copies in the kernel


@pytest.mark.kernel("copies")
@pytest.mark.parametrize("size", [0, 1, 5000, 2 * MIB + 5])
def test_copy_file_range(root: Path, size: int) -> None:
    """copy_file_range copies, from and to any offset."""
    data = pattern(size)[:size]
    put("a", data)
    put("b", b"0123")
    with opened("a", os.O_RDONLY) as source, opened("b") as target:
        done = 0
        while part := os.copy_file_range(source, target, size + 10, offset_dst=2 + done):
            done += part
    assert get("b") == (b"01" + data if size > 1 else (b"01" + data + b"23"[size:]))


@pytest.mark.kernel("copies")
@pytest.mark.parametrize("size", [0, 1, 5000, 2 * MIB + 5])
def test_sendfile(root: Path, size: int) -> None:
    """sendfile from a file into another, as web servers and shutil use it."""
    data = pattern(size)[:size]
    put("a", data)
    with opened("a", os.O_RDONLY) as source, opened("b", os.O_CREAT | os.O_WRONLY) as target:
        done = 0
        while part := os.sendfile(target, source, done, size + 10):
            done += part
    assert get("b") == data


@pytest.mark.kernel("copies")
def test_splice(root: Path) -> None:
    """splice between a file and a pipe, both ways."""
    put("a", b"spliced")
    read, write = os.pipe()
    with opened("a", os.O_RDONLY) as source, opened("b", os.O_CREAT | os.O_WRONLY) as target:
        assert os.splice(source, write, 100) == 7
        assert os.splice(read, target, 7) == 7
    os.close(read)
    os.close(write)
    assert get("b") == b"spliced"


@pytest.mark.kernel("fallocate")
@pytest.mark.parametrize(("offset", "length"), [(0, 10), (3, 2), (5, 5000), (100_000, 1)])
def test_posix_fallocate(root: Path, offset: int, length: int) -> None:
    """posix_fallocate makes a file as long as that, and keeps what is in it."""
    put("f")
    with opened("f") as fd:
        os.posix_fallocate(fd, offset, length)
    assert get("f") == b"content".ljust(offset + length, b"\0")


@pytest.mark.kernel("advice")
def test_posix_fadvise_and_readahead(root: Path) -> None:
    """Advice is accepted, and changes no byte."""
    put("f", pattern(100_000)[:100_000])
    with opened("f") as fd:
        for advice in range(6):
            os.posix_fadvise(fd, 0, 0, advice)
        assert os.pread(fd, 100_000, 0) == pattern(100_000)[:100_000]


# ---------------------------------------------------------------- files without a name


@pytest.mark.parametrize("how", ["unlink", "rename over", "exchange over"])
def test_open_file_outlives_its_name(root: Path, how: str) -> None:
    """A file whose name went to another, or nowhere, is read, written, cut, chmodded and synced through its handles."""
    put("f", b"old content")
    put("g", b"new")
    with opened("f") as fd, opened("f", os.O_RDONLY) as reader:
        if how == "unlink":
            os.unlink("f")
        else:
            os.rename("g", "f")
        before = os.fstat(fd)
        assert before.st_nlink == 0
        assert os.read(reader, 3) == b"old"
        assert os.pwrite(fd, b"more", 20) == 4
        assert os.pread(reader, 99, 0) == b"old content".ljust(20, b"\0") + b"more"
        os.ftruncate(fd, 5)
        os.fchmod(fd, 0o600)
        os.fchown(fd, 3, 4)
        os.utime(fd, ns=(1, 2))
        os.fsync(fd)
        after = os.fstat(reader)
        assert (after.st_size, after.st_mode & 0o777, after.st_uid, after.st_gid, after.st_mtime_ns) == (
            5,
            0o600,
            3,
            4,
            2,
        )
        assert after.st_nlink == 0
        assert os.pread(reader, 99, 0) == b"old c"
        assert get(f"/proc/self/fd/{fd}") == b"old c"
        assert outcome(lambda: get("f")) == ("ENOENT" if how == "unlink" else b"new")


def test_unlink_changes_ctime(root: Path) -> None:
    """The last unlink of an open file is a change of its status; its mtime is not touched."""
    put("f")
    with opened("f") as fd:
        before = os.fstat(fd)
        os.unlink("f")
        after = os.fstat(fd)
    assert after.st_ctime_ns > before.st_ctime_ns
    assert after.st_mtime_ns == before.st_mtime_ns


def test_same_name_again(root: Path) -> None:
    """A name that is made anew while the old file is open is another file."""
    put("f", b"one")
    with opened("f") as one:
        os.unlink("f")
        put("f", b"two")
        with opened("f") as two:
            os.pwrite(one, b"ONE", 0)
            assert (os.pread(one, 9, 0), os.pread(two, 9, 0)) == (b"ONE", b"two")
            assert os.fstat(one).st_ino != os.fstat(two).st_ino
    assert get("f") == b"two"


def test_renamed_while_open(root: Path) -> None:
    """A handle goes with its file, whatever directory it is moved to."""
    os.mkdir("d")
    put("f", b"one")
    with opened("f") as fd:
        os.rename("f", "d/g")
        os.rename("d", "e")
        os.pwrite(fd, b"X", 3)
        assert os.fstat(fd).st_ino == os.stat("e/g").st_ino
    assert get("e/g") == b"oneX"
