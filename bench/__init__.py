"""Measures b2fs beside what a user would pick instead, and beside the limits. Not part of the package."""
