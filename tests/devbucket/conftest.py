"""The fixtures of tests/devbucket_fixture.py for this folder, and a raw client."""

from collections.abc import Iterator

import pytest

from tests.devbucket.raw import Raw
from tests.devbucket_fixture import (
    DevBucket,
    _shared_devbucket,  # noqa: F401  (a fixture)
    devbucket,  # noqa: F401  (a fixture)
    fresh_devbucket,  # noqa: F401  (a fixture)
)


@pytest.fixture
def raw(devbucket: DevBucket) -> Iterator[Raw]:  # noqa: F811  (the fixture)
    """An authorised client of `devbucket`, API v4."""
    with Raw(devbucket.url, devbucket.key_id, devbucket.key) as client:
        yield client
