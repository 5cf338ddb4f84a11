"""The sample site is deterministic, looks like the measured site, and fits into B2."""

from __future__ import annotations

import itertools
import os
import statistics
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from b2fs.devbucket.sample import NEWEST_MTIME_NS, ODD_NAMES, SampleFile, dictation_id, sample_site, write_tree


@pytest.fixture(scope="module")
def site() -> list[SampleFile]:
    return list(sample_site())


def sizes(site: list[SampleFile], suffix: str, under: str = "dictations/") -> list[int]:
    return sorted(len(file.data) for file in site if file.path.startswith(under) and file.path.endswith(suffix))


def test_equal_arguments_give_equal_sites(site: list[SampleFile]) -> None:
    """Names, bytes, modes and times are a function of the arguments alone."""
    assert list(sample_site()) == site


def test_another_seed_gives_other_contents_under_the_same_names(site: list[SampleFile]) -> None:
    """The seed changes the noise, not the shape."""
    other = list(sample_site(seed=2))
    assert [file.path for file in other] == [file.path for file in site]
    media = [(a, b) for a, b in zip(site, other, strict=True) if a.path.endswith(".mp3")]
    assert all(a.data != b.data for a, b in media)


def test_a_dictation_does_not_depend_on_how_many_there_are(site: list[SampleFile]) -> None:
    """Dictation n has the same files in a site of any size that has it."""
    folder = f"dictations/{dictation_id(3)}/"
    few = [file for file in sample_site(dictations=4) if file.path.startswith(folder)]
    assert few and few == [file for file in site if file.path.startswith(folder)]


def test_a_large_site_is_lazy() -> None:
    """The first files of a site too large for any memory come at once."""
    first = list(itertools.islice(sample_site(dictations=400), 200))
    assert len({file.path for file in first}) == 200


def test_counts_are_the_measured_ones(site: list[SampleFile]) -> None:
    """15 dictations have 532 files, 13 to 108 each; users, covers and the three root files are as counted."""
    per_dictation = Counter(file.path.split("/")[1] for file in site if file.path.startswith("dictations/"))
    assert min(per_dictation) == dictation_id(0)
    assert (len(per_dictation), min(per_dictation.values()), max(per_dictation.values())) == (15, 13, 108)
    assert len(sizes(site, "_avto.mp3")) == 434
    assert len(sizes(site, "_user.mp3")) == 32
    assert len(sizes(site, "sentences.json")) == 30
    assert len(sizes(site, "info.json")) == 15
    assert len(sizes(site, "cover.webp")) == 14
    assert len(sizes(site, "info.json", "users/")) == 7
    assert len(sizes(site, "", "covers/")) == 8
    assert len(site) - len(sizes(site, "", "temp/")) == 566
    assert len({file.path for file in site}) == len(site)


def test_sizes_are_in_the_measured_distribution(site: list[SampleFile]) -> None:
    """Sizes lie between the measured extremes and their medians are near the measured ones."""
    generated = sizes(site, "_avto.mp3")
    assert all(size % 192 == 0 for size in generated)
    assert 8_000 < generated[0] and generated[-1] <= 67_000
    assert statistics.median(generated) == pytest.approx(23_200, rel=0.1)
    assert statistics.quantiles(generated, n=10)[0] == pytest.approx(13_400, rel=0.1)
    assert statistics.quantiles(generated, n=10)[-1] == pytest.approx(33_600, rel=0.1)
    spoken = sizes(site, "_user.mp3")
    assert 22_000 < spoken[0] and spoken[-1] <= 58_000
    sentences = sizes(site, "sentences.json")
    assert 1_200 < sentences[0] and sentences[-1] < 12_300
    assert statistics.median(sentences) == pytest.approx(3_200, rel=0.2)
    covers = sizes(site, "cover.webp")
    assert 1_100 <= covers[0] and covers[-1] <= 8_900
    infos = sizes(site, "info.json")
    assert 150 < infos[0] and infos[-1] < 230
    assert max(sizes(site, "", "covers/")) == pytest.approx(2_200_000, rel=0.01)
    assert sizes(site, "", "keyboard_layouts.json") == pytest.approx([66_000], rel=0.1)
    assert sum(len(file.data) for file in site) == pytest.approx(16_000_000, rel=0.05)


def test_names_fit_into_b2(site: list[SampleFile]) -> None:
    """No name breaks b2sdk's rules: segments of 1 to 250 bytes, paths up to 1000, no backslash or control character."""
    for file in site:
        assert len(file.path.encode()) <= 1000
        assert all(1 <= len(segment.encode()) <= 250 and segment not in {".", ".."} for segment in file.path.split("/"))
        assert "\\" not in file.path and all(ord(character) >= 32 and ord(character) != 127 for character in file.path)


def test_the_odd_names_are_there(site: list[SampleFile]) -> None:
    """One folder has names that differ only in case or normal form, and each character that a URL would change."""
    names = {Path(file.path).name for file in site if file.path.startswith("temp/")}
    assert names == set(ODD_NAMES)
    assert len({name.casefold() for name in names}) == len(names) - 1
    assert len({unicodedata.normalize("NFC", name) for name in names}) == len(names) - 1
    assert set("%+&#?;'[]") <= set("".join(names))
    assert any(name.startswith(" ") for name in names)


def test_times_are_old_and_have_nanoseconds(site: list[SampleFile]) -> None:
    """Times lie before the constant that callers compare with; most have nanoseconds, some whole seconds."""
    assert all(0 < file.mtime_ns < NEWEST_MTIME_NS for file in site)
    assert sum(file.mtime_ns % 1000 != 0 for file in site) > len(site) / 2
    assert any(file.mtime_ns % 10**9 == 0 for file in site)


def test_contents_do_not_compress_and_have_their_magic(site: list[SampleFile]) -> None:
    """Media files begin as their type does, and no two have the same bytes."""
    media = {".mp3": b"\xff\xf3", ".webp": b"RIFF", ".webm": b"\x1a\x45\xdf\xa3"}
    chosen = [file for file in site if Path(file.path).suffix in media]
    assert all(file.data.startswith(media[Path(file.path).suffix]) for file in chosen)
    assert len({file.data for file in chosen}) == len(chosen)


def test_write_tree_writes_bytes_mode_and_mtime(tmp_path: Path) -> None:
    """What lands on disk is what the site says, whatever the umask."""
    few = [
        SampleFile("a/b/ leading 'quote'.mp3", b"x" * 10, NEWEST_MTIME_NS - 123_456_789, 0o600),
        SampleFile("a/c", b"", NEWEST_MTIME_NS - 10**9, 0o666),
    ]
    before = os.umask(0o077)
    try:
        write_tree(few, tmp_path)
    finally:
        os.umask(before)
    for file in few:
        status = (tmp_path / file.path).stat()
        assert (tmp_path / file.path).read_bytes() == file.data
        assert (status.st_mode & 0o7777, status.st_mtime_ns) == (file.mode, file.mtime_ns)
