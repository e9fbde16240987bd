"""What `udi check` was asked, as data. Pure."""

from typing import Any

from rootless_udi.base.records import Record
from rootless_udi.plan.options import Request

MPI_GOES_IN = "the site's MPI goes in"
"""The key of a memo, where that is so at the site that is looked at: `mpi` finds it."""
LIMIT = 60.0
"""Seconds that one run of the command may take, where a check runs it."""


class Asked(Record):
    """The question: `image` as the caller named it, `path` of its squashfs file or directory.

    `request` has the options of udi-run and the command (`request.command`, () for none). `memo` is
    for what a check does once for all sites, under the check's name.
    """

    image: str
    path: str
    request: Request
    memo: dict[str, Any]
    size: int = 0
    """Bytes of the image's file; 0 for a directory."""
    limit: float = LIMIT
    offset: int = 0
    """Where in its file the squashfs begins: in a SIF file."""

    @property
    def command(self) -> tuple[str, ...]:
        """The command and its arguments; () where none was given."""
        return self.request.command
