"""git on the mount: a history is made, packed and checked, and goes on elsewhere."""

from __future__ import annotations

from pathlib import Path

from tests.mount.hosts import Host
from tests.programs.support import bytes_of, move, run, same
from tests.tree import Entry
from tests.tree import tree as tree_of

AT = "2024-05-01T12:00:00+00:00"
"""The time of every commit: so two runs give the same hashes."""


def git(where: Path, *arguments: str, ok: tuple[int, ...] = (0,)) -> str:
    who = {
        f"GIT_{role}_{field}": f"{role.lower()}@example"
        for role in ("AUTHOR", "COMMITTER")
        for field in ("NAME", "EMAIL")
    }
    config = ("-c", "init.defaultBranch=main", "-c", "gc.auto=0", "-c", "protocol.file.allow=always")
    return run(
        *("git", *config, "-C", where, *arguments),
        ok=ok,
        **who,
        GIT_AUTHOR_DATE=AT,
        GIT_COMMITTER_DATE=AT,
        GIT_CONFIG_NOSYSTEM="1",
    )


def origin(where: Path) -> Path:
    """A repository with three commits, on the plain disk."""
    where.mkdir()
    git(where, "init", "-q")
    for number in range(3):
        for name in range(20):
            (where / f"file {name}.txt").write_text("".join(f"{name} {number} {line}\n" for line in range(name * 9)))
        (where / "data.bin").write_bytes(bytes_of(200_000, seed=number))
        git(where, "add", "-A")
        git(where, "commit", "-q", "-m", f"commit {number}")
    return where


def work(root: Path, source: Path) -> Path:
    """Clone, commit, branch, rebase, merge (with a conflict), stash, gc; the work tree."""
    tree = root / "work"
    git(root, "clone", "-q", str(source), "work")
    for number in range(6):
        (tree / "new").mkdir(exist_ok=True)
        (tree / f"new/{number}.txt").write_text(f"{number}\n" * 50)
        git(tree, "add", "-A")
        git(tree, "commit", "-q", "-m", f"new {number}")
    git(tree, "checkout", "-q", "-b", "side", "HEAD~3")
    (tree / "new/0.txt").write_text("side\n")
    git(tree, "mv", "file 5.txt", "moved.txt")
    git(tree, "commit", "-q", "-am", "side")
    git(tree, "checkout", "-q", "main")
    (tree / "new/0.txt").write_text("main\n")
    git(tree, "commit", "-q", "-am", "main")
    git(tree, "merge", "-q", "side", ok=(1,))
    (tree / "new/0.txt").write_text("both\n")
    git(tree, "commit", "-q", "-am", "merged")
    git(tree, "checkout", "-q", "-b", "topic", "side")
    (tree / "topic.txt").write_text("topic\n")
    git(tree, "add", "-A")
    git(tree, "commit", "-q", "-m", "topic")
    git(tree, "rebase", "-q", "main")
    git(tree, "checkout", "-q", "main")
    git(tree, "tag", "-a", "v1", "-m", "a tag")
    (tree / "file 7.txt").write_text("stashed\n")
    git(tree, "stash", "-q")
    git(tree, "gc", "-q", "--prune=now")
    git(tree, "stash", "pop", "-q")
    git(tree, "checkout", "-q", "--", ".")
    return tree


def story(tree: Path) -> tuple[str, ...]:
    """What a repository says of itself; its own check finds nothing."""
    complaints = git(tree, "fsck", "--full", "--strict", "--no-dangling")
    assert complaints == ""
    assert git(tree, "status", "--porcelain") == ""
    return (
        git(tree, "log", "--all", "--graph", "--format=%H %P %T %s"),
        git(tree, "for-each-ref"),
        git(tree, "ls-files", "-s"),
        git(tree, "diff", "--stat", "HEAD~4"),
        git(tree, "stash", "list"),
    )


def checked_out(tree: Path) -> dict[str, Entry]:
    return tree_of(tree, skip={".git"})


def test_git(host: Host, plain: Path) -> None:
    """Clone, commit, merge, rebase, gc: fsck is clean, the hashes those of a plain disk, also elsewhere; and it goes on."""
    source = origin(plain.parent / "origin")
    wanted = story(work(plain, source))
    tree = work(host.path, source)
    git(host.path, "clone", "-q", "work", "second")
    assert story(tree) == wanted
    move(host)
    assert story(tree) == wanted
    same(checked_out(plain / "work"), checked_out(tree))
    for root in (host.path, plain):
        (root / "work/later.txt").write_text("elsewhere\n")
        git(root / "work", "add", "-A")
        git(root / "work", "commit", "-q", "-m", "elsewhere")
    git(host.path / "second", "pull", "-q")
    git(host.path / "second", "gc", "-q")
    assert story(tree) == story(plain / "work")
    assert git(host.path / "second", "rev-parse", "HEAD") == git(tree, "rev-parse", "HEAD")
    assert git(host.path / "second", "fsck", "--full", "--no-dangling") == ""
