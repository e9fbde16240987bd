"""The ASGI application: routes, and how errors are answered."""

import functools
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from rootless_udi.base.errors import UdiError, plain
from rootless_udi.gateway import munge, own_api, page, page_guard, shifter_api
from rootless_udi.gateway.access import NoId, NoLists
from rootless_udi.gateway.connection import Quick
from rootless_udi.gateway.database import Unavailable
from rootless_udi.gateway.jobs import TooMany
from rootless_udi.gateway.limits import Busy
from rootless_udi.gateway.people import Denied, Forbidden
from rootless_udi.gateway.quick import QuickAnswers
from rootless_udi.gateway.requests import BadRequest, TooLarge, TooSlow
from rootless_udi.gateway.service import NotFound, Service
from rootless_udi.gateway.tokens import NoToken

_STATUS: tuple[tuple[type[UdiError], int], ...] = (
    (TooLarge, 413),
    (TooSlow, 408),
    (BadRequest, 400),
    (Denied, 401),
    (munge.BadCredential, 401),
    (Forbidden, 403),
    (NoLists, 403),
    (NoId, 400),
    (NotFound, 404),
    (NoToken, 400),
    (TooMany, 429),
    (Busy, 429),
    (munge.Unreachable, 503),
    (Unavailable, 503),
)


def application(service: Service) -> Callable[..., Any]:
    """Return the ASGI application that `service` answers."""
    handlers: dict[Any, Any] = {
        UdiError: functools.partial(_error, service),
        HTTPException: functools.partial(_refused, service),
    }
    routes = shifter_api.routes(service) + own_api.routes(service) + page.routes(service)
    return page_guard.around(Starlette(routes=routes, exception_handlers=handlers))


def quick(service: Service) -> Quick:
    """Return what answers plain lookups before the application is asked."""
    return QuickAnswers(service, functools.partial(shifter_api.look_up, service)).answer


def status_of(error: UdiError) -> int:
    """Return the HTTP status of an error."""
    return next((code for kind, code in _STATUS if isinstance(error, kind)), 500)


async def _error(service: Service, request: Request, error: Exception) -> Response:
    assert isinstance(error, UdiError)
    return await _answer(service, request, status_of(error), error.message, error.hint)


async def _refused(service: Service, request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return await _answer(service, request, error.status_code, str(error.detail))


async def _answer(
    service: Service, request: Request, status: int, message: str, hint: str = ""
) -> Response:
    """Return an error as Shifter's gateway writes it; of a page as one."""
    if page.is_of_page(request):
        return await page.failed(service, status, message, hint, request)
    found = {"status": status, "error": plain(message), "message": plain(message)}
    return JSONResponse({**found, "hint": plain(hint)} if hint else found, status)
