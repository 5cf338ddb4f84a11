"""A file that B2 refuses for ever: set aside, reported, kept; and nobody waits for it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from b2fs.errors import Exit
from tests.devbucket_fixture import DevBucket
from tests.mount import hosts
from tests.mount.hosts import Host, NewHost, in_bucket
from tests.mount.support import until

new_host = hosts.new_host

POISON, CONTENT = "shelf/bad.poison", b"B2 does not like this"
WHY = "no thanks, never"


def problems(host: Host) -> dict[str, str]:
    return {each["key"]: each["why"] for each in host.status()["problems"]}


def manifest(host: Host) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((host.state / "not-in-b2.json").read_text())["not_in_b2"]
    return found


def check_set_aside(host: Host) -> None:
    """It is named with B2's own words, in all places where one would look, and can be read as ever."""
    until(lambda: problems(host), 60)
    assert set(problems(host)) == {POISON}
    assert WHY in problems(host)[POISON]
    assert WHY in host.status(POISON)["why"]
    assert host.status(POISON)["state"] == "staged"
    lines = host.command("status", str(host.path)).splitlines()
    assert any(line.startswith("problem") and POISON in line and WHY in line for line in lines), lines
    assert (host.path / POISON).read_bytes() == CONTENT


@pytest.mark.slow
def test_poison_blocks_nobody(new_host: NewHost, devbucket: DevBucket) -> None:
    """All others reach the bucket meanwhile, in their order, and a drain ends with 8 and names it alone, run after run."""
    admin = devbucket.admin
    poison = admin.fault(
        "status", "b2_upload_file", key="*.poison", count=None, status=400, code="bad_request", message=WHY
    )
    host = new_host(uploads="1")
    host.start_listed()
    files = {f"shelf/{number:02}": b"%d" % number for number in range(10)}
    for number, (path, data) in enumerate(files.items()):
        hosts.write(host.path, {path: data})
        if number == 4:
            hosts.write(host.path, {POISON: CONTENT})
    until(lambda: in_bucket(devbucket) == files)
    stored = [row["key"] for row in admin.log() if row["call"] == "b2_upload_file" and row["status"] == 200]
    assert [key for key in stored if key in files] == list(files)
    check_set_aside(host)
    assert POISON in host.command("flush", str(host.path), expect=Exit.NOT_DRAINED)
    host.stop(Exit.NOT_DRAINED)
    (left,) = manifest(host)
    assert (left["path"], left["size"]) == (POISON, len(CONTENT))
    assert WHY in left["why"]

    for end in (lambda: host.stop(Exit.NOT_DRAINED), host.kill):
        host.start()
        files[f"later/{len(files)}"] = b"written while the poison waits"
        hosts.write(host.path, files)
        until(lambda: in_bucket(devbucket) == files)
        check_set_aside(host)
        end()
    assert admin.fired(poison) >= 3

    admin.clear_faults()
    host.start()
    host.flush()
    assert problems(host) == {}
    assert in_bucket(devbucket) == {**files, POISON: CONTENT}
    host.stop()
    assert not (host.state / "not-in-b2.json").exists()
