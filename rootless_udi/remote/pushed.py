"""An image of a registry whose squashfs was pushed (`pull.artifact`), to be read where it is."""

import os
import threading
from collections.abc import Callable

from rootless_udi.base import windows
from rootless_udi.base.errors import UdiError
from rootless_udi.base.windows import WindowList, place
from rootless_udi.config import load
from rootless_udi.plan.reference import parse, parse_platform, platform_of
from rootless_udi.plan.site import Site
from rootless_udi.pull import claims, pushed
from rootless_udi.pull.artifact import FoundSquashfs
from rootless_udi.pull.blobs import Blobs
from rootless_udi.pull.from_registry import RegistrySource
from rootless_udi.pull.referrers import find_squashfs
from rootless_udi.pull.repository import RegistryOptions, Repository
from rootless_udi.pull.retry import Patience
from rootless_udi.pull.stop import Stop
from rootless_udi.remote.origins import Blob
from rootless_udi.remote.ranges import Ranges
from rootless_udi.remote.sources import Remote, RemoteRequest, begun, end
from rootless_udi.serve.distant import BROKEN, NONE, THERE
from rootless_udi.store import find, platforms
from rootless_udi.store.store import Store

_AGAIN = "push it again (udi push)"


def of_registry(asked: RemoteRequest, known: Callable[[], object]) -> Remote | str:
    """Return the image; or, with reasons behind a NUL, NONE where no squashfs is to be used, BROKEN
    where one beside an image is damaged, or could not be looked for or read in time; or THERE where
    the store has it by another name. `known` is called where it could be pulled as ever.

    Raises UdiError.
    """
    site = load.load(dict(os.environ))
    reference = parse(asked.image, site.registry)
    wanted = parse_platform(asked.platform) if asked.platform else None
    source = _source(asked, site)
    resolved = source.resolve(wanted or platforms.here())
    believed = claims.believed(site)
    signed = source.allowed(resolved, believed)
    named = wanted or platform_of(os.uname().machine)
    name = find.name_of(reference)
    if asked.folder and Store(asked.folder).image(resolved.digest) is not None:
        Store(asked.folder).set_name(name, named, resolved.digest)
        return THERE
    reasons: list[str] = []
    if resolved.found is None:
        known()
    try:
        found = resolved.found or find_squashfs(
            source.repository, resolved.digest, believed, reasons.append
        )
        if found is None:
            return f"{NONE}\0{'; '.join(reasons)}"
        ranges, head, used, listed, data = _read(source.repository, found, asked)
        facts = pushed.made(reference, resolved, found, data)
    except UdiError as error:
        if resolved.found is not None:
            raise
        return f"{BROKEN}\0{error.message}"
    last, tail = memoryview(b""), memoryview(windows.packed(listed))
    if place(used) + len(tail) != ranges.size:
        # What `udi optimize` appended.
        last, tail = end(ranges, head, used, asked.folder)
    if signed:
        facts["signed"] = list(signed)
    names = ((named.key(), name),)
    return Remote(ranges, head, used, tail, listed, resolved.digest, facts, names, last)


def _source(asked: RemoteRequest, site: Site) -> RegistrySource:
    reference = parse(asked.image, site.registry)
    stop = Stop()
    insecure = asked.insecure or reference.registry in site.insecure
    blobs = Blobs(Store(asked.folder or "/nowhere"), stop, False, lambda _: None)
    mirrors = dict(site.mirrors)
    # A mirror that hangs shall leave time for those behind it.
    answer = asked.timeout / (1 + len(mirrors.get(reference.registry, ())))
    patience = Patience(total=asked.timeout)
    options = RegistryOptions(insecure, mirrors, patience, answer=answer)
    return RegistrySource(reference, blobs, stop, options)


def _read(
    repository: Repository, found: FoundSquashfs, asked: RemoteRequest
) -> tuple[Ranges, memoryview, int, WindowList, bytes]:
    """Return what reads the squashfs, its first window, its size, its list, and the facts' bytes.

    All of it is asked for at once. Raises UdiError.
    """
    parts = found.parts
    # Who has the artifact has the blobs; the others may.
    hosts = sorted(repository.endpoints, key=lambda one: one.host != found.host)
    origin = Blob(hosts, repository.transport, parts.squashfs.digest, parts.squashfs.size)
    documents: dict[str, bytes] = {}
    failed: list[Exception] = []

    def document(part: str) -> None:
        try:
            documents[part] = repository.document(getattr(parts, part), part)
        except Exception as error:
            failed.append(error)

    others = [_started(document, part) for part in ("windows", "facts")]
    ranges, head, used = begun(origin, asked.timeout)
    for other in others:
        other()
    if failed:
        raise failed[0]
    listed = documents["windows"]
    try:
        known = windows.behind(lambda at, most: listed[at - place(used) :][:most], used)
    except ValueError as error:
        raise UdiError(f"reading {ranges.shown} failed: {error}", _AGAIN) from None
    if known is None or known.digest != parts.listed:
        why = f"its list of windows is {known.digest if known else 'missing'}"
        raise UdiError(f"reading {ranges.shown} failed: {why}, announced is {parts.listed}", _AGAIN)
    return ranges, head, used, known, documents["facts"]


def _started(call: Callable[[str], None], word: str) -> Callable[[], None]:
    """Call a function in a thread; return a function that waits for its end."""
    thread = threading.Thread(target=call, args=(word,), daemon=True)
    try:
        thread.start()
    except RuntimeError:
        # At a limit of threads: one after the other.
        return lambda: call(word)
    return thread.join
