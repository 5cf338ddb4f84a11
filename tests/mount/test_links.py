"""Hard links on a real mount, by the system calls and by the programs that make them."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.devbucket_fixture import DevBucket
from tests.mount import hosts
from tests.mount.hosts import NewHost, failing, in_bucket
from tests.mount.support import Mount

new_host = hosts.new_host


def same(*paths: Path) -> bool:
    """Whether the paths are all names of one file, and there are no others."""
    found = [path.stat() for path in paths]
    return len({each.st_ino for each in found}) == 1 and {each.st_nlink for each in found} == {len(paths)}


@pytest.mark.slow
def test_names_of_one_file(new_host: NewHost, devbucket: DevBucket) -> None:
    """What is written by one name is read by the other, the bucket has it at both, and so has a host with an empty state
    directory; a name that is removed or replaced leaves the other alone.
    """
    host = new_host()
    host.start()
    root = host.path
    (root / "d").mkdir()
    one, two, three = root / "one", root / "d" / "two", root / "три"
    one.write_bytes(b"content")
    os.link(one, two)
    host.flush()
    os.link(two, three)
    assert same(one, two, three)
    with open(two, "ab") as file:
        file.write(b" and more")
    os.chmod(three, 0o600)
    expected = one.stat()
    assert one.read_bytes() == b"content and more"
    assert (expected.st_mode & 0o777, two.stat()) == (0o600, expected)
    host.stop()
    assert in_bucket(devbucket) == dict.fromkeys(("one", "d/two", "три"), b"content and more")
    host.forget_state()
    host.start()
    assert same(one, two, three)
    assert (one.stat().st_mtime_ns, one.stat().st_mode) == (expected.st_mtime_ns, expected.st_mode)
    one.unlink()
    (root / "new").write_bytes(b"new")
    (root / "new").rename(two)
    assert (three.read_bytes(), three.stat().st_nlink, two.read_bytes()) == (b"content and more", 1, b"new")
    host.stop()
    assert in_bucket(devbucket) == {"d/two": b"new", "три": b"content and more"}


@pytest.mark.slow
def test_errors_of_link(mount: Mount) -> None:
    """EEXIST, ENOENT, EPERM for a directory, ENAMETOOLONG: as on ext4. Renaming one name onto the other does nothing."""
    one, two = mount.path / "one", mount.path / "two"
    one.write_bytes(b"content")
    os.link(one, two)
    (mount.path / "d").mkdir()
    for old, new, number in (
        (one, two, errno.EEXIST),
        (one, mount.path / "d", errno.EEXIST),
        (mount.path / "none", mount.path / "new", errno.ENOENT),
        (one, mount.path / "none" / "new", errno.ENOENT),
        (mount.path / "d", mount.path / "new", errno.EPERM),
        (one, mount.path / ("n" * 251), errno.ENAMETOOLONG),
    ):
        with failing(number):
            os.link(old, new)
    os.rename(one, two)
    assert same(one, two)


@pytest.mark.slow
def test_a_file_that_only_descriptors_hold(mount: Mount) -> None:
    """With one name gone a descriptor still writes to the file of the other; with both gone it has none."""
    one, two = mount.path / "one", mount.path / "two"
    with open(one, "wb", buffering=0) as file:
        os.link(one, two)
        one.unlink()
        file.write(b"content")
        assert (two.read_bytes(), os.fstat(file.fileno()).st_nlink) == (b"content", 1)
        two.unlink()
        file.write(b" and more")
        assert os.fstat(file.fileno()).st_nlink == 0
        source = f"/proc/self/fd/{file.fileno()}"
        with failing(errno.ENOENT):
            os.link(source, mount.path / "three", src_dir_fd=file.fileno(), follow_symlinks=True)  # linkat


PROGRAMS = {
    "cp": lambda source, target: [["cp", "-a", str(source), str(target)]],
    "rsync": lambda source, target: [["rsync", "-aH", f"{source}/", f"{target}/"]],
    "tar": lambda source, target: [
        ["tar", "-C", str(source), "-cf", f"{target}.tar", "."],
        ["mkdir", str(target)],
        ["tar", "-C", str(target), "-xf", f"{target}.tar"],
    ],
    "ln": lambda source, target: [
        ["mkdir", "-p", str(target / "d")],
        ["cp", str(source / "one"), str(target / "one")],
        ["ln", str(target / "one"), str(target / "d" / "two")],
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_that_keep_links(new_host: NewHost, program: str, tmp_path: Path) -> None:
    """`cp -a`, `rsync -H`, `tar` and `ln` make one file of several names, and a remount from the bucket alone has it."""
    if shutil.which(program) is None:
        pytest.fail(f"{program} is not installed")
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    (source / "one").write_bytes(b"content")
    os.link(source / "one", source / "d" / "two")
    host = new_host()
    host.start()
    target = host.path / "target"
    for command in PROGRAMS[program](source, target):
        subprocess.run(command, check=True)
    assert same(target / "one", target / "d" / "two")
    host.stop()
    host.forget_state()
    host.start()
    assert same(target / "one", target / "d" / "two")
    assert (target / "d" / "two").read_bytes() == b"content"
    host.stop()
