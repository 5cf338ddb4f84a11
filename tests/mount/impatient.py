"""`b2fs` whose transfer process takes three seconds of silence for a stall, where the real one waits up to a minute.

    python -m tests.mount.impatient mount DIR

Everything else is as in `b2fs mount`: the same code meets the same stall, only sooner.
"""

from __future__ import annotations

from msgspec.structs import replace

from b2fs.__main__ import main
from b2fs.adapters.b2.settings import Settings
from b2fs.config import Config
from b2fs.ops import setup

SILENCE_S = 3.0

_patient = setup.bucket_settings


def _impatient(config: Config) -> Settings:
    silence = dict.fromkeys(("connect_timeout_s", "idle_timeout_s", "upload_timeout_s", "copy_timeout_s"), SILENCE_S)
    return replace(_patient(config), **silence)


if __name__ == "__main__":
    setup.bucket_settings = _impatient
    main()
