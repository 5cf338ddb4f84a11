"""`b2fs try`, which `make run` calls: a bucket at ./static/data, without an account.

Rules
  Without ``B2_ENABLED=true`` nothing leaves this machine: the bucket is the embedded one, whatever else the
  environment holds.
  Ctrl-C reaches this process alone (the children are in sessions of their own), so that the bucket is still
  there while the mount uploads what is left.
  Everything it makes lies in ./.b2fs-run, beside the mountpoint; the next run goes on with it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click

from b2fs.config import Config, load
from b2fs.errors import Exit, NoBucket

RUN_DIR = Path(".b2fs-run")
MOUNTPOINT = Path("static/data")
BUCKET = "dictafan"
DICTATIONS = 15


@click.command()
def command() -> int:
    """Mount a bucket at ./static/data until Ctrl-C.

    It is an embedded bucket with a sample site, kept in ./.b2fs-run. With B2_ENABLED=true and the variables of
    your account (B2_APPLICATION_KEY_ID, B2_APPLICATION_KEY, B2_BUCKET_NAME) it is your own.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a shell's background job starts with it ignored
        signal.signal(number, signal.default_int_handler)
    config = load()
    if config.enabled and config.sources["enabled"] != "default":
        config.require_account()
        return _mount(config, os.environ, {})
    RUN_DIR.mkdir(mode=0o700, exist_ok=True)
    with _embedded_bucket() as environ:
        _seed(environ)
        return _mount(load(environ=environ), environ, environ)


def _mount(config: Config, environ: Mapping[str, str], shown: Mapping[str, str]) -> int:
    """Mount, explain, and stay until Ctrl-C or until the mount ends by itself; its exit code."""
    MOUNTPOINT.mkdir(parents=True, exist_ok=True)
    arguments = [str(MOUNTPOINT), "--log-level", "warning"]
    mount = _start(["mount", *arguments], environ)
    try:
        if not _wait_for_ready(mount):
            return mount.wait()  # it has said why
        click.echo(_explanation(config, shown))
        return mount.wait()
    except KeyboardInterrupt:
        click.echo("\nuploading what is left, then unmounting …", err=True)
        return _stop(mount)


def _stop(mount: subprocess.Popen[str]) -> int:
    mount.terminate()
    try:
        return mount.wait()
    except KeyboardInterrupt:
        click.echo("stopping at once: what is not uploaded stays in the state directory for the next run", err=True)
        mount.kill()
        mount.wait()
        return Exit.NOT_DRAINED


@contextmanager
def _embedded_bucket() -> Iterator[dict[str, str]]:
    """The embedded bucket while the block runs; the environment for whoever uses it."""
    # A state directory belongs to one endpoint for ever, so the port of the first run is kept.
    port_file = RUN_DIR / "port"
    port = port_file.read_text().strip() if port_file.exists() else "0"
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("B2_", "B2FS_"))}
    environ |= {"B2_APPLICATION_KEY_ID": "devkeyid", "B2_APPLICATION_KEY": "dev-only-key"}
    arguments = ["--root", str(RUN_DIR / "bucket"), "--port", port, "--bucket", BUCKET, "--quiet"]
    bucket = _start(["devbucket", *arguments], environ)
    try:
        url = _wait_for_ready(bucket)
        if not url:
            raise NoBucket(f"the embedded bucket did not start; if port {port} is taken, stop what listens there")
        port_file.write_text(url.rstrip("/").rpartition(":")[2])
        yield environ | {
            "B2FS_ENDPOINT": url,
            "B2_BUCKET_NAME": BUCKET,
            "B2FS_STATE_DIR": str((RUN_DIR / "state").absolute()),
        }
    finally:
        bucket.terminate()
        bucket.wait()


def _seed(environ: Mapping[str, str]) -> None:
    """Upload the sample site, the first time; with the `b2` tool, which knows nothing of b2fs."""
    done = RUN_DIR / "seeded"
    if done.exists():
        return
    from b2fs.devbucket.sample import sample_site, write_tree

    click.echo(f"uploading a sample site of {DICTATIONS} dictations into the embedded bucket …", err=True)
    with tempfile.TemporaryDirectory() as directory:
        write_tree(sample_site(DICTATIONS), Path(directory, "site"))
        _b2_tool(environ, directory, "sync", "--no-progress", "--threads", "16", f"{directory}/site", f"b2://{BUCKET}")
    done.touch()


def _b2_tool(environ: Mapping[str, str], directory: str, *arguments: str) -> None:
    own = {"B2_ENVIRONMENT": environ["B2FS_ENDPOINT"], "B2_ACCOUNT_INFO": f"{directory}/account"}
    tool = [str(Path(sys.executable).with_name("b2")), *arguments]  # of this virtual environment
    done = subprocess.run(tool, env={**environ, **own}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoBucket(f"seeding the sample failed: {' '.join(done.stderr.split())[-300:]}")


def _start(arguments: list[str], environ: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "b2fs", *arguments],
        env=dict(environ), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def _wait_for_ready(process: subprocess.Popen[str]) -> str:
    """What stands behind ``ready:``, '' if the process ends without."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("ready: "):
            return line.removeprefix("ready: ").strip()
        click.echo(line, nl=False)
    return ""


def _explanation(config: Config, environ: Mapping[str, str]) -> str:
    b2fs = ".venv/bin/b2fs" if Path(".venv/bin/b2fs").exists() else "b2fs"
    b2 = ".venv/bin/b2" if Path(".venv/bin/b2").exists() else "b2"
    lines = [
        f"\nready: {MOUNTPOINT} is the bucket {config.bucket} at {config.endpoint}",
        "\nIn another terminal:",
        f"  ls -l {MOUNTPOINT}                               # plain files",
        f"  echo hello > {MOUNTPOINT}/hello.txt              # in the bucket {config.quiet_period:g} s later",
        f"  {b2fs} status {MOUNTPOINT}/hello.txt     # where its bytes are",
        f"  {b2fs} stats --watch                     # cache, queue, requests",
        f"  {b2fs} flush                             # waits until everything is in B2",
    ]
    if environ:
        key_id, key = environ["B2_APPLICATION_KEY_ID"], environ["B2_APPLICATION_KEY"]
        lines += [
            "\nThe bucket itself, with tools that know nothing of b2fs:",
            f"  B2_ENVIRONMENT={config.endpoint} B2_APPLICATION_KEY_ID={key_id} B2_APPLICATION_KEY={key} \\\n"
            f"    B2_ACCOUNT_INFO={RUN_DIR}/account {b2} ls -r b2://{BUCKET}",
        ]
        if shutil.which("rclone"):
            account = f"--b2-endpoint {config.endpoint} --b2-account {key_id} --b2-key {key}"
            lines.append(f"  rclone check --one-way {MOUNTPOINT} :b2:{BUCKET} {account}")
    return "\n".join([*lines, "\nCtrl-C uploads what is left, unmounts, and ends.\n"])
