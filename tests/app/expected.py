"""A model of the site: what the data directory should hold after the steps of the story.

Rules
  It is told what the app was asked to do, never what the server answered: the two are compared.
  `files` is the whole site. When a story has passed, a walk over the data directory (or the newest visible versions
  in the bucket) gives exactly these paths and bytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from b2fs.devbucket.sample import sample_site


@dataclass
class Account:
    """What the app should know of one user."""

    email: str
    password: str
    info: dict[str, Any]
    """info.json, the digest of the password included."""
    months: dict[str, Any] = field(default_factory=dict)
    drafts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Expected:
    """A model of the site: what the data directory should hold."""

    files: dict[str, bytes]
    etags: dict[str, str]
    """Time and size of the files whose time is known, as the ETag shows them."""
    categories: dict[str, Any]
    accounts: list[Account] = field(default_factory=list)

    @classmethod
    def of_sample(cls, dictations: int = 15, seed: int = 1) -> Expected:
        """A site just made by `sample_site`."""
        site = list(sample_site(dictations, seed))
        files = {file.path: file.data for file in site}
        # os.stat makes the float of seconds and nanoseconds in this way; any other may differ in the last digit.
        etags = {f.path: f"{f.mtime_ns // 10**9 + 1e-9 * (f.mtime_ns % 10**9)}-{len(f.data)}" for f in site}
        return cls(files, etags, json.loads(files["categories.json"]))

    def write(self, path: str, content: bytes) -> None:
        self.files[path] = content
        self.etags.pop(path, None)

    def document(self, path: str, value: object) -> None:
        self.write(path, json.dumps(value, ensure_ascii=False, indent=2).encode())

    def copy2(self, source: str, target: str) -> None:
        """`target` has the bytes and the time of `source`."""
        self.write(target, self.files[source])
        if source in self.etags:
            self.etags[target] = self.etags[source]

    def under(self, folder: str) -> list[str]:
        return sorted(path for path in self.files if path.startswith(folder))

    def drop(self, folder: str) -> bool:
        """Remove a tree; was there one?"""
        paths = self.under(folder)
        for path in paths:
            del self.files[path]
            self.etags.pop(path, None)
        return bool(paths)

    def dictations(self) -> list[str]:
        return sorted({path.split("/")[1] for path in self.under("dictations/")})
