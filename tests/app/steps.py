"""What several flows of the story do: the request, the check of its answer, and the same step in the model."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable
from typing import Any

from tests.app import media
from tests.app.client import Answer, Client, Upload
from tests.app.dictafan import COVER_SIZE, PART
from tests.app.documents import forget, place, public
from tests.app.expected import Account, Expected

SENTENCES = 12
"""In each language of the dictations that the story makes."""
LANGUAGES = ("en", "ru")


class Steps:
    """One person at a time, at work on one dictation (`big`) and on a small one in each round."""

    def __init__(self, client: Client, expected: Expected) -> None:
        self.client = client
        self.expected = expected

    def begin(self, user: int) -> None:
        """The next person."""
        self.user = user
        self.account = Account(f"user{user}@story.example", f"secret {user}", {})
        self.client.token = ""
        self.bigs: list[str] = []

    def begin_round(self, number: int) -> None:
        """The next dictation."""
        base = 1_800_000_000_000 + self.user * 1_000 + number
        self.big, self.small = f"dict_{base}", f"dict_{base + 500}"
        self.bigs.append(self.big)

    def get(self, path: str, *, headers: dict[str, str] | None = None, want: int = 200) -> Answer:
        """Fetch a file of the site: its bytes, and the time that it had before."""
        answer = self.client.call(
            "GET", f"/static/data/{path}", headers=headers, want=want, body=self.expected.files[path]
        )
        if answer.status == want:
            etag = answer.headers.get("etag", "").strip('"').rpartition("-")[0]
            self.client.expect(f"ETag of {path}", etag, self.expected.etags.setdefault(path, etag))
        return answer

    def upload(self, dictation: str, language: str, name: str, content: bytes) -> None:
        form = {"id": dictation, "language": language}
        self.client.call("POST", "/upload-audio", form=form, upload=Upload("audio", name, content))
        self.expected.write(f"temp/{dictation}/{language}/{name}", content)

    def temp(self, **values: object) -> dict[str, object]:
        """A request about the recordings that are being edited."""
        return {"id": self.big, "language": "en", **values}

    def made(self, name: str, content: bytes) -> None:
        """The server has made this recording: is it the right one?"""
        self.expected.write(f"temp/{self.big}/en/{name}", content)
        self.get(f"temp/{self.big}/en/{name}")

    def post_cover(self, edition: str) -> None:
        source = noise(f"{self.big} cover {edition}", 6_000)
        self.client.call("POST", "/api/cover", form={"id": self.big}, upload=Upload("cover", "c.png", source))
        self.expected.write(f"temp/{self.big}/cover.webp", media.picture_bytes(source, COVER_SIZE))

    def media(self, dictation: str) -> list[str]:
        """The files of a saved dictation that are not documents."""
        return [path for path in self.expected.under(f"dictations/{dictation}/") if not path.endswith(".json")]

    def save(self, dictation: str, edition: str) -> object:
        """Save; the number of recordings that the server says it copied."""
        info = {
            "id": dictation,
            "title": f"Диктант {dictation} {edition}",
            "language_original": LANGUAGES[0],
            "language_translation": LANGUAGES[1],
        }
        texts = {language: sentences(language, edition) for language in LANGUAGES}
        category = f"story-{self.user}"
        wanted = {"info": info, "sentences": texts, "category": category}
        got = self.client.call("POST", "/save_dictation_final", send=wanted).json()
        for path in self.expected.under(f"temp/{dictation}/"):
            self.expected.copy2(path, path.replace("temp/", "dictations/", 1))
        self.expected.document(f"dictations/{dictation}/info.json", info)
        for language, text in texts.items():
            path = f"dictations/{dictation}/{language}/sentences.json"
            self.expected.document(path, {"language": language, "sentences": text})
        if place(self.expected.categories, dictation, category):
            self.save_categories()
        return got.get("copied")

    def open_for_edit(self, dictation: str, languages: Iterable[str]) -> None:
        wanted = {"id": dictation, "languages": list(languages)}
        got = self.client.call("POST", "/copy_dictation_to_temp", send=wanted).json()
        copied = 0
        for language in languages:
            for path in self.expected.under(f"dictations/{dictation}/{language}/"):
                if not path.endswith("/sentences.json") and f"/{PART}" not in path:
                    self.expected.copy2(path, path.replace("dictations/", "temp/", 1))
                    copied += 1
        self.client.expect("recordings copied", got, {"copied": copied})

    def post_import(self, files: dict[str, bytes], *, want: int, overwrite: bool = False) -> None:
        form = {"id": self.small, "category": "en-ru"} | ({"overwrite": "1"} if overwrite else {})
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as made:
            for name, content in files.items():
                made.writestr(zipfile.ZipInfo(name), content)
        self.client.call(
            "POST", "/api/import", form=form, upload=Upload("archive", "d.zip", archive.getvalue()), want=want
        )
        if want == 201:
            self.expected.drop(f"dictations/{self.small}/")
            for name, content in files.items():
                self.expected.write(f"dictations/{self.small}/{name}", content)
            if place(self.expected.categories, self.small, "en-ru"):
                self.save_categories()

    def delete(self, dictation: str) -> None:
        self.client.call("DELETE", f"/api/dictations/{dictation}")
        forget(self.expected.categories, dictation)
        self.save_categories()
        self.expected.drop(f"dictations/{dictation}/")
        self.expected.drop(f"temp/{dictation}/")

    def clear(self, url: str, dictation: str) -> None:
        got = self.client.call("POST", url, send={"ids": [dictation]}).json()
        there = self.expected.drop(f"temp/{dictation}/")
        self.client.expect("cleared", got, {"cleared": [dictation] if there else []})

    def log_in(self, account: Account) -> None:
        wanted = {"email": account.email, "password": account.password}
        got = self.client.call("POST", "/user/api/login", send=wanted).json()
        self.client.token = str(got.get("token", ""))

    def document(self, path: str) -> Any:
        return json.loads(self.expected.files[path])

    def save_user(self) -> None:
        self.expected.document(f"users/{self.account.info['id']}/info.json", self.account.info)

    def save_categories(self) -> None:
        self.expected.document("categories.json", self.expected.categories)

    def check_me(self) -> None:
        got = self.client.call("GET", "/user/api/me").json()
        self.client.expect(f"account {self.account.email}", got, public(self.account.info))

    def check_history(self) -> None:
        got = self.client.call("GET", "/user/api/history").json()
        months = [self.account.months[month] for month in sorted(self.account.months)]
        self.client.expect(f"history of {self.account.email}", got, {"months": months})

    def check_draft(self, dictation: str) -> None:
        got = self.client.call("GET", f"/user/api/dictation_state/{dictation}").json()
        self.client.expect(f"draft of {dictation}", got, {"state": self.account.drafts.get(dictation)})

    def check_tree(self) -> None:
        got = self.client.call("GET", "/api/categories/tree").json()
        self.client.expect("categories", got, self.expected.categories)

    def check_list(self) -> list[dict[str, Any]]:
        cards: list[dict[str, Any]] = self.client.call("GET", "/dictations-list").json().get("dictations", [])
        self.client.expect("dictations", [card.get("id") for card in cards], self.expected.dictations())
        for card in cards:
            folder = f"dictations/{card['id']}"
            covered = f"{folder}/cover.webp" in self.expected.files
            self.client.expect(f"cover of {card['id']}", card.get("cover"), covered)
            languages = sorted({path.split("/")[2] for path in self.expected.under(folder) if path.count("/") > 2})
            self.client.expect(f"languages of {card['id']}", card.get("languages"), languages)
            texts = self.document(f"{folder}/{card['language_original']}/sentences.json")["sentences"]
            self.client.expect(f"sentences of {card['id']}", card.get("sentences"), len(texts))
        return cards

    def check_export(self, dictation: str) -> None:
        """The zip of a dictation holds its files, no more, no less."""
        answer = self.client.call("GET", f"/api/export/{dictation}")
        folder = f"dictations/{dictation}/"
        with zipfile.ZipFile(io.BytesIO(answer.body)) as archive:
            got = {name: archive.read(name) for name in archive.namelist()}
        wanted = {path.removeprefix(folder): self.expected.files[path] for path in self.expected.under(folder)}
        self.client.expect("names in the zip", sorted(got), sorted(wanted))
        self.client.expect("other bytes in the zip", [name for name in got if got[name] != wanted.get(name)], [])


def noise(label: str, size: int) -> bytes:
    """Bytes that only this label has."""
    return hashlib.shake_128(label.encode()).digest(size)


def as_document(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def sentences(language: str, edition: str) -> list[dict[str, str]]:
    """What a dictation says in this edition."""
    return [
        {"key": f"{number:03}", "text": f"Предложение {number} ({language}, {edition})"} for number in range(SENTENCES)
    ]
