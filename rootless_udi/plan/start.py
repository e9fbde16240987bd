"""What is known of a start beforehand, for prefetching (`serve.prefetch`). Pure."""

from rootless_udi.base.records import Record


class Start(Record):
    """What is known of a start beforehand.

    `key` is the digest of what is run. `keep` is the name of the file to which what this start asks
    is to be written, "" for none. `known` is the path of the file with what an earlier one asked;
    the image's own path where that is appended to the image; "" where nothing is known.
    """

    key: str
    keep: str = ""
    known: str = ""
