"""Extended attributes: which there can be, and how a file's attributes become one text of its fileInfo.

Rules
  Only ``user.*`` is kept, on files and directories (of anything else the kernel refuses it). What belongs to other
  name spaces is answered without looking at the file: the kernel asks for ``security.capability`` before every write.
  ``user.b2fs.*`` says where a file's bytes are; a front end answers it, and nobody can set it.
  The text uses only characters that no percent-encoding triples (letters, digits, ``-._~/``), the same attributes
  give the same text, and any bytes come back.

The text has one of two forms, the shorter: names (without ``user.``) and values in turn, separated by ``~_``, other bytes
as ``~HH``, so that other B2 tools show ``mime_type~_text/plain``; or ``~~`` and the base64url of a msgpack map.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from urllib.parse import quote_from_bytes, unquote_to_bytes

import msgspec

from b2fs.errors import Invalid, NoAttribute, NotPermitted, NotSupported

USER = b"user."
STATE = b"user.b2fs."
_EMPTY_SPACES = (b"security.", b"trusted.")
"""Name spaces that exist, and in which nothing is ever set."""
_NAME_MAX = 255
"""Bytes of a name (Linux's XATTR_NAME_MAX)."""
_BETWEEN = "~_"
_PACKED = "~~"


def check_get(name: bytes) -> None:
    """NoAttribute or NotSupported unless a file can have an attribute of this name."""
    if name.startswith(_EMPTY_SPACES):
        raise NoAttribute("nothing is kept in this name space")
    if not name.startswith(USER):
        raise NotSupported("only user.* is kept: no ACLs")
    if name == USER:
        raise Invalid("a name space without a name")


def check_change(name: bytes, *, remove: bool) -> None:
    """NotPermitted, NotSupported, NoAttribute or Invalid unless an attribute of this name can be set, or removed."""
    if name.startswith(STATE):
        raise NotPermitted("user.b2fs.* is said by b2fs itself")
    if name.startswith(_EMPTY_SPACES) and not remove:
        raise NotSupported("only user.* is kept")
    check_get(name)


def pack(attributes: Mapping[bytes, bytes]) -> str:
    """The text of a file's attributes, '' if it has none."""
    parts = [part for name in sorted(attributes) for part in (name.removeprefix(USER), attributes[name])]
    if not parts:
        return ""
    plain = _BETWEEN.join(map(_escaped, parts))
    packed = _PACKED + base64.urlsafe_b64encode(msgspec.msgpack.encode(parts)).decode().rstrip("=")
    return min(plain, packed, key=len)


def unpack(text: str) -> dict[bytes, bytes]:
    """What `pack` was given; a text that it cannot have made says nothing."""
    try:
        parts = _packed(text) if text.startswith(_PACKED) else [_bytes(part) for part in text.split(_BETWEEN)]
        pairs = zip(parts[::2], parts[1::2], strict=True)
        found = {USER + name: value for name, value in pairs if _can_be(USER + name)}
    except (ValueError, msgspec.MsgspecError):
        return {}
    return found if pack(found) == text else {}


def _can_be(name: bytes) -> bool:
    """Whether a program could have set it."""
    return name != USER and not name.startswith(STATE) and b"\0" not in name and len(name) <= _NAME_MAX


def _escaped(part: bytes) -> str:
    return quote_from_bytes(part, safe="/").replace("~", "%7E").replace("%", "~")


def _bytes(part: str) -> bytes:
    return unquote_to_bytes(part.replace("~", "%"))


def _packed(text: str) -> list[bytes]:
    data = text.removeprefix(_PACKED)
    try:
        raw = base64.urlsafe_b64decode(data + "=" * (-len(data) % 4))
    except binascii.Error:
        return []
    return msgspec.msgpack.decode(raw, type=list[bytes])
