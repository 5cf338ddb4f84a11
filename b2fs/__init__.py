"""b2fs: a Backblaze B2 bucket as plain files."""

__version__ = "0.1.0"
