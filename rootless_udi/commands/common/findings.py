"""What `udi doctor` finds."""

from rootless_udi.base.records import Record

OK, WARNING, FAILURE = "ok", "warning", "FAILURE"


class Finding(Record):
    """One line of the report: `state` is one of the three words, `remedy` says what to do."""

    state: str
    what: str
    found: str
    remedy: str = ""
