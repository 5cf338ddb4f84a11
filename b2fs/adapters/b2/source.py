"""A range of a sealed file as the body of a request.

Rules
  The file is opened read-only and read by position: any number of sources share one descriptor.
  A source never delivers fewer bytes than it promised: a short file raises. That they are the promised ones B2 checks
  against the SHA-1 of the request; `digest()` tells afterwards whose fault it was if they are not.
"""

from __future__ import annotations

import hashlib
import os
import time

from b2fs.adapters.b2.faults import SourceFailed, local
from b2fs.errors import BucketError, Damaged, Fault

_BLOCK = 1024 * 1024


class Source:
    """File-like, for one request: b2sdk seeks to 0 and reads until it has `size` bytes.

    Has no ``__iter__``: requests would then send an empty body chunked, which B2 refuses.
    """

    def __init__(self, fd: int, path: str, offset: int, size: int, allowance_s: float) -> None:
        self._fd = fd
        self._path = path
        self._offset = offset
        self._size = size
        self._deadline = time.monotonic() + allowance_s
        self.sent = 0
        """Bytes that were read for the current request."""

    def __len__(self) -> int:
        return self._size

    def digest(self) -> str:
        """SHA-1 of the range as the file has it now. Reads it; raises `Damaged` if that fails."""
        digest, done = hashlib.sha1(usedforsecurity=False), 0
        while done < self._size:
            try:
                block = os.pread(self._fd, min(_BLOCK, self._size - done), self._offset + done)
            except OSError as exc:
                raise local(exc, f"cannot read {self._path}") from exc
            if not block:
                break
            digest.update(block)
            done += len(block)
        return digest.hexdigest()

    def seek(self, position: int) -> None:
        assert position == 0, "a source is only ever rewound"
        self.sent = 0

    def read(self, amount: int = -1) -> bytes:
        """The next bytes; `SourceFailed` if the file is shorter than promised, fails, or time is up."""
        left = self._size - self.sent
        if left == 0:
            return b""
        if time.monotonic() > self._deadline:
            raise SourceFailed(BucketError(Fault.TRANSIENT, "the upload is too slow"))
        try:
            block = os.pread(self._fd, left if amount < 0 else min(amount, left), self._offset + self.sent)
        except OSError as exc:
            raise SourceFailed(local(exc, f"cannot read {self._path}")) from exc
        if not block:
            raise SourceFailed(Damaged(f"local file: {self._path} is shorter than when it was sealed"))
        self.sent += len(block)
        return block
