"""The version, where the start path finds it without reading package metadata."""

VERSION = "0.1.0"
"""Also in pyproject.toml; a test compares them."""
