"""What a pull tells about how it goes."""

from typing import Protocol


class Progress(Protocol):
    """Is told how a pull goes. All but `stage` is called from worker threads, several at once."""

    def stage(self, stage: str, text: str) -> None:
        """A step begins: "resolve", "wait", "fetch", "convert", "store", then "present" or "done".

        "pushed" stands in place of "fetch" and "convert" where a squashfs was pushed for the image.
        `text` is the reference, the process that is waited for, or the digest.
        """

    def blob(self, digest: str, done: int, total: int, state: str) -> None:
        """A layer: `done` of `total` bytes; state "waiting", "running" or "done"."""

    def convert(self, done: int) -> None:
        """The merged tar has `done` bytes so far; how many there will be is not known."""

    def note(self, text: str) -> None:
        """Something a person should see: an attempt that failed and will be repeated."""

    def detail(self, text: str) -> None:
        """Something for who wants to know more: why a squashfs that was pushed is used or not."""


class Silent:
    """A `Progress` that says nothing."""

    def stage(self, stage: str, text: str) -> None:
        pass

    def blob(self, digest: str, done: int, total: int, state: str) -> None:
        pass

    def convert(self, done: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def detail(self, text: str) -> None:
        pass
