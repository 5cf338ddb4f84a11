"""What B2 accepts (facts: b2.md 1.5, 1.6), without a server."""

from __future__ import annotations

import pytest

from b2fs.devbucket import rules
from b2fs.devbucket.rules import Refused


@pytest.mark.parametrize(
    "name", ["a", "/x", "a//b", "dir/", "a\\b", ".", "..", "ž" * 512, "s" * 1024, "x" * 300 + "/y"]
)
def test_names_of_foreign_clients_are_accepted(name: str) -> None:
    """The server takes names that b2sdk would refuse: slashes anywhere, long segments, backslashes."""
    rules.check_file_name(name)


@pytest.mark.parametrize("name", ["", "a\x1fb", "a\nb", "a\x7fb", "s" * 1025, "ž" * 513, "a\ud800"])
def test_names_that_no_client_can_store(name: str) -> None:
    """Empty, longer than 1024 bytes of UTF-8, control characters, DEL, and half surrogates are refused."""
    with pytest.raises(Refused) as refused:
        rules.check_file_name(name)
    assert (refused.value.status, refused.value.code) == (400, "bad_request")


def test_header_budget_counts_encoded_bytes() -> None:
    """Name and info share 2048 bytes, counted percent-encoded: three for each byte that is not ASCII."""
    name = "n" * 1000
    room = rules.MAX_HEADER_BYTES - 1000 - len("X-Bz-Info-k")
    assert rules.check_info(name, {"k": "v" * room}) == {"k": "v" * room}
    with pytest.raises(Refused):
        rules.check_info(name, {"k": "v" * (room + 1)})
    assert rules.header_bytes("日", {}) == 9
    rules.check_info("日" * 227, {})
    with pytest.raises(Refused):
        rules.check_info("日" * 228, {})


@pytest.mark.parametrize("key", ["", "k" * 51, "a b", "ä", "a:b", "b2-unknown"])
def test_bad_info_keys(key: str) -> None:
    """Info keys have 1 to 50 of B2's characters, and ``b2-`` is reserved."""
    with pytest.raises(Refused):
        rules.check_info("name", {key: "v"})


def test_info_keys_are_stored_in_lower_case() -> None:
    """B2 folds the case of info keys; known ``b2-`` keys are allowed."""
    info = rules.check_info("name", {"Src_Last": "1", "b2-Cache-Control": "max-age=1"})
    assert info == {"src_last": "1", "b2-cache-control": "max-age=1"}


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: x", "ä"])
def test_nothing_is_smuggled_into_a_header(value: str) -> None:
    """What is sent back as a header of its own must be a legal header value."""
    for check in (lambda: rules.check_info("n", {"b2-expires": value}), lambda: rules.content_type(value, "n")):
        with pytest.raises(Refused):
            check()


@pytest.mark.parametrize(
    ("given", "name", "stored"),
    [
        ("b2/x-auto", "a/b.JPG", "image/jpeg"),
        ("b2/x-auto", "a.json", "application/json"),
        ("b2/x-auto", "a.tar.gz", "application/octet-stream"),
        ("b2/x-auto", "a.d/plain", "application/octet-stream"),
        ("text/x", "a.jpg", "text/x"),
    ],
)
def test_content_type_by_extension(given: str, name: str, stored: str) -> None:
    """``b2/x-auto`` is resolved by the extension; anything else is kept."""
    assert rules.content_type(given, name) == stored


@pytest.mark.parametrize("name", ["short", "b2-files", "has_underscore", "x" * 64, "bücket"])
def test_bad_bucket_names(name: str) -> None:
    """Bucket names have 6 to 63 letters, digits and '-', and do not start with ``b2-``."""
    with pytest.raises(Refused):
        rules.check_bucket_name(name)


@pytest.mark.parametrize(
    "lifecycle",
    [
        [{"daysFromHidingToDeleting": 1}],
        [{"fileNamePrefix": "", "daysFromHidingToDeleting": 0}],
        [{"fileNamePrefix": "", "daysFromUploadingToHiding": "3"}],
        [{"fileNamePrefix": "a"}, {"fileNamePrefix": "a/b"}],
        [{"fileNamePrefix": f"{n:03}"} for n in range(101)],
    ],
)
def test_bad_lifecycle_rules(lifecycle: list[dict[str, object]]) -> None:
    """A rule needs a prefix and positive days; rules must not overlap; there are at most 100."""
    with pytest.raises(Refused):
        rules.check_lifecycle(lifecycle)
    rules.check_lifecycle([{"fileNamePrefix": "a/", "daysFromHidingToDeleting": 7}, {"fileNamePrefix": "b/"}])


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-9", (0, 10)),
        ("bytes=90-", (90, 10)),
        ("bytes=90-1000", (90, 10)),
        ("bytes=-5", (95, 5)),
        ("bytes=-500", (0, 100)),
        ("bytes=99-99", (99, 1)),
        ("bytes=9-3", None),
        ("lines=1-2", None),
        ("bytes=-", None),
    ],
)
def test_ranges(header: str, expected: tuple[int, int] | None) -> None:
    """A range is clipped to the 100 bytes of the file; one that makes no sense is ignored."""
    assert rules.parse_range(header, 100) == expected


@pytest.mark.parametrize(
    ("header", "size"), [("bytes=100-", 100), ("bytes=0-0", 0), ("bytes=-0", 100), ("bytes=-5", 0)]
)
def test_ranges_outside_the_file(header: str, size: int) -> None:
    """A range without a byte of the file is 416 range_not_satisfiable."""
    with pytest.raises(Refused) as refused:
        rules.parse_range(header, size)
    assert (refused.value.status, refused.value.code) == (416, "range_not_satisfiable")


def test_file_ids_have_the_real_shape() -> None:
    """A file id names its bucket and its upload time in B2's format, and is refused when it does not."""
    file_id = rules.make_file_id("a" * 24, "0123456789abcdef", 1_684_713_597_235)
    assert file_id == (
        "4_zaaaaaaaaaaaaaaaaaaaaaaaa_f0123456789abcdef_d20230521_m235957_c002_v0001000_t0000_u01684713597235"
    )
    assert rules.check_file_id(file_id) == ("a" * 24, 1_684_713_597_235)
    with pytest.raises(Refused):
        rules.check_file_id(file_id + "x")


@pytest.mark.parametrize("text", ["plain", "a b", "ž/日+%", "~!$'()*;=:@", '"#<>?[\\]^`{|}&,'])
def test_percent_encoding_round_trip(text: str) -> None:
    """What encode makes is ASCII and decodes to the same text."""
    assert rules.encode(text).isascii()
    assert rules.decode(rules.encode(text)) == text


def test_percent_decoding() -> None:
    """A plus is a space; raw bytes and broken UTF-8 are refused."""
    assert rules.decode("a+b%2Bc") == "a b+c"
    for text in ("%ff", "ä"):
        with pytest.raises(Refused):
            rules.decode(text)
