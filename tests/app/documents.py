"""The small JSON documents of the app: users, categories, history, drafts. Small, precious and carelessly treated.

As in the real app, and on purpose, an error while reading is taken for "nothing there", and what follows is written
over it. Each of these turns ONE passing EIO or ENOENT of the file system into lost data, with HTTP 200:

  load_categories   any error is an empty tree; the next add, rename, move, delete or save stores that tree
  register          os.path.exists() is False on any error; the account is then created anew over the old one
  post_history      any error is an empty month; the month is then replaced by the new record alone
  load_languages    an error is remembered until the process ends (the mount must be ready before the first request)

Every document is rewritten in place (O_TRUNC, write, close): a moment of emptiness that must never reach the bucket.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from typing import Any

import flask
from flask.typing import ResponseReturnValue

from tests.app.media import write_picture

AVATARS = {"large": 2900, "small": 800}
"""Sizes of the two pictures that the app keeps of each user, in bytes."""

documents = flask.Blueprint("documents", __name__)


def data(*parts: str) -> str:
    """A path under the data directory. Names come as the user typed them: nothing is sanitised."""
    return os.path.join(flask.current_app.config["DATA_DIR"], *parts)


def save_json(path: str, value: object) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=2)


def load_json(path: str, default: Any) -> Any:
    """The document, or `default` when it cannot be read for whatever reason."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return default


def answer(status: int = 200, **values: object) -> ResponseReturnValue:
    return flask.jsonify(values), status


# Categories: one tree for everybody, {"children": [{"key", "title", "children", "dictations"}, …]}.


def load_categories() -> dict[str, Any]:
    tree: dict[str, Any] = load_json(data("categories.json"), {"children": []})
    return tree


def save_categories(tree: dict[str, Any]) -> None:
    save_json(data("categories.json"), tree)


def find(tree: dict[str, Any], key: str) -> dict[str, Any] | None:
    """The category with this key, at any depth."""
    for child in tree["children"]:
        if child["key"] == key:
            return child  # type: ignore[no-any-return]  # JSON
        if found := find(child, key):
            return found
    return None


def add_category(tree: dict[str, Any], parent: str, key: str, title: str) -> None:
    above = find(tree, parent) or tree
    above["children"].append({"key": key, "title": title, "children": [], "dictations": []})


def remove_category(tree: dict[str, Any], key: str) -> None:
    tree["children"] = [child for child in tree["children"] if child["key"] != key]
    for child in tree["children"]:
        remove_category(child, key)


def place(tree: dict[str, Any], dictation: str, key: str) -> bool:
    """Put a dictation into a category (created when missing) and nowhere else. False: it was there already."""
    category = find(tree, key)
    if category and dictation in category["dictations"]:
        return False
    forget(tree, dictation)
    if category is None:
        add_category(tree, "", key, key)
        category = tree["children"][-1]
    category["dictations"].append(dictation)
    return True


def forget(tree: dict[str, Any], dictation: str) -> None:
    """Take a dictation out of every category."""
    if dictation in tree.get("dictations", ()):
        tree["dictations"].remove(dictation)
    for child in tree["children"]:
        forget(child, dictation)


@documents.get("/api/categories/tree")
def get_tree() -> ResponseReturnValue:
    return flask.jsonify(load_categories())


@documents.post("/api/categories/ensure_pair")
def ensure_pair() -> ResponseReturnValue:
    wanted, tree = flask.request.get_json(), load_categories()
    created = find(tree, wanted["key"]) is None
    if created:
        add_category(tree, "", wanted["key"], wanted["title"])
        save_categories(tree)
    return answer(created=created)


@documents.post("/api/categories")
def post_category() -> ResponseReturnValue:
    wanted, tree = flask.request.get_json(), load_categories()
    add_category(tree, wanted["parent"], wanted["key"], wanted["title"])
    save_categories(tree)
    return answer(key=wanted["key"])


@documents.put("/api/categories/<path:key>")
def put_category(key: str) -> ResponseReturnValue:
    tree = load_categories()
    category = find(tree, key)
    if category is None:
        return answer(404, error="no such category")
    category["title"] = flask.request.get_json()["title"]
    save_categories(tree)
    return answer(key=key)


@documents.delete("/api/categories/<path:key>")
def delete_category(key: str) -> ResponseReturnValue:
    tree = load_categories()
    remove_category(tree, key)
    save_categories(tree)
    return answer(key=key)


@documents.post("/api/dictations/move")
def move_dictation() -> ResponseReturnValue:
    wanted, tree = flask.request.get_json(), load_categories()
    place(tree, wanted["id"], wanted["to"])
    save_categories(tree)
    return answer(id=wanted["id"])


# Users: users/<id>/{info.json, drafts.json, avatars/, history/}. A token is "<id>.<signature>", as in a session cookie:
# who is asking is known without a look at the disk.


def digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def user_id(email: str) -> str:
    return f"user_{digest(email)[:8]}"


def token_of(identifier: str) -> str:
    return f"{identifier}.{digest('session', identifier)[:16]}"


def public(info: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in info.items() if key != "password"}


def current_id() -> str:
    """The id of the user who is asking, or HTTP 401."""
    token = flask.request.headers.get("Authorization", "")
    identifier = token.partition(".")[0]
    if token != token_of(identifier):
        flask.abort(401)
    return identifier


def current_user() -> dict[str, Any]:
    """info.json of the user who is asking, or HTTP 401."""
    info: dict[str, Any] = load_json(data("users", current_id(), "info.json"), {})
    if not info:
        flask.abort(401)
    return info


def save_user(info: dict[str, Any]) -> None:
    save_json(data("users", info["id"], "info.json"), info)


@documents.post("/user/api/register")
def register() -> ResponseReturnValue:
    wanted = flask.request.get_json()
    identifier = user_id(wanted["email"])
    if os.path.exists(data("users", identifier, "info.json")):
        return answer(409, error="this address is taken")
    os.makedirs(data("users", identifier), exist_ok=True)
    info = {"id": identifier, "name": wanted["name"], "email": wanted["email"], "avatars": 0, "streak": {}}
    save_user(info | {"password": digest(wanted["email"], wanted["password"])})
    return answer(201, id=identifier)


@documents.post("/user/api/login")
def login() -> ResponseReturnValue:
    wanted = flask.request.get_json()
    path = data("users", user_id(wanted["email"]), "info.json")
    info = load_json(path, {}) if os.path.exists(path) else {}
    if info.get("password") != digest(wanted["email"], wanted["password"]):
        return answer(401, error="wrong address or password")
    return answer(token=token_of(info["id"]))


@documents.get("/user/api/me")
def me() -> ResponseReturnValue:
    return flask.jsonify(public(current_user()))


@documents.get("/user/profile")
def profile_page() -> ResponseReturnValue:
    return "<!doctype html><title>Profile</title>"


@documents.put("/user/api/profile")
def put_profile() -> ResponseReturnValue:
    info = current_user()
    info["name"] = flask.request.get_json()["name"]
    os.makedirs(data("users", info["id"]), exist_ok=True)
    save_user(info)
    return flask.jsonify(public(info))


@documents.post("/user/api/avatar")
def post_avatar() -> ResponseReturnValue:
    info = current_user()
    folder = data("users", info["id"], "avatars")
    os.makedirs(folder, exist_ok=True)
    source = flask.request.files["avatar"].read()
    for name, size in AVATARS.items():
        write_picture(os.path.join(folder, f"{name}.webp"), source, size)
    info["avatars"] += 1
    save_user(info)
    return flask.jsonify(public(info))


@documents.get("/user/api/history")
def get_history() -> ResponseReturnValue:
    folder = data("users", current_id(), "history")
    os.makedirs(folder, exist_ok=True)  # a GET that makes a directory: the real one does
    months = [load_json(os.path.join(folder, name), {}) for name in sorted(os.listdir(folder))]
    return answer(months=months)


@documents.post("/user/api/history")
def post_history() -> ResponseReturnValue:
    info, wanted = current_user(), flask.request.get_json()
    folder = data("users", info["id"], "history")
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, f"h_{wanted['month']}.json")
    history = load_json(path, {"month": wanted["month"], "records": []})
    history["records"].append(wanted["record"])
    save_json(path, history)
    info["streak"][wanted["month"]] = len(history["records"])
    save_user(info)
    return answer(records=len(history["records"]))


@documents.route("/user/api/dictation_state/<dictation>", methods=["GET", "PUT", "DELETE"])
def dictation_state(dictation: str) -> ResponseReturnValue:
    """The draft of a user who has not finished a dictation; all his drafts are one document."""
    path = data("users", current_id(), "drafts.json")
    drafts = load_json(path, {}) if os.path.exists(path) else {}
    if flask.request.method == "GET":
        return answer(state=drafts.get(dictation))
    if flask.request.method == "PUT":
        drafts[dictation] = flask.request.get_json()
    else:
        drafts.pop(dictation, None)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    save_json(path, drafts)
    return answer(drafts=len(drafts))


# Documents that nobody writes.


@functools.cache
def load_languages(path: str) -> dict[str, Any]:
    """languages.json, read once per process; an error is cached too."""
    languages: dict[str, Any] = load_json(path, {})
    return languages


@documents.get("/api/languages")
def get_languages() -> ResponseReturnValue:
    return flask.jsonify(load_languages(data("languages.json")))
