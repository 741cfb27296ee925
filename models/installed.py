"""Which packages are installed. Imports no torch, so that whoever asks for a version alone gets it at once."""

from __future__ import annotations

from importlib import metadata


def version(distribution: str) -> str | None:
    """The installed version of a package; None where it is missing."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
