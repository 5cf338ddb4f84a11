"""getfattr and setfattr on extended attributes; cp and rsync carry them."""

from __future__ import annotations

from pathlib import Path

from tests.mount.hosts import Host
from tests.programs.support import here_and_elsewhere, move, run, same

BINARY = bytes(range(256))
DUMP = "all.fattr"


def _set(root: Path) -> None:
    """Attributes of a file, of one with an odd name, and of a directory; binary, empty, replaced, and removed ones."""
    (root / "dir").mkdir()
    (root / "dir/пісня 1.txt").write_bytes(b"odd")
    (root / "file").write_bytes(b"content")
    for path in ("file", "dir/пісня 1.txt", "dir"):
        run("setfattr", "-n", "user.mime_type", "-v", "text/plain", path, cwd=root)
    run("setfattr", "-n", "user.raw", "-v", "0x" + BINARY.hex(), "file", cwd=root)
    run("setfattr", "-n", "user.base64", "-v", "0sAP8+", "file", cwd=root)
    run("setfattr", "-n", "user.empty", "file", cwd=root)
    run("setfattr", "-n", "user.назва", "-v", "голос", "dir", cwd=root)
    run("setfattr", "-n", "user.gone", "-v", "1", "file", cwd=root)
    run("setfattr", "-x", "user.gone", "file", cwd=root)
    run("setfattr", "-n", "user.mime_type", "-v", "audio/ogg", "file", cwd=root)


def _dump(root: Path) -> str:
    """All of them below a directory, as getfattr dumps them; sorted, for the order of a listing is nobody's promise."""
    text = run("getfattr", "-d", "-R", "-e", "hex", ".", cwd=root)
    blocks = ["\n".join(sorted(block.splitlines())) for block in text.strip().split("\n\n")]
    return "\n\n".join(sorted(blocks))


def test_set_get_remove_and_restore(host: Host, plain: Path) -> None:
    """What setfattr sets getfattr shows as on a plain directory: hex, base64, text; a dump is restored, binary values too;
    here and on a host with an empty state directory.
    """
    here, restored = host.path / "here", host.path / "restored"
    here.mkdir()
    restored.mkdir()
    for root in (plain, here):
        _set(root)
    wanted = _dump(plain)
    assert wanted.count("# file:") == 3 and f"user.raw=0x{BINARY.hex()}" in wanted and "gone" not in wanted
    run("cp", "-a", "--no-preserve=xattr", f"{plain}/.", restored)
    assert run("getfattr", "-d", "-R", ".", cwd=restored) == ""
    (restored / DUMP).write_text(run("getfattr", "-d", "-R", ".", cwd=plain))
    run("setfattr", f"--restore={DUMP}", cwd=restored)
    for _ in here_and_elsewhere(host):
        for root in (here, restored):
            assert _dump(root) == wanted
            for encoding, value in (
                ("text", '"audio/ogg"'),
                ("hex", "0x617564696f2f6f6767"),
                ("base64", "0sYXVkaW8vb2dn"),
            ):
                said = run("getfattr", "-n", "user.mime_type", "-e", encoding, "file", cwd=root)
                assert f"user.mime_type={value}" in said
            assert run("getfattr", "--only-values", "-n", "user.empty", "file", cwd=root) == ""
            run("getfattr", "-n", "user.gone", "file", cwd=root, ok=(1,))
            run("setfattr", "-x", "user.gone", "file", cwd=root, ok=(1,))
    run("setfattr", "-x", "user.raw", here / "file")
    move(host)
    assert _dump(here) == wanted.replace(f"\nuser.raw=0x{BINARY.hex()}", "")


def test_copies_carry_them(host: Host, plain: Path) -> None:
    """cp -a and rsync -X keep all of them, directories' too: into the mount, inside it, out of it; an attribute that
    changed, or went, is all that a second rsync carries.
    """
    _set(plain)
    wanted = _dump(plain)
    copied, inside, synced = host.path / "copied", host.path / "inside", host.path / "synced"
    run("cp", "-a", plain, copied)
    run("cp", "-a", copied, inside)
    run("rsync", "-aX", f"{plain}/", synced)
    for _ in here_and_elsewhere(host):
        for each in (copied, inside, synced):
            assert _dump(each) == wanted
            same(plain, each)
        assert run("rsync", "-aX", "--itemize-changes", f"{plain}/", f"{synced}/") == ""
    run("setfattr", "-x", "user.raw", plain / "file")
    run("setfattr", "-n", "user.base64", "-v", "0sAAAA", plain / "file")
    changed = run("rsync", "-aX", "--itemize-changes", f"{plain}/", f"{synced}/").splitlines()
    assert [line.split()[0] for line in changed] == [".f........x"]
    outside = plain.parent / "out"
    run("cp", "-a", synced, outside)
    move(host)
    assert _dump(synced) == _dump(outside) == _dump(plain) != wanted
