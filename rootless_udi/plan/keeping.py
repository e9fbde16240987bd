"""--keep=SECONDS: how long a container waits for the next start, and which ones can't. Pure."""

from rootless_udi.base.errors import UdiError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class _Asked(Protocol):
        """A request, of which no more is needed here (`options.Request`)."""

        @property
        def keep(self) -> str | None: ...
        @property
        def share(self) -> str | None: ...
        @property
        def pull(self) -> str | None: ...
        @property
        def writable(self) -> bool: ...
        @property
        def trace(self) -> str | None: ...
        @property
        def volume(self) -> tuple[str, ...]: ...
        @property
        def no_cwd(self) -> bool: ...
        @property
        def shifter(self) -> bool: ...
        @property
        def home(self) -> bool: ...


MOST = 86400
"""Seconds: a day."""
PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+@%=")
"""Characters of volumes that mean themselves; of others `covered` does not judge."""


def check(request: "_Asked", asked: bool) -> None:
    """Raise UdiError for what is no number of seconds, and for what was `asked` and can't be.

    `asked`: by the option. The variable and the site's key keep what can be kept.
    """
    text = request.keep or ""
    if not is_number(text):
        raise UdiError(
            f"{'--keep' if asked else 'UDI_KEEP'}={text}: not a number of seconds from 0 to {MOST}",
            "a whole number, such as 30; 0 keeps no container",
        )
    why = refusal(request)
    if asked and int(text) and why:
        raise UdiError(
            f"--keep with {why}: starts that know nothing of each other would share it",
            "--share=NAME says who shares; or leave --keep out",
        )
    if asked and int(text) and request.share == "off":
        raise UdiError("--keep with --share=off: nobody may join it", "leave one of them out")
    if asked and int(text) and request.pull == "always":
        raise UdiError("--keep with --pull=always: who joins pulls nothing", "udi pull, before it")


def is_number(text: str) -> bool:
    """Tell whether `text` is a number of seconds: up to five digits, which C reads alike."""
    return text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= MOST


def seconds(request: "_Asked") -> int:
    """Return how long the request wants its container to wait; 0 for not at all."""
    return int(request.keep) if request.keep is not None and possible(request) else 0


def possible(request: "_Asked") -> bool:
    """Tell whether a request's container may be kept."""
    return request.share != "off" and request.pull != "always" and not refusal(request)


def refusal(request: "_Asked") -> str:
    """Return what keeps a request's container from being kept, "" for nothing.

    That is what one start would leave to the next; who names the container knows who that is.
    """
    if request.share not in (None, "auto", "off"):
        return ""
    if request.writable:
        return "--writable"
    if request.trace is not None:
        return "--trace"
    return "a perNodeCache" if any("perNodeCache" in one for one in request.volume) else ""


def covered(request: "_Asked", names: "list[str]", home: str) -> bool:
    """Tell whether the current folder, by all its `names`, is in the container by a volume.

    Then, or where it stays outside, all folders share one container. Else it belongs to this one.
    Volumes with quotes or escapes are not looked at.
    """
    if request.no_cwd or request.shifter:
        return True
    folders = [home] if request.home and home.startswith("/") else []
    for text in request.volume:
        source, _, rest = text.partition(":")
        target = rest.partition(":")[0] or source
        if source == target and source.startswith("/") and PLAIN.issuperset(source):
            folders.append(source)
    return all(any(_within(name, folder) for folder in folders) for name in names)


def _within(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/") or path == folder
