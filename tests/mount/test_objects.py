"""What the bucket holds: plain objects that any other B2 tool reads, and no request more than needed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from b2fs.core.names import MARKER
from tests.devbucket_fixture import DevBucket
from tests.mount import hosts
from tests.mount.hosts import FILES, LONG, Host, NewHost, in_bucket, write
from tests.mount.support import until
from tests.tree import compare, entry, tree

new_host = hosts.new_host
MTIME_NS = 1_600_000_000_123_456_789
DOWNLOADS = ("b2_download_file_by_id", "b2_download_file_by_name")


def versions(bucket: DevBucket, name: str) -> int:
    return len(bucket.admin.versions(bucket.bucket, name))


def info(bucket: DevBucket, name: str) -> dict[str, Any]:
    return dict(bucket.admin.objects(bucket.bucket)[name]["fileInfo"])


def calls(bucket: DevBucket, *names: str) -> int:
    """How many requests of these calls (none named: of all) came since the counters were reset."""
    made = bucket.admin.calls()
    return sum(made.get(name, 0) for name in names) if names else sum(made.values())


# ---------------------------------------------------------------- what one object is


@pytest.mark.slow
def test_plain_objects(new_host: NewHost, devbucket: DevBucket) -> None:
    """An object's name is the path, its body the content, its src_last_modified_millis the mtime."""
    host = new_host()
    host.start()
    write(host.path)
    for name in FILES:
        os.utime(host.path / name, ns=(MTIME_NS, MTIME_NS))
    host.stop()
    assert in_bucket(devbucket) == FILES
    objects = devbucket.admin.objects(devbucket.bucket)
    for name, data in FILES.items():
        row = objects[name]
        assert row["fileInfo"]["src_last_modified_millis"] == str(MTIME_NS // 1_000_000)
        assert row["contentSha1"] == hashlib.sha1(data).hexdigest()
        assert row["contentLength"] == len(data)
    assert objects["a.txt"]["contentType"] == "text/plain"
    directories = {name.removesuffix(MARKER) for name in objects if name.rpartition("/")[2] == MARKER}
    assert directories == {"", "d\u00edr/", "dir/", "dir/deep/", "dir/deep/er/"}


def fill_with_all_kinds(root: Path) -> None:
    """Everything that a tree can hold, with times and modes of its own."""
    write(root, {"file": b"1", "script": b"#!/bin/sh", "secret": b"2", "old": b"3", "late": b"4", "dir/in": b"5"})
    for name in ("empty", "dir/empty", "папка"):
        (root / name).mkdir()
    links = {"link": "file", "dir/up": "../file", "dangling": "no/where", "ссылка": "папка"}
    links["long"] = "x/" * 400 + "end"
    for name, target in links.items():
        os.symlink(target, root / name)
        os.utime(root / name, ns=(0, MTIME_NS + len(target)), follow_symlinks=False)
    for name, mode in {"script": 0o755, "secret": 0o600, "old": 0o4711, "empty": 0o1777, "dir": 0o2750}.items():
        os.chmod(root / name, mode)
    os.chown(root / "secret", 1234, 4321)
    os.chown(root / "empty", 1234, 4321)
    times = {"file": MTIME_NS, "old": -86_400_000_000_001, "late": 4_102_444_800_999_999_999, "script": 0}
    times |= {"dir/empty": MTIME_NS + 1, "empty": MTIME_NS + 2, "dir": MTIME_NS + 3, ".": MTIME_NS + 4}
    for name, mtime_ns in times.items():
        os.utime(root / name, ns=(0, mtime_ns))


def owners(root: Path) -> dict[str, tuple[int, int, int]]:
    """Owner, group and mtime of every name, directories and the root too."""
    paths = [root, *root.rglob("*")]
    stats = {str(path.relative_to(root)): path.lstat() for path in paths}
    return {name: (each.st_uid, each.st_gid, each.st_mtime_ns) for name, each in stats.items()}


@pytest.mark.slow
def test_everything_survives_a_move_to_another_host(new_host: NewHost) -> None:
    """Empty directories, symlinks, modes, owners and ns mtimes are the same here, after a restart, and elsewhere."""
    host = new_host()
    host.start()
    fill_with_all_kinds(host.path)
    here, here_owners = tree(host.path), owners(host.path)
    assert here["old"].mtime_ns == -86_400_000_000_001 and here["dir"].mode == 0o2750
    host.flush()
    assert (compare(tree(host.path), here), owners(host.path)) == ([], here_owners)
    host.stop()
    host.start()
    assert (compare(tree(host.path), here), owners(host.path)) == ([], here_owners)
    host.stop()
    host.forget_state()
    host.start()
    assert (compare(tree(host.path), here), owners(host.path)) == ([], here_owners)


@pytest.mark.slow
def test_empty_directory_outlives_its_last_file(new_host: NewHost) -> None:
    """A directory whose files have all gone stays, also for another host; one that was removed is gone."""
    host = new_host()
    host.start()
    write(host.path, {"kept/file": b"1", "gone/file": b"2"})
    host.flush()
    (host.path / "kept/file").unlink()
    shutil.rmtree(host.path / "gone")
    host.stop()
    other = new_host()
    other.start()
    assert tree(other.path).keys() == {"kept"}


@pytest.mark.slow
def test_prefix_mount(new_host: NewHost, devbucket: DevBucket) -> None:
    """A mount of a folder sees and writes what is below it, and nothing else."""
    admin, bucket = devbucket.admin, devbucket.bucket
    outside = ("sites/file", "sites/ab/c", "sites/a", "other", "zzz/y")
    for name in outside:
        admin.put(bucket, name, b"outside")
    admin.put(bucket, "sites/a/there", b"inside")
    admin.put(bucket, "sites/a/dir/there", b"inside")
    before = [row for row in admin.versions(bucket) if not row["fileName"].startswith("sites/a/")]
    host = new_host(prefix="sites/a/", refresh_interval="300ms")
    host.start_listed()
    assert tree(host.path).keys() == {"there", "dir", "dir/there"}
    write(host.path)
    os.rename(host.path / "dir/there", host.path / "moved")
    (host.path / "there").unlink()
    admin.put(bucket, "sites/a/new", b"by another")
    admin.put(bucket, "sites/new", b"outside")
    until(lambda: (host.path / "new").exists())
    host.stop()
    inside = {**FILES, "moved": b"inside", "new": b"by another"}
    expected = {f"sites/a/{name}": data for name, data in inside.items()} | dict.fromkeys(outside, b"outside")
    assert in_bucket(devbucket) == {**expected, "sites/new": b"outside"}
    after = [row for row in admin.versions(bucket) if not row["fileName"].startswith("sites/a/")]
    assert [row for row in after if row["fileName"] != "sites/new"] == before


# ---------------------------------------------------------------- how often B2 is asked


def nothing_uploaded(host: Host) -> bool:
    """Asked twice, by commands that take long enough for an upload that would not wait."""
    return not any(host.stats()["transfers"]["uploads"] for _ in range(2))


@pytest.mark.slow
def test_late_changes_cost_one_version(new_host: NewHost, devbucket: DevBucket, tmp_path: Path) -> None:
    """`copy2`, which sets time and mode after the close, makes one version that has them."""
    (tmp_path / "source").write_bytes(b"content")
    os.chmod(tmp_path / "source", 0o600)
    os.utime(tmp_path / "source", ns=(MTIME_NS, MTIME_NS))
    host = new_host(quiet_period=LONG)
    host.start()
    shutil.copyfile(tmp_path / "source", host.path / "copy")
    assert nothing_uploaded(host)
    shutil.copystat(tmp_path / "source", host.path / "copy")
    assert nothing_uploaded(host)
    host.stop()
    assert versions(devbucket, "copy") == 1
    assert info(devbucket, "copy")["src_last_modified_millis"] == str(MTIME_NS // 1_000_000)
    assert info(devbucket, "copy")["b2fs"].startswith("m=100600;")


@pytest.mark.slow
def test_save_by_rename_costs_one_version(new_host: NewHost, devbucket: DevBucket) -> None:
    """An editor's write to a temporary file and rename over the old one leaves no trace of the temporary file."""
    host = new_host(quiet_period=LONG)
    host.start()
    write(host.path, {"notes.json": b"old"})
    host.stop()
    host.start()
    write(host.path, {"notes.json.tmp": b"new content"})
    assert nothing_uploaded(host)
    os.replace(host.path / "notes.json.tmp", host.path / "notes.json")
    assert nothing_uploaded(host)
    host.stop()
    assert in_bucket(devbucket) == {"notes.json": b"new content"}
    assert versions(devbucket, "notes.json") == 2
    assert versions(devbucket, "notes.json.tmp") == 0


@pytest.mark.slow
def test_short_lived_files_cost_nothing(new_host: NewHost, devbucket: DevBucket) -> None:
    """What is made and removed within the quiet period never reaches B2."""
    host = new_host(quiet_period=LONG)
    host.start()
    write(host.path, {"work/one": b"1", "work/two": b"2"})
    assert nothing_uploaded(host)
    shutil.rmtree(host.path / "work")
    host.stop()
    assert [row["fileName"] for row in devbucket.admin.versions(devbucket.bucket)] == [MARKER]


@pytest.mark.slow
def test_unchanged_save_uploads_nothing(new_host: NewHost, devbucket: DevBucket, tmp_path: Path) -> None:
    """Saving the same bytes, mode and times again sends no byte to B2."""
    write(tmp_path / "source")
    host = new_host(quiet_period="10s")
    host.start()
    shutil.copytree(tmp_path / "source", host.path / "site")
    host.flush()
    before = devbucket.admin.versions(devbucket.bucket)
    devbucket.admin.reset_counters()
    shutil.copytree(tmp_path / "source", host.path / "site", dirs_exist_ok=True)
    assert host.stats()["dirty"]["files"] >= len(FILES)
    host.flush()
    assert calls(devbucket) == 0
    assert host.stats()["transfers"]["skipped"] >= len(FILES)
    host.stop()
    assert devbucket.admin.versions(devbucket.bucket) == before


@pytest.mark.slow
def test_looking_costs_nothing(new_host: NewHost, devbucket: DevBucket) -> None:
    """Once listed, names, attributes, opens without a read and missing names are no request; a second read is none."""
    files = {f"dir-{number % 7}/{number}": b"%d" % number for number in range(70)}
    for name, data in files.items():
        devbucket.admin.put(devbucket.bucket, name, data)
    host = new_host()
    host.start_listed()
    devbucket.admin.reset_counters()
    for name, data in files.items():
        assert (host.path / name).stat().st_size == len(data)
        with open(host.path / name, "rb"):
            pass
        with open(host.path / name, "r+b"):
            pass
        for absent in ("no", "no/deeper", ".hidden"):
            assert not (host.path / f"{name}.{absent}").exists()
            assert not (host.path / absent / name).exists()
    assert len(list(host.path.rglob("*"))) == 77
    assert calls(devbucket) == 0, devbucket.admin.calls()
    for _ in range(2):
        assert {name: (host.path / name).read_bytes() for name in files} == files
    assert calls(devbucket, "b2_download_file_by_id") == calls(devbucket) == len(files)
    with open(host.path / "dir-0/0", "wb"):  # nothing of the old content is needed
        pass
    host.stop()
    assert calls(devbucket, *DOWNLOADS) == len(files)


@pytest.mark.slow
def test_no_head_in_normal_operation(new_host: NewHost, devbucket: DevBucket) -> None:
    """Reading, writing, renaming, removing and refreshing use no request by name, and nothing is ever deleted."""
    for number in range(5):
        devbucket.admin.put(devbucket.bucket, f"there/{number}", bytes([number]) * 1000)
    host = new_host(quiet_period="100ms", refresh_interval="300ms")
    host.start_listed()
    write(host.path)
    host.flush()
    assert (host.path / "there/1").read_bytes() == bytes([1]) * 1000
    (host.path / "a.txt").write_bytes(b"changed")
    os.chmod(host.path / "there/0", 0o600)
    os.rename(host.path / "there", host.path / "moved")
    (host.path / "moved/2").unlink()
    listings = calls(devbucket, "b2_list_file_names")
    until(lambda: calls(devbucket, "b2_list_file_names") > listings + 2)
    host.stop()
    host.start_listed()
    host.stop()
    made = devbucket.admin.calls()
    expected = {
        "b2_authorize_account", "b2_list_buckets", "b2_list_file_names", "b2_get_upload_url", "b2_upload_file",
        "b2_download_file_by_id", "b2_copy_file", "b2_hide_file",
    }  # fmt: skip
    assert set(made) <= expected, made
    assert made["b2_authorize_account"] in (2, 3)  # one a start, and one more if the machine was too busy for the first
    assert made["b2_upload_file"] >= len(FILES) + 1


@pytest.mark.slow
def test_rename_of_a_directory_moves_objects_without_their_bytes(new_host: NewHost, devbucket: DevBucket) -> None:
    """What B2 has already is copied there: nothing is downloaded, the old names are hidden after the new ones exist."""
    files = {f"old/{number:02}": bytes([number]) * 500 for number in range(25)}
    for name, data in files.items():
        devbucket.admin.put(devbucket.bucket, name, data)
    host = new_host()
    host.start_listed()
    os.rename(host.path / "old", host.path / "new")
    host.stop()
    assert in_bucket(devbucket) == {name.replace("old/", "new/"): data for name, data in files.items()}
    assert calls(devbucket, *DOWNLOADS) == 0
    rows = devbucket.admin.versions(devbucket.bucket)
    copied = {row["fileName"]: row["uploadTimestamp"] for row in rows if row["action"] == "upload"}
    for row in rows:
        if row["action"] == "hide" and not row["fileName"].endswith(MARKER):
            assert row["uploadTimestamp"] >= copied[row["fileName"].replace("old/", "new/")]


# ---------------------------------------------------------------- names

_ODD = [
    "%", "%25", "%2F", "+", "&", "#", "?", ";", "'", '"', "[x]", "{y}", "$", "!", "~", "^", "`", "@", "=", ",", "(", ")",
    "*", ":", "|", "<", ">", "-dash", "--help", ".dot", "..two", "...", "\\back", "a\\b",
]  # fmt: skip
_LETTERS = ["файл", "😀", "日本語", "e\u0301", "\u00e9", "\u0438\u0306", "\u0439", "ß", "SS"]
_SPACES = [" leading", "trailing ", "in  side", " ", "\u00a0nbsp", "\u200bzero", "\u202ertl", "CASE", "case", "Case"]


def odd_names() -> list[str]:
    """200 names: odd characters, scripts, spaces and cases, alone and in combinations, in directories too."""
    single = [*_ODD, *_LETTERS, *_SPACES]
    choose = random.Random(2)
    names = dict.fromkeys(name for name in single if name)
    while len(names) < 160:
        names["".join(choose.sample(single, 3))[:80]] = None
    names = {name: None for name in names if name not in (".", "..")}
    directories = [f"dir {number} {choose.choice(single)}" for number in range(8)]
    while len(names) < 200:
        names[f"{choose.choice(directories)}/{choose.choice(list(names)).rpartition('/')[2]}"] = None
    return list(names)


@pytest.mark.slow
def test_odd_names(new_host: NewHost, devbucket: DevBucket) -> None:
    """200 names with every kind of character come back the same on another host, and are the objects' names."""
    files = {name: f"content of {name}".encode() for name in odd_names()}
    assert len(files) == 200 and {"\u00e9", "e\u0301", "CASE", "case", " leading", "a\\b"} <= files.keys()
    host = new_host()
    host.start()
    write(host.path, files)
    here = tree(host.path)
    host.stop()
    assert in_bucket(devbucket) == files
    other = new_host()
    other.start()
    assert compare(tree(other.path), here) == []
    for name in list(files)[::3]:
        os.rename(other.path / name, other.path / f"{name}.2")
    other.stop()
    renamed = {f"{name}.2" if number % 3 == 0 else name: data for number, (name, data) in enumerate(files.items())}
    assert in_bucket(devbucket) == renamed


# ---------------------------------------------------------------- a large object


@pytest.mark.slow
@pytest.mark.parametrize("sha1", ["", "none"], ids=["with SHA-1", "without"])
def test_large_object_by_ranges(new_host: NewHost, devbucket: DevBucket, sha1: str) -> None:
    """A 12 MB object is fetched by ranges, only those that are read; every byte is right, in any order."""
    data = random.Random(1).randbytes(12_000_000)
    devbucket.admin.put(devbucket.bucket, "video.mp4", data, sha1=sha1)
    host = new_host()
    host.start_listed()
    devbucket.admin.reset_counters()
    with open(host.path / "video.mp4", "rb", buffering=0) as file:
        descriptor = file.fileno()
        assert os.pread(descriptor, 1000, 11_999_000) == data[-1000:]
        assert 1_000_000 < devbucket.admin.counters()["sent"] < 8_000_000, "the end alone was asked for"
        choose = random.Random(7)
        for _ in range(100):
            offset, size = choose.randrange(12_000_100), choose.choice([1, 100, 4096, 200_000, 3_000_000])
            assert os.pread(descriptor, size, offset) == data[offset : offset + size]
    assert calls(devbucket, "b2_download_file_by_id") > 1
    assert hashlib.sha1((host.path / "video.mp4").read_bytes()).digest() == hashlib.sha1(data).digest()
    host.stop()
    devbucket.admin.reset_counters()
    host.start()
    assert (host.path / "video.mp4").read_bytes() == data
    assert calls(devbucket, *DOWNLOADS) == 0

    other = new_host()  # in sequence, from the start
    other.start()
    with open(other.path / "video.mp4", "rb", buffering=0) as file:
        assert b"".join(iter(lambda: file.read(100_001), b"")) == data
    assert devbucket.admin.counters()["sent"] < 12_200_000, "a byte was fetched twice"


@pytest.mark.slow
def test_change_within_a_large_object(new_host: NewHost, devbucket: DevBucket) -> None:
    """A few bytes written into an object that was never read give an object with those bytes and all others."""
    data = bytearray(random.Random(1).randbytes(7_000_000))
    devbucket.admin.put(devbucket.bucket, "big", bytes(data))
    host = new_host()
    host.start_listed()
    with open(host.path / "big", "r+b", buffering=0) as file:
        for offset in (0, 2_097_150, 6_999_990):
            os.pwrite(file.fileno(), b"0123456789", offset)
            data[offset : offset + 10] = b"0123456789"
        os.pwrite(file.fileno(), b"behind", 7_500_000)
        data += bytes(500_000) + b"behind"
    assert (host.path / "big").read_bytes() == data
    os.truncate(host.path / "big", 3_000_000)
    host.stop()
    assert in_bucket(devbucket) == {"big": bytes(data[:3_000_000])}


# ---------------------------------------------------------------- clients that nobody here wrote


def rclone(host: Host, *arguments: str) -> str:
    """Run rclone; `dev:` is the server. What it printed."""
    bucket = host.bucket
    environ = {
        "PATH": os.environ["PATH"], "HOME": str(host.base), "RCLONE_CONFIG": str(host.base / "rclone.conf"),
        "RCLONE_CONFIG_DEV_TYPE": "b2", "RCLONE_CONFIG_DEV_ACCOUNT": bucket.key_id, "RCLONE_CONFIG_DEV_KEY": bucket.key,
        "RCLONE_CONFIG_DEV_ENDPOINT": bucket.url, "RCLONE_CACHE_DIR": str(host.base / "rclone"),
    }  # fmt: skip
    done = subprocess.run(["rclone", *arguments], env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def b2(host: Host, *arguments: str) -> str:
    """Run the b2 command line tool of this environment. What it printed."""
    bucket = host.bucket
    environ = {
        "PATH": os.environ["PATH"], "HOME": str(host.base), "B2_ENVIRONMENT": bucket.url,
        "B2_ACCOUNT_INFO": str(host.base / "b2-account"), "B2_APPLICATION_KEY_ID": bucket.key_id,
        "B2_APPLICATION_KEY": bucket.key, "LC_ALL": "C.UTF-8",
    }  # fmt: skip
    tool = str(Path(sys.executable).with_name("b2"))
    done = subprocess.run([tool, *arguments], env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("rclone") is None, reason="rclone is not installed: apt-get install rclone")
def test_rclone_agrees(new_host: NewHost, devbucket: DevBucket, tmp_path: Path) -> None:
    """`rclone check` finds no difference between mount and bucket, both ways; what rclone uploads appears."""
    host = new_host(refresh_interval="500ms")
    host.start()
    write(host.path)
    write(host.path, {name: name.encode() for name in odd_names()[::9] if "\\" not in name})
    host.flush()
    report = rclone(host, "check", str(host.path), f"dev:{devbucket.bucket}", "--exclude", MARKER, "--download")
    assert "0 differences found" in report
    assert f"{len(in_bucket(devbucket))} matching files" in report

    write(tmp_path / "up", {"from/rclone.txt": b"by rclone", "a.txt": b"changed by rclone"})
    os.utime(tmp_path / "up/from/rclone.txt", ns=(MTIME_NS, MTIME_NS))
    rclone(host, "copy", str(tmp_path / "up"), f"dev:{devbucket.bucket}")
    until(lambda: (host.path / "from/rclone.txt").exists())
    until(lambda: (host.path / "a.txt").read_bytes() == b"changed by rclone")
    assert (host.path / "from/rclone.txt").read_bytes() == b"by rclone"
    assert (host.path / "from/rclone.txt").stat().st_mtime_ns // 1_000_000 == MTIME_NS // 1_000_000
    rclone(host, "deletefile", f"dev:{devbucket.bucket}/from/rclone.txt")
    until(lambda: not (host.path / "from/rclone.txt").exists())


@pytest.mark.slow
def test_b2_tool_agrees(new_host: NewHost, devbucket: DevBucket, tmp_path: Path) -> None:
    """The b2 tool lists and downloads what the mount shows, and what it uploads appears with its time."""
    host = new_host(refresh_interval="500ms")
    host.start()
    write(host.path)
    host.flush()
    listed = {row["fileName"]: row for row in json.loads(b2(host, "ls", "-r", "--json", f"b2://{devbucket.bucket}"))}
    assert {name for name in listed if not name.endswith(MARKER)} == FILES.keys()
    for name in FILES:
        here = entry(str(host.path / name))
        assert (listed[name]["size"], listed[name]["contentSha1"]) == (here.size, here.sha1)
        assert int(listed[name]["fileInfo"]["src_last_modified_millis"]) == here.mtime_ns // 1_000_000
    b2(host, "sync", "--no-progress", f"b2://{devbucket.bucket}", str(tmp_path / "down"))
    down = tree(tmp_path / "down")
    assert {name: each.sha1 for name, each in tree(host.path).items() if each.kind == "file"} == {
        name: each.sha1 for name, each in down.items() if each.kind == "file" and not name.endswith(MARKER)
    }
    write(tmp_path / "up", {"new/by b2": b"uploaded", "a.txt": b"changed by b2"})
    os.utime(tmp_path / "up/new/by b2", ns=(MTIME_NS, MTIME_NS))
    b2(host, "sync", "--no-progress", str(tmp_path / "up"), f"b2://{devbucket.bucket}")
    until(lambda: (host.path / "new/by b2").exists())
    until(lambda: (host.path / "a.txt").read_bytes() == b"changed by b2")
    assert (host.path / "new/by b2").stat().st_mtime_ns // 1_000_000 == MTIME_NS // 1_000_000
    assert stat.S_IMODE((host.path / "new/by b2").stat().st_mode) == 0o644
