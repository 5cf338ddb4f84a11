"""The settings of b2fs: one table, read from five layers, checked once at the edge.

Rules
  `Config` is the table: each field is declared with its parser, default, help and names, and everything
  else (variables, flags, TOML keys, `--help`, `b2fs config list`) is derived from that declaration.
  The later layer wins: default < the app's own variables < ``B2FS_*`` < TOML file < flags. Only the
  value that wins is parsed, so a flag can mend a broken variable.
  An empty variable counts as not set: container platforms pass those on.
  A message names the setting, where its value came from, the value and what is accepted. The value of a
  secret, or of a setting whose neighbour is one, is never in a message, a ``repr`` or a traceback.

Units: sizes in bytes, durations in seconds.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from b2fs.core import policy
from b2fs.core.policy import Patterns
from b2fs.errors import ConfigError
from b2fs.secret import Secret
from b2fs.units import parse_duration, parse_mode, parse_size, show_duration, show_mode, show_size

PRODUCTION = "https://api.backblazeb2.com"

# Variables that begin with B2FS_ and are not settings of the daemon.
OTHER_VARIABLES = frozenset({"B2FS_CONFIG", "B2FS_REQUIRE_FUSE"})

# ---------------------------------------------------------------- kinds of settings


@dataclass(frozen=True)
class Kind:
    """How the text of a setting becomes its value. `parse` raises ``ValueError`` with the reason."""

    parse: Callable[[str], Any]
    accepts: str
    show: Callable[[Any], str] = str
    natives: tuple[type, ...] = ()
    """TOML types that are taken besides a string."""


def _switch(text: str) -> bool:
    if text.lower() in ("true", "yes", "on", "1"):
        return True
    if text.lower() in ("false", "no", "off", "0"):
        return False
    raise ValueError("it is neither true nor false")


def _positive(number: float) -> None:
    if number <= 0:
        raise ValueError("it must be more than 0")


def _size(text: str) -> int:
    size = parse_size(text)
    _positive(size)
    return size


def _deadline(text: str) -> float:
    seconds = parse_duration(text)
    _positive(seconds)
    return seconds


def _workers(text: str) -> int:
    # More threads than this only queue behind the network.
    if not re.fullmatch(r"[0-9]{1,3}", text) or not 1 <= int(text) <= 256:
        raise ValueError("it is not a number from 1 to 256")
    return int(text)


def _owner(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) >= 2**32 - 1:
        raise ValueError("it is not a numeric id")
    return int(text)


def _bucket(text: str) -> str:
    # B2's own rule; it also makes the name safe as part of a path.
    if not re.fullmatch(r"[A-Za-z0-9-]{6,63}", text):
        raise ValueError("it cannot be a bucket's name")
    return text


def _key_id(text: str) -> str:
    if not re.fullmatch(r"[!-~]{1,200}", text):
        raise ValueError("it has spaces or characters that no key id has")
    if re.fullmatch(r"K[0-9]{3}.{27}", text):
        raise ValueError("it looks like an application key: are the id and the key swapped?")
    return text


def _key(text: str) -> Secret:
    if not re.fullmatch(r"[!-~]{1,200}", text):
        raise ValueError("it has spaces or characters that no application key has")
    return Secret(text)


def _endpoint(text: str) -> str:
    if text == "production":
        return PRODUCTION
    url = urlsplit(text)  # ValueError for a malformed address
    if url.scheme not in ("https", "http") or not url.hostname or "@" in url.netloc or url.query or url.fragment:
        raise ValueError("it is not the address of a B2 service")
    return text.rstrip("/")


def _prefix(text: str) -> str:
    prefix = text.strip("/")
    if not prefix:
        return ""
    segments = prefix.split("/")
    if any(segment in ("", ".", "..") for segment in segments) or not prefix.isprintable():
        raise ValueError("it has an empty, '.' or '..' part, or a control character")
    if any(len(segment.encode()) > 250 for segment in segments):
        raise ValueError("a part of it is longer than 250 bytes")
    return prefix + "/"


def _patterns(text: str) -> Patterns:
    return policy.parse(text.split(",")) if text else Patterns()


def _path(text: str) -> str:
    if "\0" in text:
        raise ValueError("it has a NUL character")
    return os.path.abspath(os.path.expanduser(text))


def _one_of(*words: str) -> Kind:
    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError("it is not known")
        return text.lower()

    return Kind(parse, " or ".join(words))


def _exactly(show: Callable[[Any], str], parse: Callable[[str], Any]) -> Callable[[Any], str]:
    """`show` where it loses nothing, else the bare number."""
    return lambda value: text if parse(text := show(value)) == value else str(value)


_DURATIONS = "500ms, 2s, 5m or 1h"
SWITCH = Kind(_switch, "true or false", lambda on: "true" if on else "false", (bool,))
SIZE = Kind(_size, "10GiB, 512MiB, 1GB or a number of bytes", _exactly(show_size, parse_size), (int,))
DEADLINE = Kind(_deadline, _DURATIONS, _exactly(show_duration, parse_duration), (int, float))
PERIOD = Kind(parse_duration, f"{_DURATIONS}, or 0", _exactly(show_duration, parse_duration), (int, float))
WORKERS = Kind(_workers, "a number from 1 to 256", natives=(int,))
OWNER = Kind(_owner, "a number, for instance 1000", natives=(int,))
MODE = Kind(parse_mode, "three octal digits in a string: '0644'", show_mode)
PATH = Kind(_path, "a path")
BUCKET = Kind(_bucket, "6 to 63 letters, digits and '-'")
KEY_ID = Kind(_key_id, "the key id as Backblaze shows it")
KEY = Kind(_key, "the application key as Backblaze shows it")
ENDPOINT = Kind(_endpoint, "'production' or an address like https://api.backblazeb2.com")
PATTERNS = Kind(_patterns, "patterns of paths below the mount, separated by commas", natives=(list,))
PREFIX = Kind(_prefix, "a folder inside the bucket, for instance sites/a/")

# ---------------------------------------------------------------- the table


@dataclass(frozen=True)
class Setting:
    """One row of the table: what `_setting` declared for a field of `Config`."""

    name: str
    kind: Kind
    default: Any
    help: str
    app_variable: str = ""
    """The app's own name for it, '' if it has none."""
    computed: str = ""
    """How the default comes about where it is not a constant."""
    has_flag: bool = True
    secret: bool = False
    """Its value is never shown, wherever it came from."""
    quiet: bool = False
    """Its value is not repeated in a message: a secret may have been put there by mistake."""

    @property
    def variable(self) -> str:
        return f"B2FS_{self.name.upper()}"

    @property
    def flag(self) -> str:
        """``--cache-size``, or '' where a command line is no place for it."""
        return "--" + self.name.replace("_", "-") if self.has_flag else ""

    @property
    def shown_default(self) -> str:
        return self.computed or ("" if self.default in (None, "") else self.show(self.default))

    def show(self, value: Any) -> str:
        """The value as `b2fs config show` prints it; ``***`` for a secret, '' for nothing."""
        if isinstance(value, Secret):
            return repr(value)
        return "" if value is None else self.kind.show(value)


def _setting(kind: Kind, default: Any, help: str, **more: Any) -> Any:
    return field(default=default, metadata={"kind": kind, "default": default, "help": help, **more})


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is in force. Made by `load`; immutable; safe to print."""

    enabled: bool = _setting(
        SWITCH, True, "false: `b2fs mount` leaves the directory alone", app_variable="B2_ENABLED", has_flag=False
    )
    key_id: str = _setting(KEY_ID, "", "application key id", app_variable="B2_APPLICATION_KEY_ID", quiet=True)
    key: Secret = _setting(  # noqa: RUF009  # it is a field(), not a value
        KEY, Secret(""), "application key", app_variable="B2_APPLICATION_KEY", has_flag=False, secret=True
    )
    key_file: str = _setting(PATH, "", "file that holds the application key (systemd credential, docker secret)")
    bucket: str = _setting(BUCKET, "", "name of the bucket", app_variable="B2_BUCKET_NAME")
    endpoint: str = _setting(ENDPOINT, PRODUCTION, "realm URL of the B2 service")
    prefix: str = _setting(PREFIX, "", "mount only this folder of the bucket")
    state_dir: str = _setting(
        PATH,
        "",
        "journal, cache and bytes not yet in B2; on a disk that survives a restart",
        computed="/var/lib/b2fs/BUCKET-HASH, not as root ~/.local/state/b2fs/BUCKET-HASH",
    )
    cache_size: int = _setting(SIZE, 10 * 1024**3, "limit of the disk cache")
    dirty_size: int = _setting(SIZE, 5 * 1024**3, "limit of bytes that are not in B2 yet; then writers wait")
    quiet_period: float = _setting(PERIOD, 2.0, "wait after the last change of a file before it is uploaded")
    dirty_wait: float = _setting(PERIOD, 30.0, "how long a writer waits for room, then the disk is full for it")
    remote_fsync: Patterns = _setting(  # noqa: RUF009  # it is a field(), not a value
        PATTERNS,
        Patterns(),
        "paths whose fsync returns when B2 has them: `users/**,*.json` (EIO after `read_deadline`)",
    )
    max_dirty_age: float = _setting(DEADLINE, 60.0, "a file that is never closed is uploaded this often")
    drain_timeout: float = _setting(PERIOD, 300.0, "how long a stop waits for uploads; 0: as long as it takes")
    read_deadline: float = _setting(DEADLINE, 60.0, "a read that B2 does not answer in this time fails with EIO")
    refresh_interval: float = _setting(PERIOD, 600.0, "how often the bucket is listed again; 0: never")
    uploads: int = _setting(WORKERS, 16, "parallel uploads")
    fetches: int = _setting(WORKERS, 32, "parallel fetches")
    predict: bool = _setting(
        SWITCH,
        True,
        "small files that will probably be read next are fetched before: see `b2fs stats` for what it brings",
    )
    prefetch: Patterns = _setting(  # noqa: RUF009  # it is a field(), not a value
        PATTERNS, Patterns(), "files of up to 1 MiB that are fetched as soon as the bucket is listed: `*.json`"
    )
    pin: Patterns = _setting(  # noqa: RUF009  # it is a field(), not a value
        PATTERNS,
        Patterns(),
        "files that are fetched as soon as they are known and stay in the cache, up to half of it: `*.json`",
    )
    uid: int | None = _setting(OWNER, None, "owner of objects that name none", computed="the daemon's own")
    gid: int | None = _setting(OWNER, None, "group of objects that name none", computed="the daemon's own")
    file_mode: int = _setting(MODE, 0o644, "mode of objects that name none")
    dir_mode: int = _setting(MODE, 0o755, "mode of directories that name none")
    allow_other: bool = _setting(SWITCH, False, "let other users in", computed="true for root, else false")
    log_level: str = _setting(_one_of("debug", "info", "warning", "error"), "info", "what is logged")
    log_format: str = _setting(_one_of("text", "json"), "text", "how a log line looks")

    sources: Mapping[str, str] = field(default_factory=dict)
    """For each setting where its value came from: ``default``, a variable, a file or a flag."""
    warnings: tuple[str, ...] = ()
    """Lines for the user: variables that look like settings and are none."""

    def require_account(self) -> None:
        """Raise `ConfigError` unless there is all that B2 asks for."""
        missing = [name for name in ("bucket", "key_id", "key") if not getattr(self, name)]
        if missing:
            names = ", ".join(SETTINGS[name].app_variable for name in missing)
            raise ConfigError(
                f"not set: {', '.join(missing)}; give {names} in the environment, or a file with --config"
                " (`b2fs config show` tells what is in force)"
            )


SETTINGS: Mapping[str, Setting] = MappingProxyType(
    {each.name: Setting(name=each.name, **each.metadata) for each in fields(Config) if each.metadata}
)

# ---------------------------------------------------------------- reading the layers


@dataclass(frozen=True)
class _Given:
    """A value as it was found in one layer."""

    raw: object
    source: str
    rank: int


def load(
    flags: Mapping[str, str | None] | None = None,
    environ: Mapping[str, str] | None = None,
    config_file: str | None = None,
) -> Config:
    """Read all layers. `flags` maps setting names to texts, None where the flag was not given.

    The file is `config_file`, else ``B2FS_CONFIG``; there is no search in default places. Raises
    `ConfigError`. A missing bucket or key is no error here: see `Config.require_account`.
    """
    environ = os.environ if environ is None else environ
    given: dict[str, _Given] = {}
    for setting in SETTINGS.values():
        for rank, variable in enumerate((setting.app_variable, setting.variable), 1):
            if text := environ.get(variable, "").strip():
                given[setting.name] = _Given(text, variable, rank)
    if path := config_file or environ.get("B2FS_CONFIG", ""):
        given |= {name: _Given(raw, path, 3) for name, raw in _read_toml(path).items()}
    for name, flag_text in (flags or {}).items():
        if flag_text is not None:
            given[name] = _Given(flag_text, SETTINGS[name].flag, 4)

    _take_key_from_file(given)
    values = {name: _parse(SETTINGS[name], value) for name, value in given.items()}
    values.setdefault("allow_other", os.geteuid() == 0)
    sources = {name: given[name].source if name in given else "default" for name in SETTINGS}
    config = Config(**values, sources=sources, warnings=tuple(_unknown_variables(environ)))
    if config.bucket and not config.state_dir:
        config = replace(config, state_dir=_default_state_dir(config, environ))
    return config


def _parse(setting: Setting, given: _Given) -> Any:
    raw = given.raw
    if isinstance(raw, str):
        text = raw.strip()
    elif isinstance(raw, list) and list in setting.kind.natives:
        text = ",".join(map(str, raw))
    elif type(raw) in setting.kind.natives:
        text = str(raw)
    else:
        raise ConfigError(
            f"{setting.name} (from {given.source}): a {type(raw).__name__} is not accepted; give {setting.kind.accepts}"
        )
    try:
        return setting.kind.parse(text)
    except ValueError as error:
        shown = "its value" if setting.secret or setting.quiet else repr(text)
        message = f"{setting.name} (from {given.source}): {shown} is not accepted, {error}; give {setting.kind.accepts}"
    raise ConfigError(message)  # outside of except: the cause may quote the value


def _read_toml(path: str) -> dict[str, object]:
    try:
        content = Path(path).read_bytes()
        mode = stat.S_IMODE(os.stat(path).st_mode)
        table = tomllib.loads(content.decode())
    except OSError as error:
        raise ConfigError(f"configuration file {path}: {error.strerror}") from None
    except ValueError as error:  # TOML syntax and UTF-8; its text names a place, never a value
        where = f": {error}" if isinstance(error, tomllib.TOMLDecodeError) else " is not UTF-8"
        raise ConfigError(f"configuration file {path}{where}") from None
    for name in table:
        if name not in SETTINGS:
            raise ConfigError(f"configuration file {path}: {name!r} is not a setting{_did_you_mean(name, SETTINGS)}")
    if "key" in table and mode & 0o077:
        raise ConfigError(
            f"configuration file {path} holds the application key and others can read it (mode {mode:04o}):"
            f" chmod 600 {path}"
        )
    return table


def _take_key_from_file(given: dict[str, _Given]) -> None:
    """Let `key_file` stand for `key`, where no later layer gives the key itself."""
    if not (file := given.get("key_file")):
        return
    key = given.get("key")
    if key and key.rank == file.rank:
        raise ConfigError(f"both key (from {key.source}) and key_file (from {file.source}) are set: keep one of them")
    if key and key.rank > file.rank:
        return
    path = _parse(SETTINGS["key_file"], file)
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
        text = Path(path).read_text(errors="replace").strip()
    except OSError as error:
        raise ConfigError(f"key_file (from {file.source}): {path}: {error.strerror}") from None
    if mode & 0o007:
        raise ConfigError(
            f"key_file (from {file.source}): everybody can read {path} (mode {mode:04o}): chmod 600 it"
            " (docker secret: mode 0400)"
        )
    if not text:
        raise ConfigError(f"key_file (from {file.source}): {path} is empty; put the application key into it")
    given["key"] = _Given(text, path, file.rank)


def _unknown_variables(environ: Mapping[str, str]) -> Iterable[str]:
    known = {setting.variable for setting in SETTINGS.values()} | OTHER_VARIABLES
    for name in sorted(environ):
        if name.startswith("B2FS_") and name not in known:
            yield f"{name} is not a setting of b2fs{_did_you_mean(name, known)}"


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word.replace("-", "_"), list(known), 1)
    return f"; did you mean {close[0]}?" if close else "; `b2fs config list` shows them all"


def _default_state_dir(config: Config, environ: Mapping[str, str]) -> str:
    """One directory for each bucket and prefix, so that two mounts never meet in one."""
    identity = f"{config.endpoint}\n{config.bucket}\n{config.prefix}"
    name = f"{config.bucket}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    if os.geteuid() == 0:
        return f"/var/lib/b2fs/{name}"
    base = environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(base, "b2fs", name)
