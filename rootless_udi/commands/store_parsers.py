"""The parsers of the commands that keep a store: images to tags."""

import argparse
from collections.abc import Callable

from rootless_udi.commands.df import df
from rootless_udi.commands.export import export, import_
from rootless_udi.commands.given import Arguments
from rootless_udi.commands.history import history
from rootless_udi.commands.images import images
from rootless_udi.commands.prune import prune
from rootless_udi.commands.rm import remove
from rootless_udi.commands.search import search, tags
from rootless_udi.commands.tag import tag

Add = Callable[[str, Callable[[Arguments], int], str], argparse.ArgumentParser]

_PLATFORM = "that of the image, as it was pulled"


def add(command: Add) -> None:
    """Add the parsers by `command(name, function, text)`."""
    one = command("images", images, "list the images of the stores")
    one.add_argument("--json", action="store_true", help="as JSON")
    one.add_argument("--digests", action="store_true", help="whole digests")
    one.add_argument(
        "--quiet", "-q", action="store_true", help="digests only, as udi rm takes them"
    )
    one.add_argument("--names", action="store_true", help="names only, one a line")
    one.add_argument(
        "--filter",
        "-f",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="reference=PATTERN, platform=ARCH, untagged=true, older=AGE",
    )
    one = command("rm", remove, "remove images from the store")
    one.add_argument("image", nargs="+", help="a name, a digest, or its first digits")
    one.add_argument("--platform", help=_PLATFORM)
    one = command("prune", prune, "remove images without a name, and what broken pulls left")
    one.add_argument("--older-than", metavar="AGE", help="also what was not used for 30d, 6w, 1y")
    one.add_argument("--until-free", metavar="SIZE", help="the longest unused, until 100G are free")
    one.add_argument("--dry-run", "-n", action="store_true", help="only print what would go")
    one = command("df", df, "show what the stores take")
    one.add_argument("--json", action="store_true", help="as JSON")
    one = command("tag", tag, "give an image another name")
    one.add_argument("image")
    one.add_argument("name", metavar="NAME")
    one.add_argument("--platform", help=_PLATFORM)
    one = command("export", export, "write an image to one file, with all that is known of it")
    one.add_argument("image", help="of the store, or a squashfs file (./FILE.sqfs)")
    one.add_argument("file")
    one.add_argument(
        "--format",
        default="squashfs",
        choices=("squashfs", "oci-archive", "docker-archive"),
        help="for udi-run, or for other tools",
    )
    one.add_argument("--force", action="store_true", help="replace the file")
    one.add_argument("--platform", help=_PLATFORM)
    one = command("import", import_, "put a squashfs file into the store")
    one.add_argument("file")
    one.add_argument("name", nargs="?", metavar="NAME", help="what the file says it is, without it")
    one = command("history", history, "print the steps by which an image was made")
    one.add_argument("image")
    one.add_argument("--json", action="store_true", help="as JSON")
    one.add_argument("--platform", help=_PLATFORM)
    one = command("update", _update, "pull the images of tags that have moved")
    one.add_argument("image", nargs="*", help="these tags; else all that were pulled")
    one.add_argument("--check", action="store_true", help="only tell which have moved")
    one.add_argument("--insecure", action="store_true", help="plain HTTP (loopback is always)")
    one.add_argument("--quiet", "-q", action="store_true", help="show no progress")
    one = command("search", search, "find repositories of a registry by a word of their names")
    one.add_argument("word", metavar="[HOST/]WORD")
    one.add_argument("--insecure", action="store_true", help="plain HTTP (loopback is always)")
    one = command("tags", tags, "list the tags of a repository")
    one.add_argument("repository")
    one.add_argument("--insecure", action="store_true", help="plain HTTP (loopback is always)")


def _update(arguments: Arguments) -> int:
    # The other commands run without what a pull needs.
    from rootless_udi.commands.update import update

    return update(arguments)
