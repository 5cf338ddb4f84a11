"""Extended attributes as the text of an object's fileInfo, and which names there can be."""

from __future__ import annotations

import string
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from b2fs.core import names, xattrs
from b2fs.errors import B2fsError, Invalid, NoAttribute, NotPermitted, NotSupported

NAMES = st.binary(min_size=1, max_size=40).map(lambda name: b"user." + name.replace(b"\0", b"0"))
VALUES = st.one_of(st.binary(max_size=300), st.text("~%_.;= +\0aé", max_size=30).map(str.encode), st.just(b""))
ATTRIBUTES = st.dictionaries(NAMES, VALUES, max_size=6)


@given(ATTRIBUTES)
def test_any_bytes_come_back(attributes: dict[bytes, bytes]) -> None:
    """Whatever names and values, the same are read from the text."""
    assert xattrs.unpack(xattrs.pack(attributes)) == attributes


@given(ATTRIBUTES)
def test_same_attributes_are_the_same_text(attributes: dict[bytes, bytes]) -> None:
    """The order in which they were set makes no difference: the text is compared with the bucket's."""
    assert xattrs.pack(dict(reversed(attributes.items()))) == xattrs.pack(attributes)


@given(ATTRIBUTES.filter(bool))
def test_text_is_compact_in_a_header(attributes: dict[bytes, bytes]) -> None:
    """No character is tripled by any percent-encoding, and the text has at most 4/3 of the bytes and what msgpack adds."""
    text = xattrs.pack(attributes)
    assert set(text) <= set(string.ascii_letters + string.digits + "-._~/")
    assert names.header_size("", {"k": text}) == len("x-bz-info-k") + len(text)
    content = sum(len(name) - len(b"user.") + len(value) for name, value in attributes.items())
    assert len(text) <= (content + 3 + 6 * len(attributes)) * 4 / 3 + 2


def test_text_is_readable_where_it_can_be() -> None:
    """A person who looks at the object with another tool sees what it says."""
    assert xattrs.pack({b"user.b": b"text/plain", b"user.a": b"1 2~"}) == "a~_1~202~7E~_b~_text/plain"
    assert xattrs.pack({}) == ""


@given(st.one_of(st.text(max_size=60), st.from_regex(r"(~~)?[A-Za-z0-9_~%+=-]{0,40}", fullmatch=True)))
def test_foreign_text_never_fails(text: str) -> None:
    """What another tool wrote is read as it is meant or says nothing; what is believed is written back the same."""
    found = xattrs.unpack(text)
    assert not found or xattrs.pack(found) == text


@pytest.mark.parametrize("name", [b"", b"b2fs.state", b"a\0b", b"x" * 251])
def test_foreign_name_that_none_could_set(name: bytes) -> None:
    """A text with a name that no program can set, or that b2fs itself answers, says nothing: copies of it would fail."""
    assert xattrs.unpack(xattrs.pack({b"user." + name: b"1", b"user.x": b"2"})) == {}
    assert xattrs.unpack(xattrs.pack({b"user.x": b"2", b"user." + b"x" * 250: b"1"})) != {}


@pytest.mark.parametrize(
    ("name", "get", "change", "remove"),
    [
        (b"user.x", None, None, None),
        (b"user.", Invalid, Invalid, Invalid),
        (b"user.b2fs.state", None, NotPermitted, NotPermitted),
        (b"security.capability", NoAttribute, NotSupported, NoAttribute),
        (b"trusted.x", NoAttribute, NotSupported, NoAttribute),
        (b"system.posix_acl_access", NotSupported, NotSupported, NotSupported),
        (b"other", NotSupported, NotSupported, NotSupported),
    ],
)
def test_name_spaces(
    name: bytes, get: type[B2fsError] | None, change: type[B2fsError] | None, remove: type[B2fsError] | None
) -> None:
    """Each name space has its answer, without a look at any file."""
    assert _said(lambda: xattrs.check_get(name)) is get
    assert _said(lambda: xattrs.check_change(name, remove=False)) is change
    assert _said(lambda: xattrs.check_change(name, remove=True)) is remove


def _said(check: Callable[[], None]) -> type[B2fsError] | None:
    try:
        check()
    except B2fsError as error:
        return type(error)
    return None
