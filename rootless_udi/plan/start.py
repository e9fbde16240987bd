"""What is known of a start before it, by which its image's server prefetches. Pure."""

from rootless_udi.base.records import Record


class Start(Record):
    """What is known of a start before it: its key; the name of the file in which what it asks is to
    be kept, "" for none; the path of what the last one asked, an image's for what is behind that,
    "" where nothing is known."""

    key: str
    keep: str = ""
    known: str = ""
