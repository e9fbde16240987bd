"""A process that does one pull for the gateway, with the same code as `udi pull`.

It reads a job from standard input, as a line of JSON, and writes what happens to standard output,
a JSON object a line (`Said`). The gateway keeps its input open: where that ends the gateway has
died, and this process ends too. Files are made for its own account alone (umask 077); the gateway
opens them to readers once it has decided who may read, and gives the name then.
"""

import json
import os
import sys
import threading
import time
from typing import Any

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.config import load
from rootless_udi.gateway import importing
from rootless_udi.plan.reference import Platform, Reference, parse, platform_of_key
from rootless_udi.plan.site import Site
from rootless_udi.pull import pipeline
from rootless_udi.pull.claims import believed
from rootless_udi.pull.credentials import Credentials
from rootless_udi.pull.gateway import IDENTITY
from rootless_udi.pull.retry import GaveUp, Patience
from rootless_udi.store import striping
from rootless_udi.store.store import Store

STATES = {
    "resolve": "PENDING",
    "wait": "PENDING",
    "fetch": "PULLING",
    "pushed": "PULLING",
    "convert": "CONVERSION",
    "store": "TRANSFER",
    "present": "TRANSFER",
    "done": "TRANSFER",
}
"""Stage of a pull -> Shifter's state. READY is for the gateway to say, when users can read it."""
_STEP = 0.2
"""Seconds between two reports of progress."""
_QUICK = Patience(attempts=2, first=0.2, longest=0.2, asked=1.0)
"""For the question whether an image is public, which a refusal answers too."""


class _UnnamedStore(Store):
    """A store in which a pull leaves the name to the gateway."""

    def set_name(self, name: str, platform: Platform, digest: str) -> None:
        """Do nothing."""


class Said(Record):
    """What a worker says: the fields that it has said so far.

    `state` is Shifter's; `done` of `total` bytes of layers. At the end `digest` is set, with
    `anonymous`, whether the registry gives the image to everybody; or `error`, with `again`,
    whether another attempt may succeed.
    """

    state: str = ""
    done: int = 0
    total: int = 0
    digest: str = ""
    anonymous: bool = False
    error: str = ""
    again: bool = False


class _Teller:
    """A `pull.progress.Progress` that writes to the gateway."""

    def __init__(self) -> None:
        self._blobs: dict[str, tuple[int, int]] = {}
        self._told = (0, 0)
        self._lock = threading.Lock()
        threading.Thread(target=self._tell_on, daemon=True).start()

    def _tell_on(self) -> None:
        """Tell of progress a few times a second, also of what came just before a standstill."""
        while True:
            time.sleep(_STEP)
            with self._lock:
                found = (
                    sum(done for done, _ in self._blobs.values()),
                    sum(total for _, total in self._blobs.values()),
                )
            if found != self._told:
                self._told = found
                self.say(done=found[0], total=found[1])

    def say(self, **fields: Any) -> None:
        with self._lock:
            try:
                os.write(1, (json.dumps(fields) + "\n").encode())
            except OSError:
                # The gateway has died, and with it who wants this.
                os._exit(1)

    def stage(self, stage: str, text: str) -> None:
        self.say(state=STATES[stage])

    def blob(self, digest: str, done: int, total: int, state: str) -> None:
        with self._lock:
            self._blobs[digest] = (done, total)

    def copied(self, done: int, total: int) -> None:
        with self._lock:
            self._blobs[""] = (done, total)

    def convert(self, done: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def detail(self, text: str) -> None:
        pass


def main() -> None:
    """Do the job of standard input."""
    os.umask(0o077)
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_gateway, daemon=True).start()
    teller = _Teller()
    try:
        digest, anonymous = _pull(job, teller)
        teller.say(digest=digest, anonymous=anonymous)
    except UdiError as error:
        text = f"{error.message} ({error.hint})" if error.hint else error.message
        teller.say(error=text, again=isinstance(error, GaveUp))
    except Exception as error:
        # A bug: shown with its traceback in the gateway's log, and told to who waits.
        teller.say(error=f"{type(error).__name__}: {error}", again=False)
        raise


def _end_with_the_gateway() -> None:
    os.read(0, 1)
    os._exit(1)


def _pull(job: dict[str, Any], teller: _Teller) -> tuple[str, bool]:
    if job["file"]:
        teller.say(state="TRANSFER")
        # Whoever may read it is the asker's to say: his request has the list.
        return importing.do(job, Store(job["store"]), teller.copied), True
    site = load.load(os.environ)
    reference, platform = parse(job["name"], site.registry), platform_of_key(job["platform"])
    options = pipeline.Options(
        platform=platform,
        compression=compression(site),
        insecure=reference.registry in site.insecure,
        mirrors=dict(site.mirrors),
        lookup=_nobody,
        believed=believed(site),
    )
    striping.prepare(job["store"], site.stripes)
    store = _UnnamedStore(job["store"])
    given = secret_for(job["secrets"], reference, site)
    anonymous = given is None or _is_public(reference, store, options, teller)
    if given is not None and not anonymous:
        one = given

        def lookup(registry: str, repository: str = "") -> Credentials | None:
            return one if registry == reference.registry else None

        options = options.replace(lookup=lookup)
    return pipeline.pull_sync(reference, store, options, teller).digest, anonymous


def _nobody(registry: str, repository: str = "") -> Credentials | None:
    """The gateway's own account has credentials for nothing: what it sends are a user's."""
    return None


def _is_public(
    reference: Reference, store: Store, options: pipeline.Options, teller: _Teller
) -> bool:
    """Tell whether the registry gives the image to everybody; not where that can't be told."""
    from rootless_udi.pull.blobs import Blobs
    from rootless_udi.pull.open import open_source
    from rootless_udi.pull.repository import RegistryOptions
    from rootless_udi.pull.stop import Stop

    assert options.platform is not None
    stop = Stop()
    asked = RegistryOptions(options.insecure, options.mirrors, _QUICK, lookup=_nobody)
    source = open_source(reference, Blobs(store, stop, False, teller.note), stop, asked)
    try:
        source.resolve(options.platform)
    except UdiError:
        return False
    finally:
        source.close(True)
    return True


def secret_for(secrets: dict[str, str], reference: Reference, site: Site) -> Credentials | None:
    """Return the credentials that came for an image's registry.

    "default" is Shifter's word for the site's registry; it is sent to no other.
    """
    text = secrets.get(reference.registry, "")
    if not text and reference.registry == site.registry:
        text = secrets.get("default", "")
    user, colon, password = text.partition(":")
    if not colon or not user:
        return None
    if user == IDENTITY:
        return Credentials("", "", password, "the request")
    return Credentials(user, password, "", "the request")


def compression(site: Site) -> str:
    """Return the compression of images by the site's configuration."""
    plain = site.compression in ("none", "lz4")
    return site.compression if plain else f"{site.compression}:{site.compression_level}"
