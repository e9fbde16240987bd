"""What the image server is told of a start: what to prefetch, how to check the image. Pure."""

from rootless_udi.base.records import Record


class Start(Record):
    """What prefetching (`serve.prefetch`) needs to know of a start, and how the image is checked.

    `key` is a digest of what is run. `keep` is the name of the file to which the reads of this
    start will be written, "" if they are not recorded. `known` is the path of the file with the
    reads of an earlier start; with `behind` of an image's file to which they are appended; ""
    where none are known. `verify` is LISTED or CHECKED of `serve.outside`, "" where nothing is
    checked. Of a remote image `timeout` is the site's, `digest` its list's, "" where that is not
    known, `there` the numbers of the windows that have come and are right, and LISTED means that
    each window is compared here too, not only by who fetches it.
    """

    key: str
    keep: str = ""
    known: str = ""
    behind: bool = False
    verify: str = ""
    timeout: int = 0
    digest: str = ""
    there: str = ""
