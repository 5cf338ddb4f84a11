"""Attributes on their way to an object's fileInfo and back."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from b2fs.core import names, xattrs
from b2fs.core.bucket import Version
from b2fs.core.inode import (
    Defaults,
    Inode,
    attributes,
    from_version,
    largest_info,
    operation_of,
    restored,
    to_info,
)

DEFAULTS = Defaults(uid=1000, gid=1000)
TYPES = [stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK, stat.S_IFDIR]
IDS = st.integers(0, 2**32 - 2)
XATTRS = st.dictionaries(  # a name has no NUL, and none is b2fs's own
    st.binary(min_size=1, max_size=9)
    .filter(lambda name: b"\0" not in name and not name.startswith(b"b2fs."))
    .map(b"user.".__add__),
    st.binary(max_size=9),
    max_size=2,
)
FARTHEST = 9_223_372_036_852_000_000
"""What a row can keep, in ns (`nearest_time`)."""
NS = st.one_of(
    st.integers(-FARTHEST, FARTHEST),
    st.sampled_from([0, -1, 999_999, -999_999, -1_000_000, 1, 7_000_000_000_000_000_005, -FARTHEST, FARTHEST]),
)


@st.composite
def inodes(draw: st.DrawFn) -> Inode:
    kind = draw(st.sampled_from(TYPES))
    mtime = draw(NS)
    target = draw(st.text(st.characters(codec="utf-8"), min_size=1, max_size=250)) if kind == stat.S_IFLNK else ""
    return Inode(
        ino=7, mode=kind | draw(st.integers(0, 0o7777)), uid=draw(IDS), gid=draw(IDS),
        nlink=2 if kind == stat.S_IFDIR else 1, size=len(target.encode()) if target else 0,
        mtime_ns=mtime, ctime_ns=mtime, atime_ns=mtime, target=target,
        rdev=draw(IDS) if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
        file_id="" if kind == stat.S_IFDIR else "id", sha1="" if kind == stat.S_IFDIR else "sha",
        xattrs=xattrs.pack(draw(XATTRS)) if kind in (stat.S_IFREG, stat.S_IFDIR) else "",
        link="" if kind == stat.S_IFDIR else draw(st.sampled_from(["", "0badcafe1f"])),
    )  # fmt: skip


def _key(inode: Inode) -> str:
    return "d/.bzEmpty" if inode.is_dir else "d/x"


def _version(inode: Inode, info: dict[str, str]) -> Version:
    return Version(_key(inode), "id", inode.size, "sha", 1, info=info)


@given(inodes())
def test_attributes_come_back(inode: Inode) -> None:
    """Mode with type, owner, device, ns mtime (negative too), target and extended attributes read the same on another host."""
    info = to_info(inode, "0badcafe.1f", _key(inode))
    assert from_version(_version(inode, info), 7, DEFAULTS) == inode
    assert attributes(from_version(_version(inode, info), 9, DEFAULTS)) == attributes(inode)
    assert operation_of(info) == "0badcafe.1f"


@given(inodes(), st.sampled_from(["mode", "uid", "gid", "mtime_ns"]))
def test_canonical_attributes_tell_any_difference(inode: Inode, field: str) -> None:
    """Each attribute that an object carries is in its canonical form; nothing else is."""
    other = replace(inode, **{field: getattr(inode, field) ^ 1})
    assert attributes(other) != attributes(inode)
    elsewhere = replace(
        inode, ino=8, ctime_ns=1, atime_ns=2, nlink=3, size=4, file_id="b", sha1="b", staged=1, scratch=2
    )
    assert attributes(elsewhere) == attributes(inode)


def test_extended_attributes_are_canonical_attributes() -> None:
    """A change of them is a difference from the bucket, and so a new version."""
    plain = Inode(7, stat.S_IFREG | 0o644, 0, 0, 1, 0, 1, 1, 1)
    texts = {attributes(replace(plain, xattrs=xattrs.pack(each))) for each in ({}, {b"user.x": b""}, {b"user.x": b"1"})}
    assert len(texts) == 3
    assert attributes(plain) in texts


@pytest.mark.parametrize("key", ["l", "p/.bzEmpty/x", "s"])
def test_only_files_and_directories_have_extended_attributes(key: str) -> None:
    """What another tool says of a link or a special file is as if unsaid, as the kernel refuses to set it."""
    info = {"b2fs_xattr": "x~_1", "b2fs": {"l": "m=120777", "s": "m=140644"}.get(key, "m=100644")}
    found = from_version(Version(key, "id", 5, "sha", 1, info=info), 7, DEFAULTS).xattrs
    assert found == ("x~_1" if key.endswith("/x") else "")


def test_link_id_belongs_to_a_key() -> None:
    """An object that another tool copied, fileInfo and all, is no name of the file; nor is one with an id that is none."""
    info = to_info(Inode(7, stat.S_IFREG | 0o644, 0, 0, 2, 0, 1, 1, 1, link="0badcafe1f"), "0badcafe.1", "d/x")
    assert from_version(Version("d/x", "id", 0, "sha", 1, info=info), 7, DEFAULTS).link == "0badcafe1f"
    assert from_version(Version("d/y", "id", 0, "sha", 1, info=info), 7, DEFAULTS).link == ""
    for field in ("", "0badcafe1f", ".", "0badcafe1f.", "x.y"):
        assert from_version(Version("x", "id", 0, "sha", 1, info={"b2fs": f"l={field}"}), 7, DEFAULTS).link == ""


@given(inodes(), IDS, IDS, st.integers(-(2**63) + 1, 2**63 - 1))
def test_largest_info_is_the_largest(inode: Inode, uid: int, gid: int, mtime_ns: int) -> None:
    """What fits with it fits whatever owner and time the file is given later, so no chown makes it unfit for B2."""
    size = names.header_size("", to_info(replace(inode, uid=uid, gid=gid, mtime_ns=mtime_ns), "0badcafe.1f", "x"))
    assert size <= names.header_size("", largest_info(inode))
    assert names.header_size("", largest_info(replace(inode, xattrs=""))) <= names.INFO_MOST


VALUES = st.one_of(
    st.text(max_size=40),
    st.from_regex(r"(m|u|g|n|d|o|l)=-?[0-9a-z_.]{0,25}(;(m|u|g|n|d|o|l)=[0-9+]{0,12}){0,6}", fullmatch=True),
    st.integers(-(10**30), 10**30).map(str),
    st.sampled_from(["NaN", "1e3", "٣", "0x10", " 5 ", "1" * 5000, "m=160000;u=1", "m=50644", "m=37777777777", "m=0"]),
)


@pytest.mark.slow
@given(
    st.sampled_from(["x", "d/.bzEmpty", "d/"]),
    st.dictionaries(st.sampled_from(["src_last_modified_millis", "b2fs", "b2fs_link", "b2fs_xattr", "other"]), VALUES),
)
def test_foreign_info_never_fails(key: str, info: dict[str, str]) -> None:
    """Whatever other tools wrote, the inode is one that the kernel and the journal take."""
    inode = from_version(Version(key, "id", 5, "sha", 1_700_000_000_000, info=info), 7, DEFAULTS)
    assert stat.S_IFMT(inode.mode) in TYPES, "a type that exists"
    assert inode.mode & ~0o177777 == 0
    assert inode.is_dir == (names.marked_directory(key) is not None)
    assert 0 <= inode.uid < 2**32
    assert 0 <= inode.gid < 2**32
    assert -(2**63) <= inode.mtime_ns < 2**63


def test_unsaid_attributes_are_the_defaults() -> None:
    """An object of another tool has the configured owner and mode, and the time of its upload."""
    inode = from_version(Version("x", "id", 5, "sha", 1_700_000_000_123), 7, DEFAULTS)
    assert (inode.mode, inode.uid, inode.gid, inode.mtime_ns) == (0o100644, 1000, 1000, 1_700_000_000_123_000_000)
    marker = from_version(Version("d/", "id", 0, "sha", 5), 7, DEFAULTS)
    assert (marker.mode, marker.nlink, marker.size, marker.file_id) == (0o040755, 2, 0, "")


def test_time_of_other_tools_is_believed() -> None:
    """src_last_modified_millis alone gives the mtime, before 1970 too."""
    for millis in (0, -1, 1_600_000_000_001):
        version = Version("x", "id", 5, "sha", 9, info={"src_last_modified_millis": str(millis)})
        assert from_version(version, 7, DEFAULTS).mtime_ns == millis * 1_000_000


def test_time_beyond_64_bits_is_not_believed() -> None:
    """A time that no 64-bit ns can say is as if unsaid."""
    version = Version("x", "id", 5, "sha", 9, info={"src_last_modified_millis": str(10**18)})
    assert from_version(version, 7, DEFAULTS).mtime_ns == 9_000_000


@pytest.mark.parametrize("target", ["t" * 251, "🦊" * 250, "ж" * 250])
def test_long_target_is_in_the_body_alone(target: str) -> None:
    """A target that the header has no room for leaves the header alone, so that the link can be made."""
    link = Inode(7, stat.S_IFLNK | 0o777, 0, 0, 1, len(target.encode()), 0, 0, 0, target=target)
    info = to_info(link, "00000000.ffffffffffffffff", "links/x")
    names.check_key("", "links/" + "x" * 200, info)
    version = Version("x", "id", link.size, "sha", 1, info=info)
    assert from_version(version, 7, DEFAULTS).target in ("", target)


@given(inode=inodes().filter(lambda inode: stat.S_ISREG(inode.mode)))
def test_a_file_restored_to_its_version_is_as_the_bucket_has_it(inode: Inode) -> None:
    """After local content was set aside the row is that of the version, its mtime too, so nothing is uploaded for it."""
    changed = replace(inode, size=9, sha1="other", mtime_ns=7, scratch=4, staged=3, synced=4)
    assert restored(changed, inode.size, inode.sha1, attributes(inode)) == inode
