"""Shifter's REST interface, so that its clients and scripts work (imagegw/shifter_imagegw/api.py).

GET  /api/list/SYSTEM/                  GET /api/lookup/SYSTEM/TYPE/TAG/
POST /api/pull/SYSTEM/TYPE/TAG/         GET /api/queue/SYSTEM/
GET  /api/expire/SYSTEM/TYPE/TAG/       GET /api/autoexpire/SYSTEM/
GET  /api/metrics/SYSTEM/?limit=N       POST /api/doimport/SYSTEM/TYPE/TAG/
"""

import json
from typing import Any

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from rootless_udi.gateway import catalogue, jobs, requests
from rootless_udi.gateway.catalogue import CatalogueEntry
from rootless_udi.gateway.people import Asker, Forbidden
from rootless_udi.gateway.quick import KnownAnswer
from rootless_udi.gateway.requests import BadRequest
from rootless_udi.gateway.service import NotFound, Service
from rootless_udi.plan.reference import Platform, parse
from rootless_udi.pull.gateway import ANY_SYSTEM
from rootless_udi.shifter.lines import tag_of
from rootless_udi.store import find


def routes(service: Service) -> list[Route]:
    """Return the routes, which `service` answers."""
    api = _Api(service)
    # The commonest first: Starlette tries one after the other.
    table = (
        ("/api/lookup/{system}/{kind}/{tag:path}", "GET", api.lookup),
        ("/api/pull/{system}/{kind}/{tag:path}", "POST", api.pull),
        ("/api/list/{system}/", "GET", api.list),
        ("/api/list/{system}", "GET", api.list),
        ("/api/queue/{system}/", "GET", api.queue),
        ("/api/queue/{system}", "GET", api.queue),
        ("/api/expire/{system}/{kind}/{tag:path}", "GET", api.expire),
        ("/api/autoexpire/{system}/", "GET", api.autoexpire),
        ("/api/autoexpire/{system}", "GET", api.autoexpire),
        ("/api/metrics/{system}/", "GET", api.metrics),
        ("/api/metrics/{system}", "GET", api.metrics),
        ("/api/doimport/{system}/{kind}/{tag:path}", "POST", api.doimport),
        ("/", "GET", api.help),
    )
    return [Route(path, call, methods=[method]) for path, method, call in table]


class _Api:
    """A method for each of Shifter's calls."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def _system(self, request: Request) -> str:
        return _system(self._service, str(request.path_params["system"]))

    def _reference(self, request: Request) -> Any:
        words = request.path_params
        return requests.reference(words["kind"], words["tag"], self._service.site.registry)

    def _platform(self, request: Request, given: dict[str, Any] | None = None) -> Any:
        return _platform(self._service, _platform_text(request, given))

    async def help(self, request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            return RedirectResponse("page/images", 303)
        return PlainTextResponse("{lookup,pull,expire,list}")

    async def lookup(self, request: Request) -> Response:
        """Answer with the image's record, and count the use."""
        asker = await self._service.asker(request)
        words = request.path_params
        tag = str(words["tag"]).strip("/")
        asked = (str(words["system"]), str(words["kind"]), tag, _platform_text(request))
        found = await look_up(self._service, asker, *asked)
        self._service.count(asker, found.system, found.kind, found.tag, found.entry.digest)
        return Response(found.body, media_type="application/json")

    async def list(self, request: Request) -> Response:
        """Answer with the records of all images that the asker may read."""
        asker = await self._service.asker(request)
        system = self._system(request)
        platform = self._platform(request).key()
        text = await self._service.database.read(_listed, system, platform, asker)
        return Response(text, media_type="application/json")

    async def pull(self, request: Request) -> Response:
        """Put a pull into the queue, or say how the one that is there goes."""
        asker = await self._service.asker(request, "pull")
        if asker.uid < 0:
            raise Forbidden("only who proves who he is may pull")
        system = self._system(request)
        given = await requests.body(request)
        reference, platform = self._reference(request), self._platform(request, given)
        if reference.kind != "registry":
            raise BadRequest("an image is pulled by its name", "docker, and NAME[:TAG]")
        wanted = requests.wanted(given, asker.uid)
        secrets = {**asker.secrets, **requests.secrets(given)}
        name = find.name_of(reference)
        job, new = await self._service.pull(asker, platform.key(), reference, wanted, secrets)
        if not new and job.state == "READY":
            entry = await self._service.find(platform.key(), reference)
            if entry is not None and entry.readable(asker.uid, asker.groups):
                return Response(record(system, entry), media_type="application/json")
        return JSONResponse(self._job(system, job, "INIT" if new else job.state, name))

    def _job(self, system: str, job: Any, state: str, name: str) -> dict[str, Any]:
        """Return a record of an image that is not there yet, as Shifter's clients read it."""
        said = self._service.queue.said(job)
        return {
            **dict.fromkeys(("id", "ENV", "ENTRY", "WORKDIR", "LABELS"), "MISSING"),
            "system": system,
            "itype": "docker",
            "tag": [tag_of(parse(name, self._service.site.registry))],
            "status": state,
            "userACL": list(catalogue.wanted_of(job.access).users),
            "groupACL": list(catalogue.wanted_of(job.access).groups),
            "last_pull": float(job.created),
            "status_message": job.message,
            "done": said.done,
            "total": said.total,
        }

    async def queue(self, request: Request) -> Response:
        """Answer with what waits, what is being pulled, and what failed lately."""
        asker = await self._service.asker(request)
        system = self._system(request)
        rows = []
        for job in await self._service.database.read(jobs.unfinished):
            # Whoever brings credentials asks for what is not everybody's to know.
            if job.secret and not asker.admin and job.uid != asker.uid:
                continue
            whole = self._job(system, job, job.state, job.name)
            kept = ("status", "status_message", "done", "total")
            rows.append({"image": whole["tag"][0], **{name: whole[name] for name in kept}})
        return JSONResponse({"list": rows})

    async def expire(self, request: Request) -> Response:
        """Remove an image's name, and the image if it has no other."""
        asker = await self._service.asker(request, "all")
        self._system(request)
        platform = self._platform(request)
        await self._service.expire(asker, self._reference(request), platform)
        return JSONResponse({"status": True})

    async def autoexpire(self, request: Request) -> Response:
        """Remove what broken pulls left; for administrators."""
        asker = await self._service.asker(request)
        self._system(request)
        return JSONResponse({"status": True, "removed": await self._service.autoexpire(asker)})

    async def metrics(self, request: Request) -> Response:
        """Answer with the last lookups; for administrators, as Shifter's: [] for others."""
        asker = await self._service.asker(request)
        self._system(request)
        limit = requests.limit(request.query_params.get("limit", "10"))
        return JSONResponse(await self._service.lookups(limit) if asker.admin else [])

    async def doimport(self, request: Request) -> Response:
        """Put a squashfs file of the asker's into the queue, where the site lets users import."""
        asker = await self._service.asker(request, "pull")
        if asker.uid < 0:
            raise Forbidden("only who proves who he is may import")
        self._service.check_import()
        system = self._system(request)
        given = await requests.body(request)
        platform = self._platform(request, given)
        path, kind = given.get("filepath"), given.get("format", "squashfs")
        if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
            raise BadRequest("filepath is no absolute path", '{"filepath": "/home/me/x.sqfs"}')
        if kind != "squashfs":
            raise BadRequest(f"files of format {str(kind)[:40]!r} are not imported", "squashfs")
        reference = requests.imported(str(request.path_params["tag"]), asker.user)
        wanted = requests.wanted(given, asker.uid)
        job, new = await self._service.import_file(asker, platform.key(), reference, wanted, path)
        if not new and job.state == "READY":
            entry = await self._service.find(platform.key(), reference)
            if entry is not None and entry.readable(asker.uid, asker.groups):
                return Response(record(system, entry), media_type="application/json")
        name = find.name_of(reference)
        return JSONResponse(self._job(system, job, "INIT" if new else job.state, name))


async def look_up(
    service: Service, asker: Asker, system: str, kind: str, tag: str, platform: str = ""
) -> KnownAnswer:
    """Return the answer to a lookup. Raises BadRequest and NotFound."""
    system, tag = _system(service, system), tag.strip("/")
    reference = requests.reference(kind, tag, service.site.registry)
    found = await service.find(_platform(service, platform).key(), reference)
    if found is None or not found.readable(asker.uid, asker.groups):
        # The same answer to both: that an image is there is its readers' to know.
        raise NotFound(
            "image not found",
            "there is none that you may read; `udi pull --site` has the gateway pull one",
        )
    return KnownAnswer(found, record(system, found).encode(), system, kind, tag)


def _system(service: Service, system: str) -> str:
    if system == ANY_SYSTEM:
        return service.systems[0]
    service.check_system(system)
    return system


def _platform_text(request: Request, given: dict[str, Any] | None = None) -> Any:
    return (given or {}).get("platform", "") or request.query_params.get("platform", "")


def _platform(service: Service, text: Any) -> Platform:
    if not isinstance(text, str) or len(text) > 60:
        raise BadRequest("platform is no OS/ARCHITECTURE")
    return requests.platform(text, service.machine)


def record(system: str, entry: CatalogueEntry) -> str:
    """Return an image's record as JSON, with the fields of Shifter's create_response."""
    facts = entry.facts
    return json.dumps(
        {
            "id": entry.digest.partition(":")[2],
            "system": system,
            "itype": "docker",
            "tag": [tag_of(parse(name)) for name in entry.names],
            "status": "READY",
            "userACL": list(entry.users),
            "groupACL": list(entry.groups),
            "ENV": facts.get("ENV", []),
            "ENTRY": facts.get("ENTRY") or "MISSING",
            "WORKDIR": facts.get("WORKDIR") or "MISSING",
            "LABELS": facts.get("LABELS", {}),
            # Shifter's client takes only a number with a point.
            "last_pull": float(entry.pulled) if entry.pulled % 1 else entry.pulled + 1e-6,
            "status_message": "",
            "size": entry.size,
        }
    )


def _listed(connection: Connection, system: str, platform: str, asker: Asker) -> bytes:
    parts = [
        record(system, entry)
        for entry in catalogue.named(connection, platform)
        if asker.admin or entry.readable(asker.uid, asker.groups)
    ]
    return f'{{"list": [{", ".join(parts)}]}}'.encode()
