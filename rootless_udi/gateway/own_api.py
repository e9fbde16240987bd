"""The gateway's own requests, beside Shifter's: access lists, tokens, the log, images' files.

GET  /api/v1/access/SYSTEM/TYPE/TAG/    who may read it
POST /api/v1/access/SYSTEM/TYPE/TAG/    {"users": [...], "groups": [...], "remove": false}
GET  /api/v1/tokens/    POST {"scope", "days", "note"}, or {"revoke": NUMBER}
GET  /api/v1/audit/?limit=N             for administrators
GET  /api/v1/stats/?days=N              what was asked for; for administrators
POST /api/v1/expire/                    {"dry_run": true}; for administrators
GET  /metrics                           for Prometheus
GET  /api/v1/images/sha256:HEX/facts    its facts as JSON
GET  /api/v1/images/sha256:HEX          the file, with Range; the digest is its ETag
"""

import time
from typing import Any

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rootless_udi.gateway import audit, jobs, requests, sharing, statistics, tokens
from rootless_udi.gateway.catalogue import CatalogueEntry
from rootless_udi.gateway.image_file import ImageResponse
from rootless_udi.gateway.people import ADMINISTRATORS, Asker, Forbidden
from rootless_udi.gateway.requests import BadRequest
from rootless_udi.gateway.service import NotFound, Service

_NOTE_MOST = 200
_NUMBER_MOST = 2**31 - 1
"""What every database takes."""


def routes(service: Service) -> list[Route]:
    """Return the routes, which `service` answers."""
    api = _OwnApi(service)
    access = "/api/v1/access/{system}/{kind}/{tag:path}"
    return [
        Route(access, api.access, methods=["GET"]),
        Route(access, api.share, methods=["POST"]),
        Route("/api/v1/tokens/", api.tokens, methods=["GET"]),
        Route("/api/v1/tokens/", api.token, methods=["POST"]),
        Route("/api/v1/audit/", api.audit, methods=["GET"]),
        Route("/api/v1/stats/", api.stats, methods=["GET"]),
        Route("/api/v1/expire/", api.expire, methods=["POST"]),
        Route("/metrics", api.metrics, methods=["GET"]),
        Route("/api/v1/images/{digest}/facts", api.facts, methods=["GET"]),
        Route("/api/v1/images/{digest}", api.image, methods=["GET", "HEAD"]),
    ]


class _OwnApi:
    """A method for each of the gateway's own calls."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def _entry(self, request: Request, asker: Asker) -> CatalogueEntry:
        words, service = request.path_params, self._service
        service.check_system(words["system"])
        reference = requests.reference(words["kind"], words["tag"], service.site.registry)
        text = request.query_params.get("platform", "")
        platform = requests.platform(text, service.machine)
        found = await service.find(platform.key(), reference)
        if found is None or not (asker.admin or found.readable(asker.uid, asker.groups)):
            raise NotFound(
                "image not found",
                "there is none that you may read; `udi pull --site` has the gateway pull one",
            )
        return found

    async def access(self, request: Request) -> Response:
        """Say who may read an image, to who may."""
        asker = await self._service.asker(request)
        return JSONResponse(sharing.described(await self._entry(request, asker)))

    async def share(self, request: Request) -> Response:
        """Change an image's list: for its owners, and administrators."""
        asker = await self._service.asker(request, "all")
        given = await requests.body(request)
        entry = await self._entry(request, asker)
        users, groups = requests.ids(given, "users"), requests.ids(given, "groups")
        if not users and not groups:
            raise BadRequest("nobody is named", '{"users": [1000], "groups": []}')
        if entry.public:
            raise BadRequest("everybody may read this image already")
        if not asker.admin and asker.uid not in entry.owners:
            raise Forbidden(
                "only who was given the image by its registry may share it",
                "pull it with your own credentials first",
            )
        call = sharing.remove if given.get("remove") is True else sharing.add
        await self._service.change(call, asker.uid, entry.digest, users, groups)
        return JSONResponse(sharing.described(await self._entry(request, asker)))

    async def tokens(self, request: Request) -> Response:
        """List the asker's tokens."""
        asker = await self._service.asker(request, "all")
        found = await self._service.database.read(tokens.listed, asker.uid)
        return JSONResponse({"list": found})

    async def token(self, request: Request) -> Response:
        """Make a token for the asker himself, or take one back."""
        asker = await self._service.asker(request)
        if asker.how not in ("socket", "munge"):
            raise Forbidden("a token makes no tokens", "ask on the gateway's host, or with munge")
        given = await requests.body(request)
        if "revoke" in given:
            number = given["revoke"]
            if type(number) is not int or not 0 < number <= _NUMBER_MOST:
                raise BadRequest("revoke is no number of a token")
            await self._service.database.write(tokens.revoke, asker.uid, number)
            self._service.forget_tokens()
            return JSONResponse({"status": True})
        scope, days, note = (given.get(name) for name in ("scope", "days", "note"))
        if scope not in tokens.SCOPES:
            raise BadRequest("scope is none of its words", ", ".join(tokens.SCOPES))
        if isinstance(days, bool) or not isinstance(days, int | float):
            raise BadRequest("days is no number")
        if not 0 < days <= tokens.DAYS_MOST:
            raise BadRequest(f"days is out of bounds: up to {tokens.DAYS_MOST}")
        if not isinstance(note, str | None) or len(note or "") > _NOTE_MOST:
            raise BadRequest(f"note is no text of at most {_NOTE_MOST} characters")
        made = await self._service.database.write(
            tokens.make, asker.uid, scope, float(days), note or ""
        )
        return JSONResponse(made)

    async def audit(self, request: Request) -> Response:
        """Answer with the last rows of the log."""
        asker = await self._service.asker(request)
        if not asker.admin:
            raise Forbidden("only administrators read the log", ADMINISTRATORS)
        limit = requests.limit(request.query_params.get("limit", "100"))
        return JSONResponse({"list": await self._service.database.read(audit.last, limit)})

    async def stats(self, request: Request) -> Response:
        """Answer with what was asked for, by day."""
        asker = await self._service.asker(request)
        if not asker.admin:
            raise Forbidden("only administrators read the statistics", ADMINISTRATORS)
        days = requests.limit(request.query_params.get("days", "30"))
        await self._service.write_counts()
        since = time.time() - days * 86400.0
        return JSONResponse(await self._service.database.read(statistics.by_day, since))

    async def expire(self, request: Request) -> Response:
        """Remove what goes by the site's rules, or only say what would."""
        asker = await self._service.asker(request)
        # Read first: who is answered while he still sends it may see a broken connection alone.
        given = await requests.body(request)
        if asker.admin and not self._service.rules.any():
            raise BadRequest(
                "this gateway has no rules by which images expire",
                "udi gateway serve --keep=DAYS or --room=SIZE gives it some",
            )
        dry = given.get("dry_run") is not False
        return JSONResponse({"list": await self._service.apply_rules(asker, dry)})

    async def metrics(self, request: Request) -> Response:
        """Answer Prometheus: sums alone, nothing of one user or image."""
        await self._service.asker(request)
        now = await self._service.database.read(statistics.held)
        waiting = [
            job
            for job in await self._service.database.read(jobs.unfinished)
            if job.state not in jobs.DONE
        ]
        text = self._service.metrics.text({**now, "queue": len(waiting)})
        return Response(text, media_type="text/plain; version=0.0.4")

    async def image(self, request: Request) -> Response:
        """Send an image's file, or the part of it that the request's Range names."""
        digest = await self._readable(request)
        name = f"{digest.replace(':', '-', 1)}.sqfs"
        path = self._service.store.path("images", name)
        headers = {
            # The content of a digest never changes.
            "ETag": f'"{digest}"',
            "Cache-Control": "private, max-age=31536000, immutable",
            "Content-Disposition": "attachment",
        }
        if request.headers.get("if-none-match", "") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        if self._service.accel:
            # nginx sends it, by its own file descriptors and sendfile(2), and does the ranges.
            headers["X-Accel-Redirect"] = f"{self._service.accel}/images/{name}"
            return Response(media_type="application/vnd.squashfs", headers=headers)
        return ImageResponse(path, media_type="application/vnd.squashfs", headers=headers)

    async def facts(self, request: Request) -> Response:
        """Answer with what the store knows of an image."""
        digest = await self._readable(request)
        store = self._service.store
        image = store.image(digest)
        if image is None:
            raise NotFound("image not found")
        return JSONResponse(await trio.to_thread.run_sync(store.facts, image))

    async def _readable(self, request: Request) -> str:
        """Return the digest of the image that is asked for, to who may read it."""
        asker = await self._service.asker(request)
        digest = str(request.path_params["digest"])
        reference = requests.reference("id", digest, self._service.site.registry)
        entry: Any = await self._service.find("", reference)
        if entry is None or not (asker.admin or entry.readable(asker.uid, asker.groups)):
            raise NotFound("image not found")
        return digest
