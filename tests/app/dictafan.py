"""A web app that does to static/data/ what Dictafan does: same directories, open flags, order of calls; no audio in it.

Rules
  It knows nothing of b2fs and is careless as the real one is (see documents.py): a test that needs it careful is wrong.
  What it writes depends on the requests alone: no clock and no random names in contents or paths.
  One request at a time: it is made for one gunicorn worker without threads.

Layout of the data directory: temp/<id>/<language>/ what an editor works on, dictations/<id>/<language>/ what is saved,
users/<id>/, covers/, and categories.json, languages.json, keyboard_layouts.json.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from typing import Any

import flask
from flask.typing import ResponseReturnValue

from tests.app import media
from tests.app.documents import (
    answer,
    data,
    documents,
    forget,
    load_categories,
    load_json,
    place,
    save_categories,
    save_json,
)

COVER_SIZE = 5_000
PART = "part_"
"""Recordings whose names begin so are pieces that the editor does not load again."""

site = flask.Blueprint("site", __name__)


def create_app(data_dir: str | os.PathLike[str]) -> flask.Flask:
    """The app on a data directory, which it first touches when the first request comes."""
    app = flask.Flask(__name__, static_folder=None)
    app.config["DATA_DIR"] = os.path.abspath(data_dir)
    app.register_blueprint(documents)
    app.register_blueprint(site)
    return app


@site.get("/health")
def health() -> ResponseReturnValue:
    return answer(ok=True)


@site.get("/static/data/<path:name>")
def static_data(name: str) -> ResponseReturnValue:
    """As Flask's static route: HEAD, Range, ETag and 304; the body goes out by sendfile."""
    return flask.send_from_directory(flask.current_app.config["DATA_DIR"], name)


# Pages


@site.get("/")
def index_page() -> ResponseReturnValue:
    return f"<!doctype html><title>Dictations in {len(load_categories()['children'])} languages</title>"


@site.get("/dictations-list")
def dictations_list() -> ResponseReturnValue:
    cards = []
    for identifier in sorted(os.listdir(data("dictations"))):
        folder = data("dictations", identifier)
        info_path = os.path.join(folder, "info.json")
        if not os.path.isdir(folder) or not os.path.exists(info_path):
            continue
        info = load_json(info_path, {})
        inside = sorted(os.listdir(folder))
        languages = [name for name in inside if os.path.isdir(os.path.join(folder, name))]
        count = info.get("sentences_count")
        if count is None:
            count = len(load_sentences(identifier, info.get("language_original", "en")))
        cover = os.path.exists(os.path.join(folder, "cover.webp"))
        cards.append({"id": identifier, "languages": languages, "sentences": count, "cover": cover, **info})
    return answer(dictations=cards)


@site.get("/dictation/<identifier>")
def dictation_page(identifier: str) -> ResponseReturnValue:
    info_path = data("dictations", identifier, "info.json")
    if not os.path.exists(info_path):
        return answer(404, error="no such dictation")
    info = load_json(info_path, {})
    languages = [info["language_original"], info["language_translation"]]
    return answer(info=info, sentences={language: load_sentences(identifier, language) for language in languages})


@site.get("/dictation_editor/<identifier>")
def editor_page(identifier: str) -> ResponseReturnValue:
    """The editor, for a saved dictation or for one that does not exist yet."""
    info = load_json(data("dictations", identifier, "info.json"), {})
    languages = [info[key] for key in ("language_original", "language_translation") if key in info]
    keyboards = load_json(data("keyboard_layouts.json"), {})
    sentences = {language: load_sentences(identifier, language) for language in languages}
    return answer(info=info, sentences=sentences, keyboards=sorted(keyboards))


def load_sentences(identifier: str, language: str) -> list[Any]:
    path = data("dictations", identifier, language, "sentences.json")
    if not os.path.exists(path):  # False on any error: the editor then opens empty, and its next save is final
        return []
    sentences: list[Any] = load_json(path, {"sentences": []})["sentences"]
    return sentences


# Recordings: everything the editor makes lands in temp/<id>/<language>/.


def temp_folder(form: Any) -> str:
    folder = data("temp", form["id"], form["language"])
    os.makedirs(folder, exist_ok=True)
    return folder


@site.post("/upload-audio")
def upload_audio() -> ResponseReturnValue:
    """Store a recording under the very name that it had on the user's disk."""
    upload = flask.request.files["audio"]
    upload.save(os.path.join(temp_folder(flask.request.form), upload.filename or ""))
    return answer(name=upload.filename)


@site.post("/upload_mic_audio")
def upload_mic_audio() -> ResponseReturnValue:
    upload = flask.request.files["audio"]
    upload.save(os.path.join(temp_folder(flask.request.form), "microphone.webm"), buffer_size=16_384)
    return answer(name="microphone.webm")


@site.post("/generate_audio")
def generate_audio() -> ResponseReturnValue:
    """Speech from a service that is out of reach; as in the real app the empty file stays."""
    wanted = flask.request.get_json()
    with open(os.path.join(temp_folder(wanted), wanted["name"]), "wb"):
        return answer(500, error="no network")


@site.post("/split-audio")
def split_audio() -> ResponseReturnValue:
    """Cut one wav into `parts` mp3 files."""
    wanted = flask.request.get_json()
    folder = temp_folder(wanted)
    names = []
    for number, piece in enumerate(pieces(media.read_wav(os.path.join(folder, wanted["source"])), wanted["parts"])):
        names.append(f"split_{number:02}.mp3")
        path = os.path.join(folder, names[-1])
        if os.path.exists(path):
            os.remove(path)
        media.write_mp3(path, piece)
    return answer(names=names)


@site.post("/split_audio_into_parts")
def split_audio_into_parts() -> ResponseReturnValue:
    """Cut the beginning of a wav into `parts` smaller ones."""
    wanted = flask.request.get_json()
    folder = temp_folder(wanted)
    names = []
    sound = media.read_wav(os.path.join(folder, wanted["source"]), wanted["length"])
    for number, piece in enumerate(pieces(sound, wanted["parts"])):
        names.append(f"{PART}{number}.wav")
        media.write_wav(os.path.join(folder, names[-1]), piece)
    return answer(names=names)


@site.post("/create-combined-audio")
def create_combined_audio() -> ResponseReturnValue:
    wanted = flask.request.get_json()
    folder = temp_folder(wanted)
    paths = [os.path.join(folder, name) for name in wanted["names"]]
    if not all(os.path.exists(path) and os.path.getsize(path) for path in paths):
        return answer(404, error="no such recording")
    sound = b"".join(map(media.read_mp3, paths))
    write = media.write_wav if wanted["target"].endswith(".wav") else media.write_mp3
    write(os.path.join(folder, wanted["target"]), sound)
    return answer(name=wanted["target"])


@site.post("/cut-audio")
def cut_audio() -> ResponseReturnValue:
    """Cut into a named temporary file, then os.replace(): EXDEV (and HTTP 500) unless TMPDIR is on the same mount."""
    wanted = flask.request.get_json()
    path = os.path.join(temp_folder(wanted), wanted["name"])
    with open(path, "rb") as file:
        file.seek(wanted["start"])
        cut = file.read(wanted["end"] - wanted["start"])
    with tempfile.NamedTemporaryFile(suffix=".mp3", delete=False) as made:
        pass
    with open(made.name, "wb") as file:  # ffmpeg opens the name anew
        file.write(cut)
    os.replace(made.name, path)
    return answer(name=wanted["name"])


@site.post("/delete-audio")
def delete_audio() -> ResponseReturnValue:
    wanted = flask.request.get_json()
    path = os.path.join(temp_folder(wanted), wanted["name"])
    if not os.path.exists(path):
        return answer(404, error="no such recording")
    os.remove(path)
    return answer(name=wanted["name"])


@site.post("/api/cover")
def post_cover() -> ResponseReturnValue:
    folder = data("temp", flask.request.form["id"])
    os.makedirs(folder, exist_ok=True)
    media.write_picture(os.path.join(folder, "cover.webp"), flask.request.files["cover"].read(), COVER_SIZE)
    return answer(name="cover.webp")


def pieces(sound: bytes, parts: int) -> list[bytes]:
    """`sound` in so many parts of about equal length."""
    ends = [len(sound) * number // parts for number in range(parts + 1)]
    return [sound[start:end] for start, end in itertools.pairwise(ends)]


# Saved dictations


@site.post("/save_dictation_final")
def save_dictation_final() -> ResponseReturnValue:
    """Copy every recording from temp/, changed or not, with its time; write the documents; enter the category."""
    wanted = flask.request.get_json()
    source, target = data("temp", wanted["info"]["id"]), data("dictations", wanted["info"]["id"])
    os.makedirs(target, exist_ok=True)
    copied = 0
    for folder, _, names in os.walk(source):
        for name in sorted(names):
            inside = os.path.join(target, os.path.relpath(folder, source))
            os.makedirs(inside, exist_ok=True)
            shutil.copy2(os.path.join(folder, name), os.path.join(inside, name))
            copied += 1
    save_json(os.path.join(target, "info.json"), wanted["info"])
    for language, sentences in wanted["sentences"].items():
        os.makedirs(os.path.join(target, language), exist_ok=True)
        save_json(os.path.join(target, language, "sentences.json"), {"language": language, "sentences": sentences})
    tree = load_categories()
    if place(tree, wanted["info"]["id"], wanted["category"]):
        save_categories(tree)
    return answer(copied=copied)


@site.post("/copy_dictation_to_temp")
def copy_dictation_to_temp() -> ResponseReturnValue:
    """Load a saved dictation into the editor: its recordings, with their times."""
    wanted = flask.request.get_json()
    source, target = data("dictations", wanted["id"]), data("temp", wanted["id"])
    copied = 0
    for language in wanted["languages"]:
        os.makedirs(os.path.join(target, language), exist_ok=True)
        for name in sorted(os.listdir(os.path.join(source, language))):
            if not name.startswith(PART) and name != "sentences.json":
                shutil.copy2(os.path.join(source, language, name), os.path.join(target, language, name))
                copied += 1
    return answer(copied=copied)


@site.post("/copy_dictation_to_final")
def copy_dictation_to_final() -> ResponseReturnValue:
    """Put the recordings of temp/ in the place of the saved ones; the documents stay."""
    wanted = flask.request.get_json()
    source, target = data("temp", wanted["id"]), data("dictations", wanted["id"])
    for language in wanted["languages"]:
        sentences = load_json(os.path.join(target, language, "sentences.json"), None)
        shutil.rmtree(os.path.join(target, language))
        shutil.copytree(os.path.join(source, language), os.path.join(target, language))
        save_json(os.path.join(target, language, "sentences.json"), sentences)
    return answer(id=wanted["id"])


@site.get("/api/export/<identifier>")
def export(identifier: str) -> ResponseReturnValue:
    folder = data("dictations", identifier)
    if not os.path.isdir(folder):
        return answer(404, error="no such dictation")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as made:
        for path in walk(folder):
            made.write(path, os.path.relpath(path, folder))
    return flask.Response(archive.getvalue(), mimetype="application/zip")


@site.post("/api/import")
def import_dictation() -> ResponseReturnValue:
    """Unpack a zip in a temporary directory, then copy it into place; refuse to overwrite unless told to."""
    identifier, upload = flask.request.form["id"], flask.request.files["archive"]
    folder = data("dictations", identifier)
    with contextlib.ExitStack() as stack:
        unpacked = stack.enter_context(tempfile.TemporaryDirectory())
        archive = os.path.join(unpacked, "archive.zip")
        upload.save(archive)
        try:
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(os.path.join(unpacked, "files"))
        except zipfile.BadZipFile:
            return answer(400, error="not a zip")
        if os.path.isdir(folder):
            if "overwrite" not in flask.request.form:
                return answer(409, error="exists")
            shutil.rmtree(folder)
        shutil.copytree(os.path.join(unpacked, "files"), folder)
    tree = load_categories()
    if place(tree, identifier, flask.request.form["category"]):
        save_categories(tree)
    return answer(201, id=identifier)


@site.delete("/api/dictations/<identifier>")
def delete_dictation(identifier: str) -> ResponseReturnValue:
    """Out of its category, then off the disk."""
    tree = load_categories()
    forget(tree, identifier)
    save_categories(tree)
    for folder in (data("dictations", identifier), data("temp", identifier)):
        if os.path.isdir(folder):
            shutil.rmtree(folder)
    return answer(id=identifier)


@site.post("/cleanup_temp_dictation")
@site.post("/clear_temp_folders")
def clear_temp() -> ResponseReturnValue:
    """Forget what the editor left behind of the dictations named."""
    cleared = []
    for identifier in flask.request.get_json()["ids"]:
        if os.path.isdir(folder := data("temp", identifier)):
            shutil.rmtree(folder)
            cleared.append(identifier)
    return answer(cleared=cleared)


def walk(folder: str) -> Iterator[str]:
    """Every file below `folder`, in a fixed order."""
    for above, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            yield os.path.join(above, name)


app = create_app(os.environ.get("DATA_DIR", os.path.join("static", "data")))
"""What gunicorn serves (`tests.app.dictafan:app`)."""
