"""The sample site: a tree of the shape that the app keeps in static/data/.

The quick start, the demonstrations and the tests need a site that looks like a real one: its counts, sizes,
names and times are those measured on 15 real dictations (566 files, 15.8 MB), its contents are noise.

Rules
  Pure and deterministic: no clock, no OS randomness. Equal arguments give equal bytes, names and times.
  Lazy: one dictation is in memory at a time, and dictation n does not depend on how many follow.
  Every name is legal in B2 as b2sdk enforces it: at most 250 bytes a segment and 1000 a path, no backslash.
  Only files: B2 has no empty directories, so the sample has none.

Units: sizes in bytes, times in nanoseconds.
"""

from __future__ import annotations

import itertools
import json
import os
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec

NEWEST_MTIME_NS = 1_735_689_600 * 10**9
"""2025-01-01. Every file of the sample is older, so what a program writes into the tree later is always newer."""

_YEAR_NS = 365 * 86_400 * 10**9


class SampleFile(msgspec.Struct, frozen=True):
    """One file of the site; `path` is relative, with '/'."""

    path: str
    data: bytes
    mtime_ns: int
    mode: int


class _Shape(msgspec.Struct, frozen=True):
    """What one dictation holds; each sentence has one generated recording in each of two languages."""

    sentences: int
    users: int = 0
    """Sentences that somebody spoke himself (*_user.mp3)."""
    mics: int = 0
    recordings: tuple[int, ...] = ()
    """Sizes of whole recordings, before they are cut into sentences."""
    cover: bool = True
    counted: bool = False
    """info.json has sentences_count; older ones have not, and the index page then reads sentences.json too."""


# Together: 434 *_avto.mp3, 32 *_user.mp3, 3 mic, 4 recordings, 30 sentences.json, 15 info.json, 14 covers;
# 13 to 108 files each. More than 15 dictations go through the table again.
_SHAPES = (
    _Shape(12, counted=True),
    _Shape(9),
    _Shape(38, users=24, mics=2, recordings=(367_488, 991_104)),
    _Shape(5, cover=False),
    _Shape(14, users=4),
    _Shape(11),
    _Shape(18),
    _Shape(8, mics=1),
    _Shape(15, counted=True),
    _Shape(22),
    _Shape(10, recordings=(111_936,)),
    _Shape(12),
    _Shape(14, counted=True),
    _Shape(16, users=4, recordings=(32_256,)),
    _Shape(13),
)

# Quantiles as measured: (share of the files, size). Between two points sizes are spread evenly.
_AVTO = ((0.0, 9_000), (0.1, 13_400), (0.5, 23_200), (0.9, 33_600), (0.99, 49_000), (1.0, 67_000))
_USER = ((0.0, 22_600), (0.5, 31_400), (1.0, 58_000))
_MIC = ((0.0, 55_000), (1.0, 116_000))
_COVER = ((0.0, 1_100), (0.5, 3_500), (1.0, 8_900))
_AVATAR = ((0.0, 2_100), (1.0, 3_700))
_AVATAR_SMALL = ((0.0, 600), (1.0, 1_100))
_MP3_FRAME = 192
"""Bytes of one frame at 64 kbit/s and 24 kHz, mono: generated recordings are whole frames."""

_LANGUAGES = ("ru", "de", "tr", "fr")
"""The other side of a dictation, in turn; the first side is English."""

_WORDS = {
    "en": "the river house was quiet and nobody spoke until morning came with rain",
    "ru": "тихий дом у реки где никто не говорил пока утром не пошёл дождь",
    "de": "das Haus am Fluss war still und niemand sprach bis der Regen über Nacht kam",
    "tr": "ırmağın kıyısındaki ev sessizdi ve sabah yağmur gelene dek kimse konuşmadı",
    "fr": "la maison près du fleuve était calme et personne ne parlait avant la pluie",
}

ODD_NAMES = (
    "Привет мир.mp3",
    "🎧 emoji 🇩🇪.mp3",
    unicodedata.normalize("NFC", "café Йод.mp3"),
    unicodedata.normalize("NFD", "café Йод.mp3"),
    "CASE.mp3",
    "case.mp3",
    "  two leading spaces.mp3",
    "100% + a&b #1?.mp3",
    "semi;colon 'quoted' [1].mp3",
    "длинное " * 13 + "имя.mp3",
)
"""Names as users upload them, unsanitised; the last one has 205 bytes."""


def dictation_id(number: int) -> str:
    """The name of the folder of dictation `number`: the app makes it from a time in milliseconds."""
    return f"dict_{1_700_000_000_000 + number * 86_411_037}"


def sample_site(dictations: int = 15, seed: int = 1) -> Iterator[SampleFile]:
    """The files of a site with so many dictations; the root, the users and the covers do not grow with them."""
    yield from _root(dictations, Random(f"{seed}/root"))
    yield from _users(Random(f"{seed}/users"))
    yield from _temp(Random(f"{seed}/temp"))
    for number in range(dictations):
        yield from _dictation(number, Random(f"{seed}/{number}"))


def write_tree(site: Iterable[SampleFile], directory: Path) -> None:
    """Write `site` under `directory`, each file with its mode and mtime; directories are made as needed."""
    for file in site:
        path = directory / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
        path.chmod(file.mode)
        os.utime(path, ns=(file.mtime_ns, file.mtime_ns))


def _root(dictations: int, rng: Random) -> Iterator[SampleFile]:
    languages = {code: {"name": code.upper(), "sample": _sentence(rng, code, 300)} for code in _WORDS}
    yield _file("languages.json", _json(languages), rng)
    layouts = {code: [_sentence(rng, code, 60) for _ in range(190)] for code in _WORDS}
    yield _file("keyboard_layouts.json", _json(layouts, indent=2), rng)
    yield _file("categories.json", _json(_categories(dictations), indent=2), rng)
    yield _file(
        "covers/background.svg",
        b"<svg xmlns='http://www.w3.org/2000/svg'>" + _text(rng, 2_200_000),
        rng,
    )
    for number in range(7):
        yield _file(f"covers/cover_{number}.webp", _webp(rng, _size(rng, _COVER)), rng)


def _categories(dictations: int) -> dict[str, Any]:
    """The tree of languages and folders that refers to every dictation."""
    names = (
        "Рассказы",
        "Новости",
        "Диалоги",
        "Грамматика",
        "Песни",
        "Числа",
        "Путешествия",
        "Разное",
    )
    children: list[dict[str, Any]] = []
    for code, language in enumerate(_LANGUAGES):
        ids = [dictation_id(number) for number in range(code, dictations, len(_LANGUAGES))]
        folders = [
            {
                "key": f"en-{language}-{place}",
                "title": name,
                "children": [],
                "dictations": ids[place :: len(names)],
            }
            for place, name in enumerate(names)
        ]
        children.append(
            {
                "key": f"en-{language}",
                "title": f"en → {language}",
                "children": folders,
                "dictations": [],
            }
        )
    return {"children": children}


def _users(rng: Random) -> Iterator[SampleFile]:
    for number in range(7):
        folder = f"users/user_{number:02}"
        info = {
            "id": f"user_{number:02}",
            "name": _sentence(rng, "ru", 12),
            "email": f"user{number}@example.org",
            "password": rng.randbytes(32).hex(),
            "streak": {str(day): rng.randrange(60) for day in range(10 + 7 * number)},
        }
        yield _file(f"{folder}/info.json", _json(info), rng, mode=0o600)
        if number < 6:
            yield _file(f"{folder}/avatars/large.webp", _webp(rng, _size(rng, _AVATAR)), rng)
            yield _file(f"{folder}/avatars/small.webp", _webp(rng, _size(rng, _AVATAR_SMALL)), rng)
        if number < 4:
            records = [
                {
                    "dictation": dictation_id(rng.randrange(15)),
                    "errors": rng.randrange(9),
                    "seconds": rng.randrange(900),
                }
                for _ in range(14 + 12 * number)
            ]
            history = {"month": f"2024{9 + number:02}", "records": records}
            yield _file(f"{folder}/history/h_2024{9 + number:02}.json", _json(history), rng)


def _temp(rng: Random) -> Iterator[SampleFile]:
    """What an editor left behind who never saved: uploads under the names that they had on his disk."""
    for name in ODD_NAMES:
        yield _file(f"temp/dict_1699999999999/en/{name}", _mp3(rng, _size(rng, _AVTO)), rng)


def _dictation(number: int, rng: Random) -> Iterator[SampleFile]:
    shape = _SHAPES[number % len(_SHAPES)]
    folder = f"dictations/{dictation_id(number)}"
    other = _LANGUAGES[number % len(_LANGUAGES)]
    info: dict[str, Any] = {
        "id": dictation_id(number),
        "title": _sentence(rng, other, 36),
        "language_original": "en",
        "language_translation": other,
        "level": f"A{1 + number % 2}",
        "is_dialog": False,
    }
    if shape.counted:
        info["sentences_count"] = shape.sentences
    yield _file(f"{folder}/info.json", _json(info), rng)
    if shape.cover:
        yield _file(f"{folder}/cover.webp", _webp(rng, _size(rng, _COVER)), rng)
    for language in ("en", other):
        sentences = [
            {
                "key": f"{key:03}",
                "text": _sentence(rng, language, rng.randrange(30, 120)),
                "audio": f"{key:03}_{language}_avto.mp3",
                "audio_user": f"{key:03}_{language}_user.mp3" if language == "en" and key < shape.users else "",
                "start": round(rng.random() * 100, 2),
                "end": round(rng.random() * 100, 2),
            }
            for key in range(shape.sentences)
        ]
        document = {
            "language": language,
            "title": info["title"],
            "sentences": sentences,
            "chain": [""] * 80,
        }
        yield _file(f"{folder}/{language}/sentences.json", _json(document, indent=1), rng)
        for key in range(shape.sentences):
            yield _file(
                f"{folder}/{language}/{key:03}_{language}_avto.mp3",
                _mp3(rng, _size(rng, _AVTO)),
                rng,
            )
    for key in range(shape.users):
        yield _file(f"{folder}/en/{key:03}_en_user.mp3", _mp3(rng, _size(rng, _USER)), rng)
    for key in range(shape.mics):
        yield _file(f"{folder}/en/{key:03}_en_mic.webm", _webm(rng, _size(rng, _MIC)), rng)
    for size, name in zip(shape.recordings, itertools.cycle(ODD_NAMES[number % 3 :]), strict=False):
        yield _file(f"{folder}/en/{name}", _mp3(rng, size), rng)


def _file(path: str, data: bytes, rng: Random, *, mode: int = 0o644) -> SampleFile:
    """A file of the year before NEWEST_MTIME_NS; one in eight has whole seconds, as unzip leaves them."""
    mtime_ns = NEWEST_MTIME_NS - 1 - rng.randrange(_YEAR_NS)
    if rng.randrange(8) == 0:
        mtime_ns -= mtime_ns % 10**9
    return SampleFile(path, data, mtime_ns, mode)


def _size(rng: Random, quantiles: tuple[tuple[float, int], ...]) -> int:
    """A size from the distribution whose quantiles are given."""
    share = rng.random()
    right = max(1, bisect_left(quantiles, (share,)))
    (low, small), (high, large) = quantiles[right - 1 : right + 1]
    return int(small + (large - small) * (share - low) / (high - low))


def _mp3(rng: Random, size: int) -> bytes:
    frames = size // _MP3_FRAME
    return b"\xff\xf3\x84\xc4" + rng.randbytes(frames * _MP3_FRAME - 4)


def _webp(rng: Random, size: int) -> bytes:
    return b"RIFF" + (size - 8).to_bytes(4, "little") + b"WEBPVP8 " + rng.randbytes(size - 16)


def _webm(rng: Random, size: int) -> bytes:
    return b"\x1a\x45\xdf\xa3" + rng.randbytes(size - 4)


def _text(rng: Random, size: int) -> bytes:
    """Printable noise: hexadecimal digits."""
    return rng.randbytes(size // 2).hex().encode()


def _sentence(rng: Random, language: str, length: int) -> str:
    """Words of the language, about `length` characters."""
    return " ".join(rng.choices(_WORDS[language].split(), k=max(1, length // 6)))


def _json(value: object, indent: int | None = None) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=indent).encode()
