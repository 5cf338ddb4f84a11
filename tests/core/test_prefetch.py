"""What the predictor expects, how it judges itself, and that it stays within its bounds."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from b2fs.core.prefetch import FIRST, LARGEST, LISTED, PATIENCE, START, Ground, Member, Predictor

DIRECTORY = 7


class Reader:
    """Reads files of directories, as the engine would tell the predictor. What is taken up is fetched: it is here when it is
    read (`slow`), or on its way.
    """

    def __init__(self, directories: dict[int, Sequence[bytes]], slow: bool = False) -> None:
        self.names = {ino: sorted(found) for ino, found in directories.items()}
        self.documents: list[Member] = []
        """What lies below any file of a directory."""
        self.below: int | None = None
        """The first directory in which it lies."""
        self.slow = slow
        self.here: set[str] = set()
        self.fetched: list[str] = []
        """What was fetched ahead."""
        self.misses = 0
        self.predictor = Predictor(self.order, lambda directory, name: (self.documents, self.below))

    def order(self, directory: int, name: bytes, count: int, backwards: bool) -> list[bytes]:
        found = self.names.get(directory, [])
        if backwards:
            return found[: bisect_left(found, name)][::-1][:count]
        return found[bisect_right(found, name) :][:count]

    def take(self, members: Iterable[Member]) -> bool:
        found = False
        for member in members:
            token = f"{member.series}/{member.name!r}"
            if token not in self.here and self.predictor.predict(member, token):
                found = True
                if self.predictor.expects(token):
                    self.here.add(token)
                    self.fetched.append(token)
        return found

    def read(
        self, name: bytes, directory: int = DIRECTORY, tail: tuple[bytes, ...] = (), beside: Sequence[Member] = ()
    ) -> None:
        """`beside`: what else the file is a member of, by its name in the directories beside its own."""
        member = Member((directory, tail), name)
        token = f"{member.series}/{name!r}"
        following: Sequence[Member] | None = [] if token in self.here else None
        self.misses += token not in self.here
        if self.predictor.expects(token):
            following = self.predictor.used(token, waited=not self.slow)
        if following is not None:
            self.take(following)
        else:
            any(
                map(self.take, self.predictor.missed(token, [member, *beside]))
            )  # the first guess with anything new in it
        self.here.add(token)


def files(count: int, form: str = "{:04}.mp3") -> list[bytes]:
    return [form.format(number).encode() for number in range(count)]


def windows(reader: Reader, names: Iterable[bytes]) -> list[tuple[int, int]]:
    """(number of the read, how many were fetched after it), where there were any."""
    found = []
    for number, name in enumerate(names):
        before = len(reader.fetched)
        reader.read(name)
        if len(reader.fetched) > before:
            found.append((number, len(reader.fetched) - before))
    return found


def test_two_misses_in_order_begin_a_run() -> None:
    """One miss somewhere says nothing; the next name says that the others follow."""
    reader = Reader({DIRECTORY: files(400)})
    assert windows(reader, files(400)[100:102]) == [(1, FIRST)]


def test_the_first_of_several_begins_a_run() -> None:
    """Who begins with the first of files that differ in their digits is believed to read on; where there are no several,
    where it is not the first, or where nothing is counted, it is a miss as any other.
    """
    reader = Reader(
        {DIRECTORY: [b"cover.webp", *files(40), b"info.json"], 8: files(2), 9: [b"a.json", b"b.json", b"c.json"]}
    )
    assert windows(reader, files(40)[:1]) == [(0, START)]
    assert all(".mp3" in token for token in reader.fetched)
    before = len(reader.fetched)
    reader.read(b"0000.mp3", directory=8)
    reader.read(b"a.json", directory=9)
    assert len(reader.fetched) == before
    reader = Reader({DIRECTORY: files(40)})
    assert windows(reader, files(40)[1:2]) == []


def test_who_waits_gets_larger_windows() -> None:
    """The last quarter of the first window says that the reader goes on; who was faster than the second one has the
    next ones predicted at the first use of the newest, each twice as large.
    """
    reader = Reader({DIRECTORY: files(400)})
    at = 3 * START // 4 + 1
    assert windows(reader, files(400))[:5] == [
        (0, START), (at, 2 * START), (START + 1, LARGEST), (3 * START + 1, LARGEST), (7 * START + 1, LARGEST),
    ]  # fmt: skip
    assert reader.misses == 1
    assert len(reader.fetched) == 399


def test_a_slow_reader_gets_small_windows() -> None:
    """Whoever finds everything here when he comes for it needs no more ahead than he has."""
    reader = Reader({DIRECTORY: files(100)}, slow=True)
    found = windows(reader, files(100)[:60])
    assert {size for _, size in found} == {START}
    assert len(reader.fetched) <= 60 + START
    assert reader.misses == 1


def test_documents_below_one_that_was_missed() -> None:
    """A file without digits was read: the few of its suffix below it are guessed, and say nothing about others."""
    series = (DIRECTORY, (b"sentences.json",))
    reader = Reader({DIRECTORY: [b"en", b"info.json", b"tr"]})
    reader.documents = [Member(series, b"en"), Member(series, b"tr")]
    reader.read(b"info.json")
    assert len(reader.fetched) == 2
    reader.read(b"en", tail=(b"sentences.json",))
    reader.read(b"tr", tail=(b"sentences.json",))
    assert reader.misses == 1
    assert len(reader.fetched) == 2
    reader = Reader({DIRECTORY: files(3)})
    reader.documents = [Member(series, b"en")]
    reader.read(b"0002.mp3")
    assert reader.fetched == []


def test_who_goes_straight_to_a_document_is_believed_to_play_what_it_lists() -> None:
    """With the documents below it come the first numbered files of the first directory that has one; the run goes on
    from there. Not for who listed the directories beside it and may go from one to the next, nor where nothing lies beside.
    """
    documents = [Member((DIRECTORY, (b"sentences.json",)), name) for name in (b"en", b"tr")]
    beside = [Member((1, (b"info.json",)), b"dictation")]

    def reader() -> Reader:
        made = Reader({DIRECTORY: [b"en", b"info.json", b"tr"], 8: [*files(40), b"sentences.json"], 9: files(40)})
        made.documents, made.below = documents, 8
        return made

    straight = reader()
    straight.read(b"info.json", beside=beside)
    assert len(straight.fetched) == 2 + START
    for name in files(40):
        straight.read(name, directory=8)
    assert straight.misses == 1
    walker = reader()
    walker.predictor.listed(1)
    walker.read(b"info.json", beside=beside)
    assert len(walker.fetched) == 2
    at_the_top = reader()
    at_the_top.read(b"info.json")
    assert len(at_the_top.fetched) == 2
    under_way = reader()
    under_way.read(b"0001.mp3", directory=8)
    under_way.read(b"info.json", beside=beside)
    assert len(under_way.fetched) == 2, "somebody goes through it already"


def test_who_reads_documents_only_has_that_guess_switched_off() -> None:
    """The documents below go on being guessed."""
    reader = Reader({ino: files(40) for ino in range(200)})
    for ino in range(100, 200):
        reader.documents, reader.below = [Member((ino, (b"sentences.json",)), b"en")], ino - 100
        reader.read(b"info.json", directory=ino, beside=[Member((1, (b"info.json",)), b"%d" % (7919 * ino % 1000))])
        reader.read(b"en", directory=ino, tail=(b"sentences.json",))
    assert START <= sum("mp3" in token for token in reader.fetched) <= 5 * START
    assert reader.misses == 100
    check(reader.predictor)


def test_each_ground_is_judged_by_itself() -> None:
    """Who reads the first file of many directories and nothing else has that guess switched off, soon; who reads in
    order is followed all the same, and it comes back when it would have been right.
    """
    reader = Reader({ino: files(40) for ino in range(200)})
    for ino in range(100):
        reader.read(b"0000.mp3", directory=ino)
    wasted = len(reader.fetched)
    assert START <= wasted <= 5 * START
    assert not reader.predictor.on
    for name in files(40):
        reader.read(name, directory=100)
    assert reader.misses == 100 + 2, "two misses in order"
    assert len(reader.fetched) - wasted == 38
    for name in files(2):
        reader.read(name, directory=120)
    for token in reader.fetched[-FIRST:]:
        reader.predictor.dropped(token)
    check(reader.predictor)
    for ino in range(101, 110):
        for name in files(40):
            reader.read(name, directory=ino)
    assert reader.predictor.on
    before = reader.misses
    for name in files(40):
        reader.read(name, directory=111)
    assert reader.misses - before == 1


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
    """Misses of one shape predict that shape; two of different shapes predict all that follow."""
    both = [b"%03d_%s.mp3" % (number, kind) for number in range(20) for kind in (b"auto", b"user")]
    reader = Reader({DIRECTORY: both})
    for number in range(20):
        reader.read(b"%03d_auto.mp3" % number)
    assert reader.misses == 1
    assert not [token for token in reader.fetched if "user" in token]
    reader = Reader({DIRECTORY: both})
    for name in sorted(both):
        reader.read(name)
    assert reader.misses == 2


def test_misses_far_apart_in_time() -> None:
    """A reader who takes a file of each of many directories is no run in any of them."""
    reader = Reader({ino: files(30) for ino in range(20)})
    for number in range(5, 30):
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
    assert reader.misses - before == 1


def test_what_could_not_be_fetched_is_not_held_against_it() -> None:
    """A dropped prediction is no wrong one; a lost one is."""
    reader = Reader({DIRECTORY: files(2000)})
    predictor = reader.predictor
    for wrong in (False, True):
        for start in range(0, 1000, 20):
            members: list[Member] = []
            for number in (start, start + 1):
                missed = Member((DIRECTORY, ()), files(2000)[number])
                members = [each for guess in predictor.missed("", [missed]) for each in guess]
            for member in members:
                token = f"{wrong} {member}"
                predictor.predict(member, token)
                (predictor.lost if wrong else predictor.dropped)(token)
        assert predictor.on is not wrong


def test_a_window_that_ends_at_the_unknown_goes_on_with_the_next_use() -> None:
    """What a listing has not reached when the window is looked at is predicted as soon as it has."""
    reader = Reader({DIRECTORY: files(30)})
    known = 6

    def take(members: Iterable[Member]) -> bool:
        for member in members:
            if files(30).index(member.name) >= known:
                reader.predictor.cut(member)
                break
            Reader.take(reader, [member])
        return True

    reader.take = take  # type: ignore[method-assign]
    for number in range(4):
        reader.read(files(30)[number])
    assert len(reader.fetched) == 5
    known = 30
    for number in range(4, 30):
        reader.read(files(30)[number])
    assert reader.misses == 1


def check(predictor: Predictor) -> None:
    """Its invariants."""
    waiting = [*predictor._open.items(), *predictor._tried.items()]
    assert all(predictor.room(ground) >= 0 for ground in Ground)
    assert sum(judge.open for judge in predictor._judges.values()) == len(waiting)
    assert all(token in predictor._runs[each.member.series].open for token, each in waiting), "all will be judged"


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
        check(predictor)
    assert all(any(f"{name!r}" in token for name in files(40)) for token in reader.fetched)


@given(st.permutations(range(60)))
def test_waste_is_bounded(order: list[int]) -> None:
    """Reading half of a directory in any order fetches no more than the directory has, each file once."""
    reader = Reader({DIRECTORY: files(60)})
    for number in order[:30]:
        reader.read(files(60)[number])
    assert len(reader.fetched) == len(set(reader.fetched))
    assert reader.misses + len(reader.fetched) <= 60
