"""The fixtures of tests/devbucket_fixture.py for this folder."""

from tests.devbucket_fixture import _shared_devbucket, devbucket, fresh_devbucket

__all__ = ["_shared_devbucket", "devbucket", "fresh_devbucket"]
