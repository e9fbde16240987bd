"""What the gateway was asked for, by day, and what it has: for `udi stats` and Prometheus."""

from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from sqlalchemy import Connection, func, select

from rootless_udi.gateway.tables import IMAGES, JOBS, LOOKUPS, STARTS

_TOP = 10


def by_day(connection: Connection, since: float) -> dict[str, Any]:
    """Return the days since a time, the images that were looked up most, and what there is."""
    days: dict[str, dict[str, Any]] = {}
    users: dict[str, set[int]] = {}
    images: dict[str, set[str]] = {}
    query = select(LOOKUPS.c.time, LOOKUPS.c.uid, LOOKUPS.c.digest).where(LOOKUPS.c.time >= since)
    for when, uid, digest in connection.execute(query):
        day = _day(when)
        _row(days, day)["lookups"] += 1
        users.setdefault(day, set()).add(uid)
        images.setdefault(day, set()).add(digest)
    starts = select(STARTS.c.time).where(STARTS.c.time >= since)
    for (when,) in connection.execute(starts):
        _row(days, _day(when))["starts"] += 1
    ended = select(JOBS.c.changed, JOBS.c.state).where(JOBS.c.changed >= since)
    for when, state in connection.execute(ended.where(JOBS.c.state.in_(("READY", "FAILURE")))):
        _row(days, _day(when))["pulls" if state == "READY" else "failures"] += 1
    for day, row in days.items():
        row["users"], row["images"] = len(users.get(day, ())), len(images.get(day, ()))
    count = func.count().label("lookups")
    top = (
        select(LOOKUPS.c.tag, count)
        .where(LOOKUPS.c.time >= since)
        .group_by(LOOKUPS.c.tag)
        .order_by(count.desc(), LOOKUPS.c.tag)
        .limit(_TOP)
    )
    return {
        "days": [days[day] for day in sorted(days)],
        "top": [{"tag": tag, "lookups": number} for tag, number in connection.execute(top)],
        **held(connection),
    }


def held(connection: Connection) -> dict[str, int]:
    """Return how many images there are, how many of them are private, and their bytes."""
    total = select(func.count(), func.coalesce(func.sum(IMAGES.c.size), 0)).select_from(IMAGES)
    number, size = connection.execute(total).one()
    closed = connection.execute(total.where(~IMAGES.c.public)).one()[0]
    return {"images": number, "private": closed, "bytes": int(size)}


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d")


def _row(days: dict[str, dict[str, Any]], day: str) -> dict[str, Any]:
    empty = {"day": day, "lookups": 0, "starts": 0, "pulls": 0, "failures": 0}
    return days.setdefault(day, empty)


class Metrics:
    """What Prometheus is told. Counters begin at 0 with the gateway."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        name = "udi_gateway"
        self.lookups = Counter(f"{name}_lookups", "Images looked up", registry=self._registry)
        self.pulls = Counter(
            f"{name}_pulls", "Pulls that ended", ["state"], registry=self._registry
        )
        self._held = {
            word: Gauge(f"{name}_{word}", text, registry=self._registry)
            for word, text in (
                ("images", "Images in the store"),
                ("private", "Private images"),
                ("bytes", "Bytes of the images"),
                ("queue", "Pulls that wait or are being done"),
            )
        }

    def text(self, now: dict[str, int]) -> bytes:
        """Return Prometheus' text; `now` has the gauges."""
        for word, value in now.items():
            self._held[word].set(value)
        return generate_latest(self._registry)
