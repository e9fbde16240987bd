"""What comes with a request: its path's words, its body, checked and with bounds."""

import json
from typing import Any

import trio
from starlette.requests import ClientDisconnect, Request

from rootless_udi.base.errors import UdiError, amount
from rootless_udi.gateway import importing
from rootless_udi.gateway.catalogue import Wanted
from rootless_udi.plan.reference import Platform, Reference, parse, parse_platform, platform_of
from rootless_udi.store import find

BODY_MAX = 64 << 10
"""Most bytes of a request's body."""
_BODY_SECONDS = 10
"""How long a client may take to send it."""
_NAME_MAX = 240
"""Most bytes of a name as the store has it: one part of a path (`find.escape`)."""
_PLATFORM = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_PLATFORM_MAX = 30
_ROWS_MOST = 10_000
_IDS_MAX = 200
"""Most users, and most groups, of one request."""
_ID_MAX = 2**32 - 2


class BadRequest(UdiError):
    """A request that is wrong, whoever asks."""


class TooLarge(BadRequest):
    """A request that is larger than any needs to be."""


class TooSlow(BadRequest):
    """A body that did not come in time."""


def single(request: Request, name: str) -> str:
    """Return a header that says who asks, "" without it. Raises BadRequest for two: what stands in
    front may have looked at the other one."""
    found = request.headers.getlist(name)
    if len(found) > 1:
        raise BadRequest(f"the request has more than one header {name}", "send one")
    return found[0] if found else ""


async def raw(request: Request) -> bytes:
    """Return a request's body. Raises BadRequest."""
    data = bytearray()
    try:
        with trio.fail_after(_BODY_SECONDS):
            async for part in request.stream():
                data += part
                if len(data) > BODY_MAX:
                    raise TooLarge(f"the request's body has more than {amount(BODY_MAX)}")
    except trio.TooSlowError:
        raise TooSlow(f"the request's body did not come within {_BODY_SECONDS} seconds") from None
    except ClientDisconnect:
        raise BadRequest("the request's body was cut off") from None
    return bytes(data)


async def body(request: Request) -> dict[str, Any]:
    """Return a request's JSON object; {} where it has no body. Raises BadRequest."""
    data = await raw(request)
    if not data.strip():
        return {}
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise BadRequest("the request's body is no JSON") from None
    if not isinstance(found, dict):
        raise BadRequest("the request's body is no JSON object")
    if not _is_text(found):
        raise BadRequest("the request's body has what is no text: a NUL, or half a character")
    return found


def _is_text(found: Any) -> bool:
    """Tell whether databases, and file names, take all texts of a JSON document."""
    try:
        text = json.dumps(found, ensure_ascii=False)
        text.encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    # A backslash of a text is written as two.
    return "\\u0000" not in text.replace("\\\\", "")


def reference(kind: str, tag: str, registry: str) -> Reference:
    """Return the image that a path's words mean: "docker" and NAME[:TAG], or "id" and a digest.

    Raises BadRequest. "../" and the like are no names: the grammar is that of all references.
    """
    tag = tag.strip("/")
    if kind not in ("docker", "id"):
        raise BadRequest(f"images of type {kind[:40]!r} are not kept here", "docker, or id")
    if len(tag) > _NAME_MAX:
        raise TooLarge(f"the image's name has more than {_NAME_MAX} characters")
    try:
        if kind == "id":
            found = parse(tag if ":" in tag else f"sha256:{tag}", registry)
            wanted = "store"
        else:
            found = parse(f"docker://{tag}", registry)
            wanted = "registry"
    except UdiError as error:
        raise BadRequest(error.message, error.hint) from None
    if found.kind != wanted:
        raise BadRequest(f"{tag!r} names no image of a registry", "NAME[:TAG]")
    if kind == "docker" and len(find.escape(find.name_of(found))) > _NAME_MAX:
        raise TooLarge(f"the image's whole name has more than {_NAME_MAX} characters")
    return found


def imported(tag: str, user: str) -> Reference:
    """Return the name of an image that `user` imports: HOST/USER/NAME[:TAG], HOST being that of
    no registry, so that it is taken for nobody else's. Raises BadRequest."""
    tag = tag.strip("/").removeprefix(f"{importing.HOST}/").removeprefix(f"{user}/")
    if "/" in tag:
        raise BadRequest(f"{tag[:60]!r} is no name for an imported image", "NAME[:TAG]")
    return reference("docker", f"{importing.HOST}/{user}/{tag}", "")


def platform(text: str, machine: str) -> Platform:
    """Return the platform that a request names, `machine`'s where it names none."""
    if not text:
        return platform_of(machine)
    try:
        found = parse_platform(text)
    except UdiError as error:
        raise BadRequest(error.message, error.hint) from None
    # It becomes the name of a folder in the store.
    if found.os != "linux" or set(found.key()) - _PLATFORM or len(found.key()) > _PLATFORM_MAX:
        raise BadRequest(f"{text!r} is no platform that images are kept for", "linux/amd64")
    return found


def wanted(given: dict[str, Any], uid: int) -> Wanted:
    """Return who shall read the image: Shifter's `allowed_uids`, `allowed_gids` and who asks.

    Everybody, where the request has neither. Raises BadRequest.
    """
    users = ids(given, "allowed_uids")
    groups = ids(given, "allowed_gids")
    if not users and not groups:
        return Wanted()
    return Wanted(False, tuple(sorted({*users, uid})), groups)


def limit(text: str) -> int:
    """Return how many rows are asked for. Raises BadRequest."""
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise BadRequest("limit is no number")
    return min(int(text), _ROWS_MOST)


def ids(given: dict[str, Any], name: str) -> tuple[int, ...]:
    """Return the ids of users or groups in a body. Raises BadRequest."""
    value = given.get(name, "")
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, list):
        raise BadRequest(f"{name} is no list of numbers", '"1000,1001"')
    try:
        found = tuple(sorted({int(str(word)) for word in words if str(word).strip()}))
    except ValueError:
        raise BadRequest(f"{name} is no list of numbers", '"1000,1001"') from None
    if len(found) > _IDS_MAX or any(not 0 <= one <= _ID_MAX for one in found):
        raise BadRequest(f"{name}: too many numbers, or one that is no id")
    return found


def secrets(given: dict[str, Any]) -> dict[str, str]:
    """Return the credentials in a body, as munge's payload has them: {location: "USER:PASSWORD"}.

    Raises BadRequest; no part of them is in its message.
    """
    found = given.get("authorized_locations", {})
    if not isinstance(found, dict) or len(found) > 50:
        raise BadRequest("authorized_locations is no object of location and USER:PASSWORD")
    for name, text in found.items():
        if not isinstance(text, str) or ":" not in text or len(name) > 300:
            raise BadRequest("authorized_locations is no object of location and USER:PASSWORD")
    return found
