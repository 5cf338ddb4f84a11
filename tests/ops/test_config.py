"""Settings: the order of the layers, the units, and what each wrong value is told."""

from __future__ import annotations

import dataclasses
import os
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from b2fs import config, units
from b2fs.config import SETTINGS, Config, load
from b2fs.errors import ConfigError
from b2fs.secret import Secret, redact

SECRET = "K005verysecretapplicationkey+01"
APP = {"B2_APPLICATION_KEY_ID": "005aa", "B2_APPLICATION_KEY": SECRET, "B2_BUCKET_NAME": "dictafan"}


def toml(path: Path, text: str, mode: int = 0o600) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def refusal(**given: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load(**{"environ": {}, **given})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- layers


def test_the_apps_own_variables_are_enough() -> None:
    """With nothing but the app's three variables, everything that B2 asks for is there."""
    found = load(environ=APP)
    found.require_account()
    assert (found.key_id, found.key.reveal(), found.bucket) == ("005aa", SECRET, "dictafan")
    assert found.endpoint == config.PRODUCTION and found.cache_size == 10 * 1024**3
    assert found.sources["bucket"] == "B2_BUCKET_NAME" and found.sources["uploads"] == "default"


def test_the_later_layer_wins(tmp_path: Path) -> None:
    """Each layer overrides the ones before it, and `sources` says which one it was."""
    environ = {"B2_BUCKET_NAME": "from-app"}
    assert load(environ=environ).bucket == "from-app"
    environ["B2FS_BUCKET"] = "from-variable"
    assert load(environ=environ).bucket == "from-variable"
    environ["B2FS_CONFIG"] = toml(tmp_path / "a.toml", 'bucket = "from-file"')
    assert load(environ=environ).bucket == "from-file"
    found = load({"bucket": "from-flag"}, environ)
    assert (found.bucket, found.sources["bucket"]) == ("from-flag", "--bucket")
    assert load({"bucket": None}, environ).bucket == "from-file"


def test_only_the_winning_value_is_checked() -> None:
    """A flag mends a broken variable."""
    environ = {"B2FS_CACHE_SIZE": "plenty"}
    assert load({"cache_size": "1GiB"}, environ).cache_size == 1024**3
    assert "B2FS_CACHE_SIZE" in refusal(environ=environ)


def test_a_file_given_by_flag_replaces_the_one_of_the_environment(tmp_path: Path) -> None:
    """``--config`` wins over B2FS_CONFIG; the two are not merged."""
    one, two = toml(tmp_path / "1.toml", "uploads = 1"), toml(tmp_path / "2.toml", "fetches = 2")
    found = load(environ={"B2FS_CONFIG": one}, config_file=two)
    assert (found.uploads, found.fetches, found.sources["fetches"]) == (16, 2, two)


def test_an_empty_variable_is_not_set() -> None:
    """Container platforms pass empty variables on; they override nothing."""
    assert load(environ={**APP, "B2FS_BUCKET": "  "}).bucket == "dictafan"


def test_what_is_missing_is_named_at_once() -> None:
    """`require_account` lists everything that is missing, in one line."""
    with pytest.raises(ConfigError, match=r"bucket, key_id, key.*B2_BUCKET_NAME.*B2_APPLICATION_KEY"):
        load(environ={}).require_account()


def test_toml_takes_its_own_types(tmp_path: Path) -> None:
    """Numbers and booleans need no quotes in TOML, and units work in strings."""
    path = toml(
        tmp_path / "b2fs.toml",
        'enabled = false\ncache_size = 4096\nquiet_period = 0.5\ndrain_timeout = "1h"\nuid = 1000\nfile_mode = "640"',
    )
    found = load(environ={}, config_file=path)
    assert (found.enabled, found.cache_size, found.quiet_period) == (False, 4096, 0.5)
    assert (found.drain_timeout, found.uid, found.file_mode) == (3600.0, 1000, 0o640)


# ---------------------------------------------------------------- units


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("512MiB", 512 << 20), ("10GiB", 10 << 30), ("1GB", 10**9), ("1.5gib", 3 << 29), ("7 KiB", 7168)],
)
def test_sizes(text: str, size: int) -> None:
    """A size is a number of bytes, or a number with a unit that says whether it counts in 1000 or 1024."""
    assert load(environ={"B2FS_CACHE_SIZE": text}).cache_size == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("2s", 2), ("500ms", 0.5), ("5m", 300), ("1h", 3600), ("1d", 86400), ("3", 3), ("0", 0)]
)
def test_durations(text: str, seconds: float) -> None:
    """A duration is a number of seconds, or a number with a unit."""
    assert load(environ={"B2FS_QUIET_PERIOD": text}).quiet_period == seconds


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (0.5, "500ms"), (12.34, "12.3s"), (60, "1m"), (5400, "1.5h"), (172800, "2d")]
)
def test_a_duration_is_shown_in_its_largest_unit(seconds: float, text: str) -> None:
    """`b2fs status` says `2d`, not `48h`."""
    assert units.show_duration(seconds) == text


@given(st.integers(0, 2**62))
def test_a_shown_size_can_be_read(size: int) -> None:
    """What `show_size` prints, `parse_size` reads, to within the rounding of one decimal."""
    assert abs(units.parse_size(units.show_size(size)) - size) <= max(1, size * 0.05)


@given(st.floats(0, 1e9))
def test_a_shown_duration_can_be_read(seconds: float) -> None:
    """What `show_duration` prints, `parse_duration` reads, to within the rounding of one decimal."""
    assert abs(units.parse_duration(units.show_duration(seconds)) - seconds) <= max(0.001, seconds * 0.05)


# ---------------------------------------------------------------- wrong values


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cache_size", "10G"),  # 10^9 or 2^30?
        ("cache_size", "lots"),
        ("cache_size", "-1"),
        ("cache_size", "0"),
        ("cache_size", "٣"),  # a digit, but no number for us
        ("cache_size", "9999999TiB"),
        ("quiet_period", "2 parsecs"),
        ("quiet_period", "2M"),
        ("quiet_period", "nan"),
        ("quiet_period", "inf"),
        ("quiet_period", "1" * 400),
        ("read_deadline", "0"),
        ("uploads", "0"),
        ("uploads", "1000"),
        ("uploads", "4.5"),
        ("uid", "root"),
        ("uid", "4294967295"),
        ("file_mode", "0888"),
        ("file_mode", "64"),
        ("enabled", "maybe"),
        ("allow_other", "2"),
        ("bucket", "short"),
        ("bucket", "../../etc"),
        ("bucket", "my_bucket"),
        ("endpoint", "api.backblazeb2.com"),
        ("endpoint", "ftp://example.com"),
        ("endpoint", "https://"),
        ("endpoint", "http://[::1"),
        ("endpoint", "https://user:pass@example.com"),
        ("prefix", "a//b"),
        ("prefix", "a/../b"),
        ("prefix", "a\tb"),
        ("prefix", "x" * 251),
        ("log_level", "loud"),
        ("state_dir", "a\0b"),
    ],
)
def test_a_wrong_value_is_refused(name: str, text: str) -> None:
    """The line names the setting, the variable, the value, and what is accepted."""
    message = refusal(environ={SETTINGS[name].variable: text})
    assert message.startswith(f"{name} (from {SETTINGS[name].variable}): {text!r}")
    assert SETTINGS[name].kind.accepts in message


def test_an_unknown_key_of_the_file_is_refused(tmp_path: Path) -> None:
    """A misspelt setting is an error with a hint, not a silent default."""
    path = toml(tmp_path / "a.toml", 'cache-size = "1GiB"')
    assert "did you mean cache_size?" in refusal(config_file=path)
    path = toml(tmp_path / "a.toml", "[mount]\nuploads = 1")
    assert "'mount' is not a setting" in refusal(config_file=path)


def test_an_unknown_variable_is_a_warning() -> None:
    """The environment is shared with others, so a strange B2FS_ variable only warns."""
    warnings = load(environ={"B2FS_CACHESIZE": "1", "B2FS_CONFIG": "", "B2_ELSE": "x"}).warnings
    assert warnings == ("B2FS_CACHESIZE is not a setting of b2fs; did you mean B2FS_CACHE_SIZE?",)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("uploads = [1]", "a list is not accepted"),
        ("bucket = 123456", "a int is not accepted"),
        ("uploads = true", "a bool is not accepted"),
        ("file_mode = 644", "a int is not accepted"),  # decimal; it would mean 0o1204
        ("bucket = ", "Invalid value"),
        ('bucket = "a', "Unterminated string"),
        ("uploads = 1\nuploads = 2", "Cannot overwrite"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    """Wrong types and wrong TOML are told with the file and the place."""
    path = toml(tmp_path / "a.toml", text)
    message = refusal(config_file=path)
    assert path in message and complaint in message


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """A missing file, a directory and a file that is not UTF-8 each give one line with the path."""
    assert "No such file" in refusal(config_file=str(tmp_path / "none.toml"))
    assert "Is a directory" in refusal(config_file=str(tmp_path))
    (tmp_path / "b.toml").write_bytes(b'bucket = "\xff"')
    assert "not UTF-8" in refusal(config_file=str(tmp_path / "b.toml"))


# ---------------------------------------------------------------- normal forms


@pytest.mark.parametrize(
    ("text", "prefix"), [("", ""), ("/", ""), ("a", "a/"), ("/a/b/", "a/b/"), ("сайт/ё", "сайт/ё/")]
)
def test_a_prefix_is_empty_or_ends_with_a_slash(text: str, prefix: str) -> None:
    """However it is written, a prefix becomes '' or 'x/', without a slash in front."""
    assert load({"prefix": text}, {}).prefix == prefix


def test_the_endpoint_has_one_form() -> None:
    """b2sdk's name and a trailing slash mean the same service, so the same state directory."""
    for text in ("production", config.PRODUCTION + "/"):
        assert load({"endpoint": text}, {}).endpoint == config.PRODUCTION
    assert load({"endpoint": "http://127.0.0.1:8180"}, {}).endpoint == "http://127.0.0.1:8180"


def test_each_bucket_and_prefix_has_its_own_state_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Endpoint, bucket and prefix choose the default; a user's lies below XDG_STATE_HOME."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    flags = [{}, {"prefix": "a"}, {"bucket": "dictafan2"}, {"endpoint": "http://127.0.0.1:1"}]
    found = {load(each, APP).state_dir for each in flags}
    assert len(found) == 4 and all(each.startswith("/var/lib/b2fs/dictafan") for each in found)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert load(environ={**APP, "XDG_STATE_HOME": "/x"}).state_dir.startswith("/x/b2fs/dictafan-")
    assert load(environ={**APP, "B2FS_STATE_DIR": "/mine"}).state_dir == "/mine"
    assert load(environ={}).state_dir == ""


def test_other_users_are_let_in_by_root_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """`allow_other` is on for root, who needs no permission for it, and off for users."""
    for uid, allowed in ((0, True), (1000, False)):
        monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
        assert load(environ={}).allow_other is allowed
        assert load({"allow_other": "true"}, {}).allow_other is True


# ---------------------------------------------------------------- secrets


def test_a_secret_never_shows_itself() -> None:
    """Neither `repr`, nor formatting, nor a dump of the configuration tells the key."""
    found = load(environ=APP)
    for text in (repr(found), str(found.key), f"{found.key}", repr([found.key]), str(dataclasses.asdict(found))):
        assert SECRET not in text and "***" in text
    assert found.key == Secret(SECRET) and found.key != SECRET and not Secret("")
    assert redact(f"Authorization: {SECRET}!") == "Authorization: ***!"


@pytest.mark.parametrize("name", ["B2_APPLICATION_KEY", "B2_APPLICATION_KEY_ID"])
def test_a_bad_key_is_not_repeated(name: str) -> None:
    """The message about a bad key or key id does not show it, nor does the traceback."""
    with pytest.raises(ConfigError) as caught:
        load(environ={name: f"{SECRET} {SECRET}"})
    assert name in str(caught.value) and SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_key_in_the_place_of_the_key_id_is_noticed() -> None:
    """Swapped values are told at once: a key id is shown in places where a key must not be."""
    message = refusal(environ={"B2_APPLICATION_KEY_ID": SECRET, "B2_APPLICATION_KEY": "005aa"})
    assert "swapped" in message and SECRET not in message


def test_the_key_from_a_file(tmp_path: Path) -> None:
    """A credential file gives the key, also over the app's variable."""
    path = toml(tmp_path / "key", SECRET + "\n", 0o400)
    found = load(environ={"B2_APPLICATION_KEY": "another-key", "B2FS_KEY_FILE": path})
    assert found.key.reveal() == SECRET and found.sources["key"] == path


def test_a_key_file_that_everybody_can_read_is_refused(tmp_path: Path) -> None:
    """A key file is private, or it is not used."""
    path = toml(tmp_path / "key", SECRET, 0o604)
    message = refusal(environ={"B2FS_KEY_FILE": path})
    assert "everybody can read" in message and "chmod" in message and SECRET not in message


def test_a_key_file_without_a_key_is_refused(tmp_path: Path) -> None:
    """A missing, an empty and a wrong key file each get their own line."""
    assert "No such file" in refusal(environ={"B2FS_KEY_FILE": str(tmp_path / "none")})
    assert "empty" in refusal(environ={"B2FS_KEY_FILE": toml(tmp_path / "key", " \n")})
    assert "its value is not accepted" in refusal(environ={"B2FS_KEY_FILE": toml(tmp_path / "key", "two words")})


def test_key_and_key_file_together_are_refused(tmp_path: Path) -> None:
    """Two keys in one layer are a contradiction; in two layers the later wins."""
    path = toml(tmp_path / "key", SECRET)
    assert "keep one" in refusal(environ={"B2FS_KEY": "x", "B2FS_KEY_FILE": path})
    config_file = toml(tmp_path / "a.toml", 'key = "from-the-file"')
    assert load(environ={"B2FS_KEY_FILE": path}, config_file=config_file).key.reveal() == "from-the-file"


def test_a_file_with_a_key_is_private(tmp_path: Path) -> None:
    """A TOML file that holds the key must not be readable by group or others; without a key it may."""
    path = toml(tmp_path / "a.toml", f'key = "{SECRET}"', 0o640)
    message = refusal(config_file=path)
    assert "chmod 600" in message and SECRET not in message
    path = toml(tmp_path / "b.toml", 'bucket = "dictafan"', 0o644)
    assert load(environ={}, config_file=path).bucket == "dictafan"


# ---------------------------------------------------------------- the table


def test_every_field_is_in_the_table() -> None:
    """A setting cannot exist without help and a name; only bookkeeping is outside of the table."""
    outside = {each.name for each in dataclasses.fields(Config)} - set(SETTINGS)
    assert outside == {"sources", "warnings"}
    assert all(each.help and each.kind.accepts for each in SETTINGS.values())


def test_every_default_passes_its_own_parser() -> None:
    """A default that is shown can be written down as it is shown."""
    for setting in SETTINGS.values():
        if setting.default not in (None, "") and not setting.secret:
            assert setting.kind.parse(setting.show(setting.default)) == setting.default, setting.name


def test_patterns(tmp_path: Path) -> None:
    """A list in a file and words with commas in a variable mean the same; a bad pattern is refused by name."""
    file = tmp_path / "b2fs.toml"
    file.write_text('remote_fsync = ["users/**", "*.json"]')
    from_file = load(environ={}, config_file=str(file)).remote_fsync
    assert from_file == load(environ={"B2FS_REMOTE_FSYNC": "users/**, *.json"}).remote_fsync
    assert from_file.match("users/a/b") and from_file.match("x.json") and not from_file.match("x.mp3")
    with pytest.raises(ConfigError, match=r"remote_fsync.*'/users'"):
        load(environ={"B2FS_REMOTE_FSYNC": "/users"})
