"""A start's key and its files for prefetching (`serve.prefetch`). Pure."""

from rootless_udi.base.records import Record


class Start(Record):
    """What prefetching needs to know of a start.

    `key` is a digest of what is run. `keep` is the name of the file to which the reads of this
    start will be written, "" if they are not recorded. `known` is the path of the file with the
    reads of an earlier start; the image's path where they are appended to the image; "" where none
    are known.
    """

    key: str
    keep: str = ""
    known: str = ""
