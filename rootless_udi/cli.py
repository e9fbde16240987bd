"""udi: everything but the hot path. One argparse parser; each command is a small function below.

What a command does lives in the module it calls; here are words in, words out.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from rootless_udi import child, cli_site, config, jsontext, oci, resolve, store_find, trust
from rootless_udi.errors import BYTES, OURS, UdiError, plain
from rootless_udi.guard import guarded, page, refuse_privilege, say, streams, tell
from rootless_udi.version import VERSION

Arguments = argparse.Namespace


def main(argv: list[str] | None = None) -> NoReturn:
    """Run udi on `argv` (without the program's name); never returns."""
    streams()
    words = sys.argv[1:] if argv is None else argv
    try:
        status = guarded("udi", lambda: run(words))
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def run(argv: list[str]) -> int:
    """Do what `argv` asks; returns the exit status."""
    arguments = parser().parse_args(argv)
    if arguments.command is not bundle:
        refuse_privilege("udi")
    command: Callable[[Arguments], int] = arguments.command
    return command(arguments)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; completion and the man page are made from it too."""
    top = argparse.ArgumentParser(
        prog="udi",
        description="Images for udi-run: pull, list, inspect, remove; check the machine.",
    )
    top.add_argument("--version", action="version", version=f"udi {VERSION}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Callable[[Arguments], int], text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text)
        one.set_defaults(command=command)
        return one

    one = add("pull", pull, "fetch an image and make one squashfs file of it")
    one.add_argument("image")
    one.add_argument("--platform", help="OS/ARCHITECTURE[/VARIANT], this machine's by default")
    one.add_argument("--compression", help="zstd[:LEVEL], gzip[:LEVEL], xz, lz4, lzo or none")
    one.add_argument("--insecure", action="store_true", help="plain HTTP (loopback is always)")
    one.add_argument("--force", action="store_true", help="make it anew though it is there")
    one.add_argument("--keep-blobs", action="store_true", help="keep the compressed layers")
    one.add_argument("--writer", default="", help="tar2sqfs or mksquashfs, by name or path")
    one.add_argument("--quiet", "-q", action="store_true", help="say nothing but errors")
    one = add("images", images, "list the images of the stores")
    one.add_argument("--json", action="store_true", help="as JSON")
    one.add_argument("--digests", action="store_true", help="whole digests")
    one = add("inspect", inspect, "print what is known of an image, as JSON")
    one.add_argument("image")
    one.add_argument("--platform", help="that of the image, as it was pulled")
    one = add("rm", remove, "remove images from the store")
    one.add_argument("image", nargs="+")
    one.add_argument("--platform", help="that of the image, as it was pulled")
    one = add("login", login, "try a registry's credentials and keep them")
    one.add_argument("registry", nargs="?", default="docker.io")
    one.add_argument("--username", "-u", help="asked for where it is not given")
    one.add_argument("--password-stdin", action="store_true", help="read it from standard input")
    one.add_argument("--insecure", action="store_true", help="plain HTTP (loopback is always)")
    one = add("logout", logout, "forget a registry's credentials")
    one.add_argument("registry", nargs="?", default="docker.io")
    one = add("extract", extract, "unpack an image into a directory of the store")
    one.add_argument("image")
    one.add_argument("--platform", help="that of the image, as it was pulled")
    one = add("ps", ps, "list the containers that live on this node")
    one.add_argument("--json", action="store_true", help="as JSON")
    add("bundle", bundle, "put udi-run's modules into two files, for a shared file system")
    one = add("profile", profile, "run a command and note what it reads of its image")
    one.add_argument("--output", "-o", metavar="FILE", default="udi.profile")
    one.add_argument("image")
    one.add_argument("word", nargs=argparse.REMAINDER, metavar="[--] COMMAND")
    one = add("optimize", optimize, "lay an image out anew for what was noted")
    one.add_argument("--output", "-o", metavar="FILE", help="write it there; else into the store")
    one.add_argument("--compact", action="store_true", help="leave what starts read compressed")
    one.add_argument("image")
    one.add_argument("profile", nargs="+")
    one = add("completion", completion, "print a completion script: bash, zsh or fish")
    one.add_argument("shell", choices=("bash", "zsh", "fish"))
    cli_site.add(commands)
    add("doctor", doctor, "check what this machine lets an ordinary user do, with the remedies")
    return top


def _reference(text: str, site: config.Site) -> oci.Reference:
    found = oci.parse(text, site.registry)
    if found.kind in ("squashfs", "directory", "path"):
        raise UdiError(
            f"{text} is a path, not an image of a registry or a store",
            "an OCI image layout is oci:DIR, the output of `docker save` docker-archive:FILE; a "
            "squashfs file or a root directory needs no pull: udi-run takes it as it is",
        )
    return found


def _platform(arguments: Arguments) -> oci.Platform | None:
    return oci.parse_platform(arguments.platform) if arguments.platform else None


def _stores(site: config.Site) -> tuple[str, ...]:
    return resolve.all_stores(site, os.environ)


def _image(text: str, site: config.Site, platform: oci.Platform | None = None) -> store_find.Image:
    """Return an image of the stores by name or digest. Raises UdiError where it is in none."""
    found = resolve.find(_stores(site), _reference(text, site), platform)
    if found is None:
        unseen = store_find.closed(_stores(site))
        raise UdiError(f"image {text} is in no image store{unseen}", f"udi pull {text}")
    return found


def pull(arguments: Arguments) -> int:
    """udi pull: print the digest on standard output; all else goes to standard error."""
    site = config.load(os.environ)
    reference = _reference(arguments.image, site)
    try:
        from rootless_udi import progress
        from rootless_udi import pull as pulling
        from rootless_udi.store import Store
    except ModuleNotFoundError as error:
        raise UdiError(
            f"udi pull needs the Python module {error.name}, and {sys.executable} does not have it",
            "pip install rootless_udi installs it; images that are there run without it",
        ) from None

    options = pulling.Options(
        platform=_platform(arguments),
        compression=arguments.compression or _compression(site),
        insecure=arguments.insecure or reference.registry in site.insecure,
        force=arguments.force,
        keep_blobs=arguments.keep_blobs,
        writer=arguments.writer,
        mirrors=dict(site.mirrors),
    )
    with progress.shown(arguments.quiet) as shown:
        image = pulling.pull_sync(reference, Store(_stores(site)[0]), options, shown)
    say(image.digest)
    return 0


def _compression(site: config.Site) -> str:
    # These two have no levels.
    plain = site.compression in ("none", "lz4")
    return site.compression if plain else f"{site.compression}:{site.compression_level}"


def images(arguments: Arguments) -> int:
    """udi images: a row a name, the newest first; the site's stores after the user's."""
    from rootless_udi.store import Store

    rows = []
    for root in _stores(config.load(os.environ)):
        for entry in Store(root).images():
            for platform, name in entry.names or (("", "<none>"),):
                # After the "#" is the state of the file that it was pulled from.
                name = name.partition("#")[0]
                rows.append(
                    (name, entry.image.digest, platform, entry.image.size, entry.pulled, root)
                )
    if arguments.json:
        keys = ("name", "digest", "platform", "size", "pulled", "store")
        page(jsontext.text([dict(zip(keys, row, strict=True)) for row in rows]) + "\n")
        return 0
    table = [("NAME", "DIGEST", "PLATFORM", "SIZE", "PULLED")]
    for name, digest, platform, size, pulled, _ in rows:
        shown = digest if arguments.digests else digest.partition(":")[2][:12]
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(pulled))
        table.append((plain(name, keep=BYTES), shown, plain(platform), _size(size), when))
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        say("  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip())
    return 0


def _size(size: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def inspect(arguments: Arguments) -> int:
    """udi inspect: the facts that the pull wrote, and where the image is."""
    image = _image(arguments.image, config.load(os.environ), _platform(arguments))
    place = {"squashfs": image.squashfs, "store": image.store, "size": image.size}
    facts = resolve.read(image.facts, store_find.owners(image))
    page(jsontext.text({**facts, **place}) + "\n")
    return 0


def remove(arguments: Arguments) -> int:
    """udi rm: print each name and image that is gone."""
    from rootless_udi.store import Store

    site = config.load(os.environ)
    store = Store(_stores(site)[0])
    platform = _platform(arguments) or oci.platform_of(os.uname().machine)
    for text in arguments.image:
        names, digests = store.remove(_reference(text, site), platform)
        for name in names:
            say(f"untagged {name}")
        for digest in digests:
            say(f"removed {digest}")
    return 0


def login(arguments: Arguments) -> int:
    """udi login: ask for what is not given, on the terminal, never on the command line."""
    from rootless_udi import login as logins

    registry = logins.registry_name(arguments.registry)
    if arguments.password_stdin:
        if not arguments.username:
            raise UdiError("udi login --password-stdin: --username is missing too")
        username, password = arguments.username, sys.stdin.readline().rstrip("\r\n")
    else:
        import getpass

        try:
            username = arguments.username or input(f"username at {registry}: ")
            password = getpass.getpass(f"password of {username}: ")
        except EOFError:
            raise UdiError("udi login: no name or password was given") from None
    path = logins.login(registry, username, password, os.environ, arguments.insecure)
    tell(f"logged in at {registry}; kept in {path}")
    return 0


def logout(arguments: Arguments) -> int:
    """udi logout."""
    from rootless_udi import login as logins

    registry = logins.registry_name(arguments.registry)
    path = logins.logout(registry, os.environ)
    tell(f"logged out of {registry}; removed from {path}")
    return 0


def extract(arguments: Arguments) -> int:
    """udi extract: what udi-run does by itself where there is no FUSE. Prints the directory."""
    from rootless_udi import squashfs
    from rootless_udi.store import Store

    image = _image(arguments.image, config.load(os.environ), _platform(arguments))
    store = Store(image.store)
    lock = store.lock(image.digest)
    lock.wait()
    try:
        trust.make(os.path.dirname(image.directory))
        squashfs.extract(image.squashfs, image.directory)
    except OSError as error:
        raise store.refused(f"extracting {image.name or image.digest}", error) from None
    finally:
        lock.release()
    say(image.directory)
    return 0


def profile(arguments: Arguments) -> int:
    """udi profile: the command's exit status; the profile is written when its mount has ended."""
    from rootless_udi import optimize as optimizing

    words = arguments.word[1:] if arguments.word[:1] == ["--"] else arguments.word
    if not words:
        raise UdiError("udi profile: no command is given", "udi profile IMAGE -- COMMAND [ARG...]")
    launcher = "from rootless_udi.run import main; main()"
    run = child.argv(launcher, "--share=off", site=False)
    status = optimizing.profile(run, arguments.image, words, arguments.output)
    if status != OURS:
        tell(f"what it read is in {arguments.output}")
    return status


def optimize(arguments: Arguments) -> int:
    """udi optimize: print the file. In the store both layouts have one name and one digest."""
    from rootless_udi import optimize as optimizing

    site = config.load(os.environ)
    reference = oci.parse(arguments.image, site.registry)
    if reference.kind in ("squashfs", "path"):
        source, target = reference.path, arguments.output
        if target is None:
            raise UdiError("udi optimize of a file: --output is missing", "--output=NEW.sqfs")
    else:
        image = _image(arguments.image, site)
        source = f"{image.store}/images/{image.digest.replace(':', '-', 1)}.sqfs"
        target = arguments.output or source.removesuffix(".sqfs") + store_find.OPTIMIZED
    found = optimizing.optimize(
        source, arguments.profile, target, raw=not arguments.compact, progress=tell
    )
    tell(f"{found.files} files of the profile lie first")
    say(target)
    return 0


def ps(arguments: Arguments) -> int:
    """udi ps: see `rootless_udi.ps`."""
    from rootless_udi import ps as listing

    found = listing.containers(dict(os.environ))
    if arguments.json:
        page(jsontext.text([dict(zip(c.FIELDS, c.values(), strict=True)) for c in found]) + "\n")
    else:
        page(listing.table(found))
    return 0


def completion(arguments: Arguments) -> int:
    """udi completion: bash: source <(udi completion bash)."""
    from rootless_udi import completion as completing

    page(completing.script(arguments.shell))
    return 0


def bundle(arguments: Arguments) -> int:
    """udi bundle: for an installation that its users may not write to. Prints the files."""
    from rootless_udi import bundle as bundling

    package = os.path.dirname(os.path.abspath(__file__))
    if not bundling.write(package):
        raise UdiError(
            f"writing {bundling.path(package)} failed", "run it as who installed udi-run"
        )
    for stem in bundling.FILES:
        say(bundling.path(package, stem))
    return 0


def doctor(arguments: Arguments) -> int:
    """udi doctor: see `rootless_udi.doctor`."""
    from rootless_udi import doctor as checks

    return checks.report(dict(os.environ))


if __name__ == "__main__":
    main()
