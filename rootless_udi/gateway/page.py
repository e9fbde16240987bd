"""The gateway's pages: images, one image, the queue, who uses what. They show, and change nothing.

GET  /page/images?q=WORDS&order=used&page=N     GET /page/image?id=sha256:HEX
GET  /page/queue        GET /page/events        what the queue does, as server-sent events
GET  /page/usage?days=30&by=image               GET, POST /page/login, POST /page/logout
GET  /page/page.css, page.js, icon.svg

Each is whole without JavaScript; with it the queue moves. Every text from elsewhere is escaped by
Jinja, and the Content-Security-Policy lets nothing run that is not a file of ours.
"""

import hashlib
import re
import time
from collections.abc import Awaitable, Callable
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any

import trio
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from rootless_udi.gateway import (
    page_data,
    page_facts,
    page_live,
    page_session,
    page_usage,
    requests,
)
from rootless_udi.gateway.page_guard import PAGES
from rootless_udi.gateway.page_text import environment
from rootless_udi.gateway.people import Asker, group_name, user_name
from rootless_udi.gateway.requests import BadRequest
from rootless_udi.gateway.service import NotFound, Service
from rootless_udi.plan.reference import digest_fault

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # With no-referrer browsers would not say where a form comes from either.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_STATIC = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
_NEXT = re.compile(r"(images|image|queue|usage)(\?[A-Za-z0-9%&=+._:~-]*)?\Z")
_ROUTES = {404: "there is no such page", 405: "this page takes no such request"}
_WORDS_MOST = 200
_PAGES_MOST = 1_000_000


def routes(service: Service) -> list[Route]:
    """Return the routes, which `service` answers."""
    pages = _Pages(service)
    events = page_live.Events(service, pages.job_of)
    table: tuple[tuple[str, Callable[[Request], Awaitable[Response]], str], ...] = (
        ("", pages.first, "GET"),
        ("images", pages.images, "GET"),
        ("image", pages.image, "GET"),
        ("queue", pages.queue, "GET"),
        ("usage", pages.usage, "GET"),
        ("events", events.stream, "GET"),
        ("login", pages.login_form, "GET"),
        ("login", pages.login, "POST"),
        ("logout", pages.logout, "POST"),
    )
    found = [Route(PAGES + path, call, methods=[method]) for path, call, method in table]
    found += [Route(PAGES + name, _file, methods=["GET"]) for name in _STATIC]
    return [*found, Route(PAGES.rstrip("/"), pages.first, methods=["GET"])]


def is_of_page(request: Request) -> bool:
    """Tell whether a request is for a page: its errors are pages too."""
    return request.url.path.startswith(PAGES)


async def failed(
    service: Service, status: int, message: str, hint: str, request: Request
) -> Response:
    """Return an error as a page; to who must prove who he is, the form for that."""
    if status == 401:
        ended = "this session has ended" if page_session.COOKIE in request.cookies else ""
        why = message if request.method == "POST" else ended
        return _rendered("login.html", status, why=why, next=_next(request))
    title = HTTPStatus(status).phrase
    if message == title:
        # Starlette's own words say it twice.
        message = _ROUTES.get(status, message)
    values = {"title": title, "why": message, "hint": hint}
    asker = await page_session.found(service, request)
    # Only who may look is told what this gateway is of.
    systems = ", ".join(service.systems) if asker else ""
    return _rendered("error.html", status, asker=asker, systems=systems, menu=True, **values)


class _Pages:
    """A method for each page."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def first(self, request: Request) -> Response:
        """Lead to the list of images."""
        before = "" if request.url.path.endswith("/") else PAGES.strip("/") + "/"
        return RedirectResponse(f"{before}images", 303, HEADERS)

    def _page(self, name: str, asker: Asker, here: str, **values: Any) -> Response:
        systems = ", ".join(self._service.systems)
        frame = {"asker": asker, "here": here, "systems": systems, "menu": True}
        return _rendered(name, 200, **frame, **values)

    def shown(self, name: str) -> str:
        """Return a name of the store as users type it."""
        return page_facts.shown(name, self._service.site.registry)

    async def images(self, request: Request) -> Response:
        """Show the names that who looks may read; `q` are words in them."""
        asker = await page_session.looker(self._service, request)
        search = request.query_params.get("q", "").replace("\0", "")[:_WORDS_MOST]
        order = request.query_params.get("order", "used")
        number = _number(request, "page", 1, _PAGES_MOST)
        if order not in page_data.ORDERS:
            raise BadRequest("order is none of its words", ", ".join(page_data.ORDERS))
        rows, total = await self._service.database.read(
            page_data.images, asker, search, order, number
        )
        return self._page(
            "images.html",
            asker,
            "images",
            rows=rows,
            total=total,
            search=search,
            order=order,
            page=number,
            pages=max(1, -(-total // page_data.PAGE)),
            shown=self.shown,
        )

    async def image(self, request: Request) -> Response:
        """Show one image's facts and how it is run."""
        asker = await page_session.looker(self._service, request)
        digest = request.query_params.get("id", "")[:_WORDS_MOST]
        if digest_fault(digest):
            raise BadRequest("id is no digest of an image", "sha256:HEX")
        reference = requests.reference("id", digest, self._service.site.registry)
        entry = await self._service.find("", reference)
        if entry is None or not (asker.admin or entry.readable(asker.uid, asker.groups)):
            raise NotFound("there is no image of this digest here that you may read")
        database, store = self._service.database, self._service.store
        names = await database.read(page_data.names, digest)
        found = store.image(digest)
        if found is None:
            raise NotFound("the image's file is not in the store")
        facts = page_facts.read(await trio.to_thread.run_sync(store.facts, found))
        since = time.time() - page_usage.LONGEST * 86400
        used = await database.read(page_data.used_by, digest, since) if asker.admin else []
        title = self.shown(names[0][0]) if names else digest
        readers = await trio.to_thread.run_sync(_readers, entry.users, entry.groups, entry.owners)
        return self._page(
            "image.html",
            asker,
            "images",
            title=title,
            names=names,
            entry=entry,
            facts=facts,
            used=used,
            commands=page_facts.commands(title, digest, facts.options),
            readers=readers,
            shown=self.shown,
        )

    async def queue(self, request: Request) -> Response:
        """Show what is pulled, what waits and what ended lately."""
        asker = await page_session.looker(self._service, request)
        rows = await self._service.database.read(page_data.queue)
        found = [self.job_of(row, asker) for row in rows if row.shown_to(asker)]
        values = {"jobs": found, "blank": page_live.BLANK, "summary": page_live.summary(found)}
        return self._page("queue.html", asker, "queue", **values)

    def job_of(self, row: page_data.QueueRow, asker: Asker) -> page_live.Job:
        """Return a job as the page shows it."""
        said = self._service.queue.said(row)
        name = self.shown(row.name)
        who = "you" if row.uid == asker.uid else row.user if asker.admin else ""
        return page_live.job(row, name, said.done, said.total, who)

    async def usage(self, request: Request) -> Response:
        """Show who uses what over time: to administrators all of it, to others their own."""
        asker = await page_session.looker(self._service, request)
        days = _number(request, "days", 30, page_usage.LONGEST)
        by = request.query_params.get("by", "image")
        if by not in page_usage.KINDS or (by == "user" and not asker.admin):
            raise BadRequest("by is none of its words", "image; for administrators also user")
        await self._service.write_counts()
        found = await page_usage.read(
            self._service.database, asker, days, by, self.shown, self._service.starts.hashed
        )
        return self._page("usage.html", asker, "usage", days=days, by=by, **found)

    async def login_form(self, request: Request) -> Response:
        """Ask for a token."""
        return _rendered("login.html", 200, why="", next=_next(request))

    async def login(self, request: Request) -> Response:
        """Change a token for a cookie, and lead to where it was asked for."""
        response = RedirectResponse(_next(request) or "images", 303, HEADERS)
        await page_session.log_in(self._service, request, response)
        return response

    async def logout(self, request: Request) -> Response:
        """Have the browser forget who it is."""
        response = RedirectResponse("login", 303, HEADERS)
        page_session.log_out(response)
        return response


def _readers(users: Any, groups: Any, owners: Any) -> list[str]:
    words = [user_name(one) + (" (owner)" if one in owners else "") for one in users]
    return words + [f"group {group_name(one)}" for one in groups]


def _number(request: Request, name: str, usual: int, most: int) -> int:
    text = request.query_params.get(name, str(usual))
    if not text.isascii() or not text.isdecimal() or not 0 < int(text[:9]) <= most:
        raise BadRequest(f"{name} is no number from 1 to {most}")
    return int(text)


def _next(request: Request) -> str:
    """Return the page that was asked for before the login: one of ours, beside this one."""
    text = request.query_params.get("next", "")
    if not text:
        text = request.url.path.removeprefix(PAGES) + (f"?{request.url.query}".rstrip("?"))
    return text if len(text) <= _WORDS_MOST and _NEXT.match(text) else ""


@cache
def _content(name: str) -> tuple[bytes, str]:
    data = (Path(__file__).parent / "static" / name).read_bytes()
    return data, hashlib.sha256(data).hexdigest()[:16]


async def _file(request: Request) -> Response:
    """Answer with a file of ours. Pages name its content, so it is kept for ever."""
    name = request.url.path.removeprefix(PAGES)
    data, mark = _content(name)
    known = request.query_params.get("v") == mark
    kept = "public, max-age=31536000, immutable" if known else "no-cache"
    headers = {**HEADERS, "Cache-Control": kept}
    return Response(data, headers=headers, media_type=_STATIC[name])


def _rendered(template: str, status: int, **values: Any) -> Response:
    files = {name.replace(".", "_"): f"{name}?v={_content(name)[1]}" for name in _STATIC}
    whole = {"asker": None, "here": "", "systems": "", "menu": False, **files, **values}
    return HTMLResponse(environment().get_template(template).render(whole), status, HEADERS)
