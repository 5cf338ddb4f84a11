"""The story: a person uses the app, from registration to clearing up, and every answer is checked.

    with serve(data_dir) as url:
        report = run_story(url)
    assert not report.failures, str(report)

The data directory must hold `sample_site()` when the first story begins. Each row of the workload (the facts about the
real app) is a method `flow_<name>` of `Story`; FLOWS says in which order they run:

  once per user       register login profile avatar categories editor_new
  once per round      upload_tts gtts_offline upload_odd_names upload_shared split_audio split_into_parts merge_audio
                      cut_audio mic cover delete_audio (57 recordings in temp/), save_final check_saved index open
                      http_semantics edit_open edit_resave history draft small_dictation copy_to_final
                      delete_dictation import
  once per user, end  export move_category cleanup_temp clear_temp delete_big
  at the very end     final_check (every file of the site, every document)

Rules
  The driver never asks the server what is right: `Expected` is a model of the whole site, changed by the same steps.
  When the story has passed, the files of the data directory are exactly `report.expected.files`, byte for byte.
  It is deterministic: two runs on two directories leave equal trees. Times are the exception: files that were uploaded
  or made by the app have the clock's; those of the sample, and their copies by copy2, keep the sample's. All times of
  the sample lie before `NEWEST_MTIME_NS`, so `compare(a, b, clock_ns=NEWEST_MTIME_NS)` tells them apart.
  A file's time never changes unless it is written: the ETag (time, size) of every file is remembered and compared.

What is in danger (see documents.py): categories.json, users/*/info.json, users/*/history/*.json. One passing error
of the file system while they are read, and the app replaces them, with HTTP 200. `check_site` shows it.
"""

from __future__ import annotations

import copy
import zipfile
from dataclasses import dataclass, field

from b2fs.devbucket.sample import ODD_NAMES, dictation_id
from tests.app import media
from tests.app.client import Client, Report, Upload
from tests.app.dictafan import PART, pieces
from tests.app.documents import (
    AVATARS,
    add_category,
    digest,
    find,
    place,
    remove_category,
    user_id,
)
from tests.app.expected import Expected
from tests.app.steps import LANGUAGES, SENTENCES, Steps, as_document, noise, sentences

RECORDINGS = 57
"""Recordings of the dictation that the story makes, the cover counted."""
SEEDED = dictation_id(3)
"""The dictation of the sample that the story edits: 5 sentences in en and fr."""
SEEDED_LANGUAGES = ("en", "fr")


@dataclass
class StoryReport(Report):
    expected: Expected = field(default_factory=lambda: Expected({}, {}, {}))
    """What the site should hold when the story is over, for `check_site` and for comparison with a directory or bucket."""


def run_story(
    base_url: str, *, rounds: int = 2, users: int = 1, dictations: int = 15, after: Expected | None = None
) -> StoryReport:
    """Run the whole story, users one after the other.

    `dictations` is the size of the sample in the data directory; `after` is what an earlier story left there
    (`report.expected`), for a second one with new users on the same site.
    """
    report = StoryReport(expected=copy.deepcopy(after) if after else Expected.of_sample(dictations))
    story = Story(Client(base_url, report), report.expected)
    first = len(report.expected.accounts)
    for user in range(first, first + users):
        story.begin(user)
        for when, names in FLOWS:
            for number in range(rounds if when == "round" else 1):
                if when == "round":
                    story.begin_round(number)
                for name in names:
                    story.run(name)
    story.run("final_check")
    story.client.close()
    return report


def check_site(base_url: str, expected: Expected, *, etags: bool = True) -> list[str]:
    """Everything the site should hold, read over HTTP: what differs.

    `etags=False` where times may have changed, as after a restore from a bucket without the local state.
    """
    report = Report()
    story = Story(Client(base_url, report), copy.deepcopy(expected))
    if not etags:
        story.expected.etags.clear()
    story.run("final_check")
    story.client.close()
    return report.failures


class Story(Steps):
    """The flows."""

    def run(self, name: str) -> None:
        """One flow; when it breaks off, that is one failure more in the report."""
        self.client.flow = name
        try:
            getattr(self, f"flow_{name}")()
        except (LookupError, AttributeError, TypeError, ValueError, zipfile.BadZipFile) as error:
            self.client.fail(f"breaks off: {error!r}")

    # One person

    def flow_register(self) -> None:
        account = self.account
        wanted = {"email": account.email, "password": account.password, "name": f"Человек {self.user}"}
        self.client.call("POST", "/user/api/register", send=wanted, want=201)
        self.client.call("POST", "/user/api/register", send=wanted, want=409)
        account.info = {"id": user_id(account.email), "name": wanted["name"], "email": account.email}
        account.info |= {"avatars": 0, "streak": {}, "password": digest(account.email, account.password)}
        self.expected.accounts.append(account)
        self.save_user()

    def flow_login(self) -> None:
        call = self.client.call
        call("GET", "/user/api/me", want=401)
        call("POST", "/user/api/login", send={"email": self.account.email, "password": "wrong"}, want=401)
        call("POST", "/user/api/login", send={"email": "nobody@story.example", "password": "x"}, want=401)
        self.log_in(self.account)
        self.check_me()

    def flow_profile(self) -> None:
        self.client.call("GET", "/user/profile")
        self.account.info["name"] += " 🙂"
        self.client.call("PUT", "/user/api/profile", send={"name": self.account.info["name"]})
        self.save_user()
        self.check_me()

    def flow_avatar(self) -> None:
        for number in range(2):
            source = noise(f"avatar {self.user} {number}", 4_000)
            self.client.call("POST", "/user/api/avatar", form={}, upload=Upload("avatar", "me.png", source))
            self.account.info["avatars"] += 1
            self.save_user()
            for name, size in AVATARS.items():
                path = f"users/{self.account.info['id']}/avatars/{name}.webp"
                self.expected.write(path, media.picture_bytes(source, size))
                self.get(path)

    def flow_categories(self) -> None:
        call, tree, top = self.client.call, self.expected.categories, f"story-{self.user}"
        call("GET", "/")
        created = call("POST", "/api/categories/ensure_pair", send={"key": "en-ru", "title": "en → ru"}).json()
        self.client.expect("en-ru created", created, {"created": False})
        for parent, key, title in (("", top, "Мои"), (top, f"{top}-a", "Первая"), (top, f"{top}-b", "Вторая")):
            call("POST", "/api/categories", send={"parent": parent, "key": key, "title": title})
            add_category(tree, parent, key, title)
            self.save_categories()
            self.check_tree()
        call("PUT", f"/api/categories/{top}-a", send={"title": "Переименованная"})
        renamed = find(tree, f"{top}-a")
        assert renamed is not None
        renamed["title"] = "Переименованная"
        call("DELETE", f"/api/categories/{top}-b")
        remove_category(tree, f"{top}-b")
        self.save_categories()
        self.check_tree()
        call("GET", "/")

    def flow_editor_new(self) -> None:
        page = self.client.call("GET", "/dictation_editor/dict_new").json()
        self.client.expect("keyboards", page.get("keyboards"), sorted(self.document("keyboard_layouts.json")))
        self.client.expect(
            "languages", self.client.call("GET", "/api/languages").json(), self.document("languages.json")
        )

    # Recordings of one dictation

    def flow_upload_tts(self) -> None:
        for language in LANGUAGES:
            for number in range(SENTENCES):
                name = f"{number:03}_{language}_avto.mp3"
                self.upload(self.big, language, name, noise(f"{self.big} {name}", 192 * (55 + 37 * number % 120)))

    def flow_gtts_offline(self) -> None:
        self.client.call("POST", "/generate_audio", send=self.temp(name="unspoken.mp3"), want=500)
        self.expected.write(f"temp/{self.big}/en/unspoken.mp3", b"")
        self.get(f"temp/{self.big}/en/unspoken.mp3")

    def flow_upload_odd_names(self) -> None:
        for name in ODD_NAMES:
            self.upload(self.big, "en", name, noise(f"{self.big} {name}", 10_500))
            self.get(f"temp/{self.big}/en/{name}")

    def flow_upload_shared(self) -> None:
        self.upload(self.big, "en", "shared.wav", media.wav_bytes(noise(f"{self.big} shared", 635_000)))
        self.get(f"temp/{self.big}/en/shared.wav")

    def flow_split_audio(self) -> None:
        self.client.call("POST", "/split-audio", send=self.temp(source="shared.wav", parts=SENTENCES))
        sound = self.expected.files[f"temp/{self.big}/en/shared.wav"][44:]
        for number, piece in enumerate(pieces(sound, SENTENCES)):
            self.made(f"split_{number:02}.mp3", media.mp3_bytes(piece))

    def flow_split_into_parts(self) -> None:
        wanted = self.temp(source="shared.wav", parts=4, length=140_000)
        self.client.call("POST", "/split_audio_into_parts", send=wanted)
        sound = self.expected.files[f"temp/{self.big}/en/shared.wav"][44:]
        for number, piece in enumerate(pieces(sound[:140_000], 4)):
            self.made(f"{PART}{number}.wav", media.wav_bytes(piece))
        self.client.call("HEAD", f"/static/data/temp/{self.big}/en/{PART}0.wav")

    def flow_merge_audio(self) -> None:
        names = [f"{number:03}_en_avto.mp3" for number in range(SENTENCES)] + list(ODD_NAMES[:3])
        sound = b"".join(media.sound_of(self.expected.files[f"temp/{self.big}/en/{name}"]) for name in names)
        for target, content in (("merged.mp3", media.mp3_bytes(sound)), ("merged.wav", media.wav_bytes(sound))):
            self.client.call("POST", "/create-combined-audio", send=self.temp(names=names, target=target))
            self.made(target, content)

    def flow_cut_audio(self) -> None:
        whole = noise(f"{self.big} cut", 58_000)
        self.upload(self.big, "en", "cut.mp3", whole)
        self.get(f"temp/{self.big}/en/cut.mp3")
        self.client.call("POST", "/cut-audio", send=self.temp(name="cut.mp3", start=9_600, end=47_600))
        self.made("cut.mp3", whole[9_600:47_600])

    def flow_mic(self) -> None:
        sound, form = noise(f"{self.big} microphone", 55_000), {"id": self.big, "language": "en"}
        self.client.call("POST", "/upload_mic_audio", form=form, upload=Upload("audio", "blob", sound))
        self.expected.write(f"temp/{self.big}/en/microphone.webm", sound)

    def flow_cover(self) -> None:
        path = f"temp/{self.big}/cover.webp"
        self.client.call("GET", f"/static/data/{path}", want=404)
        self.post_cover("first")
        self.get(path)

    def flow_delete_audio(self) -> None:
        self.upload(self.big, "en", "mistake.mp3", noise("mistake", 10_000))
        self.client.call("POST", "/delete-audio", send=self.temp(name="mistake.mp3"))
        self.expected.drop(f"temp/{self.big}/en/mistake.mp3")
        self.client.call("POST", "/delete-audio", send=self.temp(name="mistake.mp3"), want=404)
        self.client.call("GET", f"/static/data/temp/{self.big}/en/mistake.mp3", want=404)

    # One dictation

    def flow_save_final(self) -> None:
        self.client.expect("recordings", self.save(self.big, "first"), RECORDINGS)

    def flow_check_saved(self) -> None:
        for path in self.media(self.big):
            self.get(path)

    def flow_index(self) -> None:
        self.client.call("GET", "/")
        cards = self.check_list()
        for number, card in enumerate(cards[-10:]):
            path = f"dictations/{card.get('id')}/cover.webp"
            self.client.call("HEAD", f"/static/data/{path}", want=200 if path in self.expected.files else 404)
            self.check_draft(str(card.get("id")))
            if number % 4 == 1 and path in self.expected.files:
                self.get(path)

    def flow_open(self) -> None:
        page = self.client.call("GET", f"/dictation/{self.big}").json()
        self.client.expect("title", page["info"]["title"], f"Диктант {self.big} first")
        self.client.expect("sentences", page["sentences"], {code: sentences(code, "first") for code in LANGUAGES})
        self.client.call("GET", "/dictation/dict_missing", want=404)
        self.get(f"dictations/{self.big}/cover.webp")
        self.get(f"dictations/{self.big}/en/merged.mp3")
        for number in range(SENTENCES):
            path = f"dictations/{self.big}/ru/{number:03}_ru_avto.mp3"
            self.get(path, headers={"Range": "bytes=0-"}, want=206)

    def flow_http_semantics(self) -> None:
        path = f"dictations/{self.big}/en/000_en_avto.mp3"
        url, content = f"/static/data/{path}", self.expected.files[path]
        head = self.client.call("HEAD", url)
        self.client.expect("Content-Length of HEAD", head.headers.get("content-length"), str(len(content)))
        for asked, part in (("100-8291", content[100:8292]), ("-500", content[-500:])):
            self.client.call("GET", url, headers={"Range": f"bytes={asked}"}, want=206, body=part)
        self.client.call("GET", url, headers={"Range": f"bytes={len(content)}-"}, want=416)
        for condition, tag in (("If-None-Match", "etag"), ("If-Modified-Since", "last-modified")):
            self.client.call("GET", url, headers={condition: head.headers.get(tag, "")}, want=304, body=b"")

    def flow_edit_open(self) -> None:
        page = self.client.call("GET", f"/dictation_editor/{self.big}").json()
        self.client.expect("sentences", page.get("sentences"), {code: sentences(code, "first") for code in LANGUAGES})
        self.open_for_edit(self.big, LANGUAGES)
        for name in ("000_en_avto.mp3", ODD_NAMES[0]):
            self.get(f"temp/{self.big}/en/{name}")

    def flow_edit_resave(self) -> None:
        """Two recordings, the cover and the three documents are new; the other 54 files are written as they were."""
        for name in ("000_en_avto.mp3", "001_en_avto.mp3"):
            self.upload(self.big, "en", name, noise(f"{self.big} {name} again", 23_040))
        self.post_cover("second")
        self.client.expect("recordings", self.save(self.big, "second"), RECORDINGS)
        for name in ("cover.webp", "info.json", "en/sentences.json", "en/000_en_avto.mp3", "en/002_en_avto.mp3"):
            self.get(f"dictations/{self.big}/{name}")

    def flow_history(self) -> None:
        folder = f"users/{self.account.info['id']}/history"
        self.check_history()
        for number, month in enumerate(("202503", "202503", "202504", "202503")):
            record = {"dictation": self.big, "errors": number, "seconds": 60 + number}
            history = self.account.months.setdefault(month, {"month": month, "records": []})
            history["records"].append(record)
            wanted = {"records": len(history["records"])}
            got = self.client.call("POST", "/user/api/history", send={"month": month, "record": record}).json()
            self.client.expect(f"records of {month}", got, wanted)
            self.expected.document(f"{folder}/h_{month}.json", history)
            self.account.info["streak"][month] = wanted["records"]
            self.save_user()
            if number:
                self.check_history()
        self.check_me()
        self.check_history()

    def flow_draft(self) -> None:
        for dictation, state in ((self.big, {"sentence": 7, "text": "Недописан"}), (self.small, {"sentence": 1})):
            self.client.call("PUT", f"/user/api/dictation_state/{dictation}", send=state)
            self.account.drafts[dictation] = state
        self.check_draft(self.big)
        self.client.call("DELETE", f"/user/api/dictation_state/{self.big}")
        del self.account.drafts[self.big]
        self.check_draft(self.big)
        self.check_draft(self.small)
        self.expected.document(f"users/{self.account.info['id']}/drafts.json", self.account.drafts)

    def flow_small_dictation(self) -> None:
        for language in LANGUAGES:
            for number in range(2):
                name = f"{number:03}_{language}_avto.mp3"
                self.upload(self.small, language, name, noise(f"{self.small} {name}", 13_440))
        self.client.expect("recordings", self.save(self.small, "small"), 4)

    def flow_copy_to_final(self) -> None:
        """Edit a dictation of the sample without changing it: its recordings keep the sample's times."""
        self.open_for_edit(SEEDED, SEEDED_LANGUAGES)
        self.client.call("POST", "/copy_dictation_to_final", send={"id": SEEDED, "languages": SEEDED_LANGUAGES})
        for language in SEEDED_LANGUAGES:
            path = f"dictations/{SEEDED}/{language}/sentences.json"
            self.expected.document(path, self.document(path))
        self.check_list()
        for path in self.media(SEEDED)[:5]:
            self.get(path)
        self.check_export(SEEDED)

    def flow_delete_dictation(self) -> None:
        self.check_export(self.small)
        self.delete(self.small)
        self.check_list()
        self.client.call("GET", f"/dictation/{self.small}", want=404)

    def flow_import(self) -> None:
        """The small dictation comes back from a zip, then once more over itself."""
        files = {"info.json": as_document({"id": self.small, "title": "Из архива", "language_original": "en"})}
        for language in LANGUAGES:
            files[f"{language}/sentences.json"] = as_document({"language": language, "sentences": []})
            for number in range(2):
                name = f"{number:03}_{language}_avto.mp3"
                files[f"{language}/{name}"] = noise(f"import {self.small} {name}", 13_440)
        self.post_import(files, want=201)
        for name in sorted(files)[:4]:
            self.get(f"dictations/{self.small}/{name}")
        self.post_import(files, want=409)
        files["en/000_en_avto.mp3"] = noise(f"import {self.small} again", 13_632)
        self.post_import(files, want=201, overwrite=True)
        for name in sorted(files)[:3]:
            self.get(f"dictations/{self.small}/{name}")
        bad, form = Upload("archive", "bad.zip", b"this is not a zip"), {"id": f"{self.small}-bad", "category": "bad"}
        self.client.call("POST", "/api/import", form=form, upload=bad, want=400)
        self.check_list()

    # The end

    def flow_export(self) -> None:
        self.check_export(self.big)
        self.client.call("GET", "/api/export/dict_missing", want=404)

    def flow_move_category(self) -> None:
        target = f"story-{self.user}-a"
        self.client.call("POST", "/api/dictations/move", send={"id": self.big, "to": target})
        place(self.expected.categories, self.big, target)
        self.save_categories()
        self.check_tree()

    def flow_cleanup_temp(self) -> None:
        self.clear("/cleanup_temp_dictation", self.bigs[0])
        for path in ("cover.webp", "en/merged.mp3"):
            self.client.call("GET", f"/static/data/temp/{self.bigs[0]}/{path}", want=404)

    def flow_clear_temp(self) -> None:
        self.clear("/clear_temp_folders", self.bigs[-1])

    def flow_delete_big(self) -> None:
        paths = self.media(self.bigs[0])
        self.delete(self.bigs[0])
        for path in paths:
            self.client.call("GET", f"/static/data/{path}", want=404)

    def flow_final_check(self) -> None:
        """Every file of the site, byte for byte; then what the app makes of its documents, for each user."""
        self.check_list()
        self.check_tree()
        for account in self.expected.accounts:
            self.account = account
            self.log_in(account)
            self.check_me()
            self.check_history()
            for dictation in account.drafts:
                self.check_draft(dictation)
        for path in sorted(self.expected.files):
            self.get(path)


FLOWS = (
    ("before", ("register", "login", "profile", "avatar", "categories", "editor_new")),
    (
        "round",
        (
            *("upload_tts", "gtts_offline", "upload_odd_names", "upload_shared", "split_audio", "split_into_parts"),
            *("merge_audio", "cut_audio", "mic", "cover", "delete_audio", "save_final", "check_saved", "index", "open"),
            *("http_semantics", "edit_open", "edit_resave", "history", "draft", "small_dictation", "copy_to_final"),
            *("delete_dictation", "import"),
        ),
    ),
    ("after", ("export", "move_category", "cleanup_temp", "clear_temp", "delete_big")),
)
"""Which flows run, and when."""
