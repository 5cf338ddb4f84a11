"""From the configuration to what the parts are told, and from their errors to what the user is told.

Shared by whatever runs an engine or asks the bucket: the daemon, `b2fs rescue`, `b2fs fsck --remote`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import NoReturn

from b2fs.adapters.b2.settings import Settings as BucketSettings
from b2fs.config import Config
from b2fs.core.inode import Defaults
from b2fs.engine.volume import Settings
from b2fs.errors import AccessDenied, B2fsError, BucketError, Fault, NoBucket, StateError, Unavailable


def bucket_settings(config: Config) -> BucketSettings:
    return BucketSettings(
        key_id=config.key_id,
        key=config.key.reveal(),
        bucket=config.bucket,
        prefix=config.prefix,
        endpoint=config.endpoint,
        fetch_lanes=config.fetches,
        upload_lanes=config.uploads,
    )


def engine_settings(config: Config) -> Settings:
    return Settings(
        defaults=Defaults(
            uid=os.geteuid() if config.uid is None else config.uid,
            gid=os.getegid() if config.gid is None else config.gid,
            file_mode=config.file_mode,
            dir_mode=config.dir_mode,
        ),
        prefix=config.prefix,
        cache_size=config.cache_size,
        dirty_size=config.dirty_size,
        dirty_wait_s=config.dirty_wait,
        remote_fsync=config.remote_fsync,
        quiet_s=config.quiet_period,
        max_dirty_age_s=config.max_dirty_age,
        read_deadline_s=config.read_deadline,
        refresh_s=config.refresh_interval,
        uploads=config.uploads,
        fetches=config.fetches,
        predict=config.predict,
        prefetch=config.prefetch,
        pin=config.pin,
    )


def of_bucket(config: Config, meta: Mapping[str, str]) -> Config:
    """The configuration for the bucket that a journal (its ``meta``) belongs to. StateError: it belongs to none."""
    if not meta.get("bucket_name"):
        raise StateError(f"no mount has ever reached a bucket with the state directory {config.state_dir}")
    return replace(config, endpoint=meta.get("endpoint", ""), bucket=meta["bucket_name"], prefix=meta.get("prefix", ""))


def explain(error: BucketError | Unavailable, config: Config) -> NoReturn:
    """Raise what a failed request for the bucket means for the one who started the command."""
    if isinstance(error, Unavailable):
        raise NoBucket(f"{error}: check the network and B2FS_ENDPOINT ({config.endpoint})") from None
    if error.fault is Fault.DENIED:
        hint = "check B2_APPLICATION_KEY_ID, B2_APPLICATION_KEY and what this key may do"
        raise AccessDenied(f"{error}: {hint}") from None
    raise NoBucket(f"{error}: check B2_BUCKET_NAME and B2FS_ENDPOINT ({config.endpoint})") from None


def raise_named(group: BaseExceptionGroup[BaseException]) -> None:
    """Raise the error that has a name for the user, if one is in the group."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            raise_named(error)
        elif isinstance(error, B2fsError):
            raise error from None
