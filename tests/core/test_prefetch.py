"""What the predictor expects, how it judges itself, and that it stays within its bounds."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from b2fs.core.prefetch import FIRST, LARGEST, LISTED, PATIENCE, UNJUDGED, Member, Predictor

DIRECTORY = 7


class Reader:
    """Reads files of directories, as the engine would tell the predictor; every file taken up is fetched at once."""

    def __init__(self, directories: dict[int, Sequence[bytes]]) -> None:
        self.names = {ino: sorted(found) for ino, found in directories.items()}
        self.here: set[str] = set()
        self.fetched: list[str] = []
        """What was fetched ahead."""
        self.misses = 0
        self.predictor = Predictor(self.order)

    def order(self, directory: int, name: bytes, count: int, backwards: bool) -> list[bytes]:
        found = self.names.get(directory, [])
        if backwards:
            return found[: bisect_left(found, name)][::-1][:count]
        return found[bisect_right(found, name) :][:count]

    def take(self, members: Iterable[Member]) -> None:
        for member in members:
            token = f"{member.series}/{member.name!r}"
            if token not in self.here and self.predictor.predict(member, token) and self.predictor.on:
                self.here.add(token)
                self.fetched.append(token)

    def read(self, name: bytes, directory: int = DIRECTORY, tail: tuple[bytes, ...] = ()) -> None:
        member = Member((directory, tail), name)
        token = f"{member.series}/{name!r}"
        expected = self.predictor.expects(token)
        self.misses += token not in self.here
        if expected:
            self.take(self.predictor.used(token))
        elif token not in self.here:
            for guess in self.predictor.missed([member]):
                self.take(guess)
        self.here.add(token)


def files(count: int, form: str = "{:04}.mp3") -> list[bytes]:
    return [form.format(number).encode() for number in range(count)]


def test_two_misses_in_order_begin_a_run() -> None:
    """One miss says nothing; the next name says that the others follow, and the window doubles as they are read."""
    reader = Reader({DIRECTORY: files(400)})
    reader.read(b"0000.mp3")
    assert reader.fetched == []
    reader.read(b"0001.mp3")
    assert len(reader.fetched) == FIRST
    sizes = []
    for name in files(400)[2:]:
        before = len(reader.fetched)
        reader.read(name)
        if len(reader.fetched) > before:
            sizes.append(len(reader.fetched) - before)
    assert sizes[:4] == [2 * FIRST, 4 * FIRST, 8 * FIRST, LARGEST]
    assert max(sizes) == LARGEST
    assert reader.misses == 2
    assert len(reader.fetched) == 398


def test_backwards() -> None:
    """A reader that goes from the last name to the first is followed too."""
    reader = Reader({DIRECTORY: files(100)})
    for name in reversed(files(100)):
        reader.read(name)
    assert reader.misses == 2
    assert len(reader.fetched) == 98


def test_the_same_file_in_each_directory() -> None:
    """The names beside a directory of the path are a series too."""
    reader = Reader({DIRECTORY: files(100, "dict_{}")})
    for name in sorted(files(100, "dict_{}")):
        reader.read(name, tail=(b"en", b"sentences.json"))
    assert reader.misses == 2


def test_a_listing_and_its_first_name_begin_a_run() -> None:
    """Who lists a directory and reads its first file is believed to read the others; who reads another one is not."""
    reader = Reader({DIRECTORY: files(50), 8: files(50)})
    reader.predictor.listed(DIRECTORY)
    reader.predictor.listed(8)
    reader.read(b"0003.mp3", directory=8)
    assert reader.fetched == []
    reader.read(b"0000.mp3")
    assert len(reader.fetched) == LISTED


def test_a_listing_and_a_file_below_its_first_names() -> None:
    """Who lists a directory and reads a file below one of its first names is believed to read it below the others."""
    reader = Reader({DIRECTORY: files(50)})
    reader.predictor.listed(DIRECTORY)
    reader.read(b"0001.mp3", tail=(b"sentences.json",))
    assert len(reader.fetched) == LISTED
    for number in range(PATIENCE):
        reader.read(b"%d" % number, directory=8)
    reader.read(b"0000.mp3", tail=(b"info.json",))
    assert len(reader.fetched) == LISTED, "the listing was long ago"


def test_only_names_of_the_shape_that_was_read() -> None:
    """Two misses of one shape predict that shape; two of different shapes predict all that follow."""
    both = [b"%03d_%s.mp3" % (number, kind) for number in range(20) for kind in (b"auto", b"user")]
    reader = Reader({DIRECTORY: both})
    for number in range(20):
        reader.read(b"%03d_auto.mp3" % number)
    assert reader.misses == 2
    assert not [token for token in reader.fetched if "user" in token]
    reader = Reader({DIRECTORY: both})
    for name in sorted(both):
        reader.read(name)
    assert reader.misses == 2


def test_misses_far_apart_in_time() -> None:
    """A reader who takes a file of each of many directories is no run in any of them."""
    reader = Reader({ino: files(30) for ino in range(20)})
    for number in range(30):
        for ino in range(20):
            reader.read(files(30)[number], directory=ino)
    assert reader.fetched == []


def test_off_on_random_access_and_on_again() -> None:
    """Pairs of neighbours here and there: after some wrong windows nothing is fetched any more; once a reader in order
    comes, it is again.
    """
    reader = Reader({ino: files(200) for ino in range(300)})
    for ino in range(200):
        reader.read(b"0100.mp3", directory=ino)
        reader.read(b"0101.mp3", directory=ino)
    wasted = len(reader.fetched)
    assert not reader.predictor.on
    assert FIRST <= wasted <= FIRST * (PATIENCE + 64)
    for ino in range(200, 250):
        reader.read(b"0100.mp3", directory=ino)
        reader.read(b"0101.mp3", directory=ino)
    assert len(reader.fetched) == wasted, "off is off"
    for name in files(200):
        reader.read(name, directory=299)
    assert reader.predictor.on
    assert len(reader.fetched) > wasted
    before = reader.misses
    for name in files(200):
        reader.read(name, directory=298)
    assert reader.misses - before == 2


def test_what_could_not_be_fetched_is_not_held_against_it() -> None:
    """A dropped prediction is no wrong one; a lost one is."""
    reader = Reader({DIRECTORY: files(2000)})
    predictor = reader.predictor
    for wrong in (False, True):
        for start in range(0, 1000, 20):
            members: list[Member] = []
            for number in (start, start + 1):
                members = [
                    each for guess in predictor.missed([Member((DIRECTORY, ()), files(2000)[number])]) for each in guess
                ]
            for member in members:
                token = f"{wrong} {member}"
                predictor.predict(member, token)
                (predictor.lost if wrong else predictor.dropped)(token)
        assert predictor.on is not wrong


def test_a_window_that_ends_at_the_unknown_goes_on_with_the_next_use() -> None:
    """What a listing has not reached when the window is looked at is predicted as soon as it has."""
    reader = Reader({DIRECTORY: files(30)})
    known = 6

    def take(members: Iterable[Member]) -> None:
        for member in members:
            if files(30).index(member.name) >= known:
                return reader.predictor.cut(member)
            Reader.take(reader, [member])
        return None

    reader.take = take  # type: ignore[method-assign, assignment]
    for number in range(4):
        reader.read(files(30)[number])
    assert len(reader.fetched) == 4
    known = 30
    for number in range(4, 30):
        reader.read(files(30)[number])
    assert reader.misses == 2


reads = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 40), st.sampled_from(["read", "read", "read", "list", "lose", "drop"])),
    max_size=300,
)


@given(reads)
def test_whatever_is_read(story: list[tuple[int, int, str]]) -> None:
    """No prediction is made twice while it is open, of what is not there, or beyond the bounds."""
    reader = Reader({ino: files(40) for ino in range(4)})
    predictor = reader.predictor
    for ino, number, what in story:
        if what == "list":
            predictor.listed(ino)
        elif what == "read":
            before = set(reader.fetched)
            reader.read(b"%04d.mp3" % number, directory=ino)
            assert len(set(reader.fetched) - before) <= LARGEST
        elif reader.fetched:
            token = reader.fetched[number % len(reader.fetched)]
            (predictor.lost if what == "lose" else predictor.dropped)(token)
            reader.here.discard(token)
        assert 0 <= predictor.room <= UNJUDGED
    assert all(any(f"{name!r}" in token for name in files(40)) for token in reader.fetched)


@given(st.permutations(range(60)))
def test_waste_is_bounded(order: list[int]) -> None:
    """Reading half of a directory in any order fetches no more than the directory has, each file once."""
    reader = Reader({DIRECTORY: files(60)})
    for number in order[:30]:
        reader.read(files(60)[number])
    assert len(reader.fetched) == len(set(reader.fetched))
    assert reader.misses + len(reader.fetched) <= 60
