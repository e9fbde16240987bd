"""Who sees what of the gateway's pages, and what another site's page can't make a browser do."""

import hashlib
import http.client
import json
import re
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import User
from tests.kit.browser import Browser
from tests.kit.forwarding import forwarded
from tests.kit.gateway import SYSTEM, Answer, Gateway, gateway
from tests.kit.images import Layout, tar
from tests.kit.postgres import cluster
from tests.kit.pulling import HERE
from tests.kit.registry import PASSWORD, USER, Quiet, Registry, serve

pytestmark = pytest.mark.needs("registry", "skopeo", "gateway")

STRANGER, OTHER = "udi_stranger", 4711


@pytest.fixture
def served(user: User, tmp_path: Path) -> Iterator[Gateway]:
    with gateway(user, tmp_path / "site") as one:
        yield one


def insert(one: Gateway, table: str, **values: object) -> None:
    with sqlite3.connect(one.store / "gateway/gateway.sqlite") as base:
        marks = ", ".join("?" * len(values))
        base.execute(
            f"insert into {table} ({', '.join(values)}) values ({marks})", [*values.values()]
        )


def own_token(one: Gateway) -> dict[str, object]:
    body = {"scope": "all", "days": 1}
    return dict(one.ask("POST", "/api/v1/tokens/", body).body)


def log_in(one: Gateway, token: str) -> str:
    """Change a token for a cookie, as the form does; return the cookie's text."""
    headers = {"Origin": f"http://127.0.0.1:{one.port}", "Host": f"127.0.0.1:{one.port}"}
    found = one.ask("POST", "/page/login", f"token={token}".encode(), True, **headers)
    assert found.status == 303, found
    cookie = found.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie
    return cookie.partition(";")[0]


def page(one: Gateway, path: str, cookie: str) -> Answer:
    return one.ask("GET", f"/page/{path}", None, True, Cookie=cookie)


def first_event(one: Gateway, cookie: str) -> dict[str, object]:
    """Return what a stream of the queue begins with."""
    connection = http.client.HTTPConnection("127.0.0.1", one.port, timeout=60)
    connection.request("GET", "/page/events", headers={"Cookie": cookie})
    answer = connection.getresponse()
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    while not (line := answer.readline()).startswith(b"data: "):
        assert line
    # The answer has the socket now, and goes on.
    answer.close()
    connection.close()
    return dict(json.loads(line.removeprefix(b"data: ")))


def test_who_sees_what(served: Gateway, registry: Registry, closed: Registry, user: User) -> None:
    served.pulled(f"{registry.host}/site/big:1")
    tag = f"{closed.host}/site/box:1"
    hidden = served.pulled(tag, authorized_locations={closed.host: f"{USER}:{PASSWORD}"})
    digest = "sha256:" + hidden["id"]
    now = time.time()
    mark = hashlib.sha256(STRANGER.encode()).hexdigest()
    row = {"mark": mark, "uid": OTHER, "scope": "read", "note": "", "created": now}
    insert(served, "tokens", **row, expires=now + 1000)
    for uid, name in ((user.uid, user.name), (OTHER, "stranger")):
        asked = {"time": now, "uid": uid, "user": name, "system": SYSTEM, "type": "docker"}
        insert(served, "lookups", **asked, tag=f"looked/up:{uid}", digest=digest)
    begun = {"id": "1", "time": now, "user": str(user.uid), "digest": digest}
    insert(served, "starts", **begun)
    mine, theirs = log_in(served, str(own_token(served)["token"])), log_in(served, STRANGER)
    # The list is what the REST interface lists.
    bearer = {"Authorization": f"Bearer {STRANGER}"}
    rest = served.ask("GET", f"/api/list/{SYSTEM}/", None, True, **bearer)
    listed = page(served, "images", theirs).body
    names = re.findall(r'<td class="name"><a [^>]*>(.*?)</a>', listed)
    tags = [one for record in rest.body["list"] for one in record["tag"]]
    assert [one.replace("<wbr>", "") for one in names] == tags == [f"{registry.host}/site/big:1"]
    assert page(served, f"images?q={hidden['id'][:12]}", mine).body.count('class="name"') == 1
    for path in ("images", "queue", "usage", f"images?q={hidden['id']}", f"image?id={digest}"):
        own, other = page(served, path, mine), page(served, path, theirs)
        assert own.status == 200, own
        assert tag not in other.body.replace("<wbr>", "") and closed.host not in other.body, path
        assert other.status == (404 if path.startswith("image?") else 200)
    # Neither is an administrator by a token: each sees his own use alone.
    assert f"looked/up:{user.uid}" in page(served, "usage", mine).body
    assert f"looked/up:{OTHER}" not in page(served, "usage", mine).body
    assert f"looked/up:{user.uid}" not in page(served, "usage", theirs).body
    assert "Starts of yours by day" in page(served, "usage", mine).body
    assert "Starts" not in page(served, "usage", theirs).body
    assert page(served, "usage?by=user", mine).status == 400
    assert tag in json.dumps(first_event(served, mine))
    assert closed.host not in json.dumps(first_event(served, theirs))
    # The owner shares it with him, and takes it back.
    access = f"/api/v1/access/{SYSTEM}/docker/{tag}/"
    assert served.ask("POST", access, {"users": [OTHER]}).status == 200
    assert page(served, f"image?id={digest}", theirs).status == 200
    # One look at the queue serves all who ask for it in the same moment.
    end = time.monotonic() + 60
    while closed.host not in json.dumps(first_event(served, theirs)):
        assert time.monotonic() < end
    assert served.ask("POST", access, {"users": [OTHER], "remove": True}).status == 200
    assert page(served, f"image?id={digest}", theirs).status == 404


def test_a_cookie_is_good_for_the_pages_while_its_token_is(served: Gateway) -> None:
    made = own_token(served)
    cookie = log_in(served, str(made["token"]))
    name, _, value = cookie.partition("=")
    number, when, code = value.split(".")
    assert page(served, "images", cookie).status == 200
    assert served.ask("GET", f"/api/list/{SYSTEM}/", None, True, Cookie=cookie).status == 401
    assert (
        served.ask(
            "GET", f"/api/list/{SYSTEM}/", None, True, Authorization=f"Bearer {value}"
        ).status
        == 401
    )
    wrong = (f"{number}.{when}.{'0' * 64}", f"{number}.{int(when) + 1}.{code}", f"{when}.{code}")
    long_ago = int(time.time()) - 8 * 86400
    for text in (
        *wrong,
        f"{int(number) + 1}.{when}.{code}",
        f"{number}.{long_ago}.{code}",
        "é",
        "",
    ):
        found = page(served, "images", f"{name}={text}")
        assert found.status == 401 and "Paste a token" in found.body, text
    assert "This session has ended" in page(served, "images", f"{name}={wrong[0]}").body
    # A form of 100 KB, one without a token, one with another's.
    host = {"Origin": f"http://127.0.0.1:{served.port}", "Host": f"127.0.0.1:{served.port}"}
    for body, status in ((b"token=" + b"x" * 100_000, 413), (b"", 401), (b"token=udi_no", 401)):
        assert served.ask("POST", "/page/login", body, True, **host).status == status
    # Where a web server with TLS stands in front, the cookie is for TLS alone.
    body = f"token={made['token']}".encode()
    found = served.ask("POST", "/page/login?next=//evil.example", body, True, **host)
    assert found.headers["location"] == "images" and "Secure" not in found.headers["set-cookie"]
    tls = {**host, "X-Forwarded-Proto": "https"}
    assert "Secure" in served.ask("POST", "/page/login", body, True, **tls).headers["set-cookie"]
    assert served.ask("POST", "/api/v1/tokens/", {"revoke": made["id"]}).status == 200
    assert page(served, "images", cookie).status == 401
    assert page(served, "events", cookie).status == 401


def test_heads_and_errors(served: Gateway, registry: Registry, user: User) -> None:
    for path in ("images", "queue", "usage", "login", "nothing", "image?id=1", "images?order=x"):
        found = served.get(f"/page/{path}")
        policy = found.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'self'; script-src 'self'"), path
        assert found.headers["cache-control"] == "no-store" and "<!DOCTYPE html>" in found.body
        assert found.headers["x-content-type-options"] == "nosniff"
    for path, status in (
        ("nothing", 404),
        (f"image?id=sha256:{'0' * 64}", 404),
        ("image?id=../../etc/passwd", 400),
        ("images?order=x", 400),
        ("images?page=0", 400),
        (f"images?page={'9' * 400}", 400),
        ("usage?days=91", 400),
        ("usage?by=x", 400),
        ("images?page=7", 200),
        (f"images?q={'%25_' * 900}", 200),
        ("images?q=%00%1b%ff", 200),
    ):
        found = served.get(f"/page/{path}")
        assert found.status == status, path
        # Errors too lead to the other pages, and say who one is and where.
        assert 'aria-label="Pages"' in found.body and SYSTEM in found.body, path
        assert f"<span>{user.name} " in found.body, path
    assert "<p>There is no such page.</p>" in served.get("/page/nothing").body
    # To who proves nothing they say neither.
    stranger = served.ask("GET", "/page/nothing", None, True)
    assert stranger.status == 404 and '<a href="queue">' in stranger.body
    assert SYSTEM not in stranger.body and user.name not in stranger.body
    body = served.ask("POST", "/page/images", b"", Origin="http://gateway").body
    assert "<p>This page takes no such request.</p>" in body
    unknown = served.get(f"/page/image?id=sha256:{'0' * 64}").body
    assert "There is no image of this digest here that you may read." in unknown
    # The file of an image is gone, and the gateway does not know it yet.
    digest = "sha256:" + served.pulled(f"{registry.host}/site/box:1")["id"]
    served.store.joinpath("images", digest.replace(":", "-") + ".sqfs").unlink()
    found = served.get(f"/page/image?id={digest}")
    assert found.status == 404 and "The image&#39;s file is not in the store." in found.body
    assert served.ask("POST", "/page/images", b"", Sec_Fetch_Site="none").status in (403, 405)
    link = re.search(r'href="(page\.css\?v=\w+)"', served.get("/page/images").body)
    assert link and "immutable" in served.get(f"/page/{link[1]}").headers["cache-control"]
    assert served.get("/page/page.css?v=old").headers["cache-control"] == "no-cache"
    # People who go to the gateway's address come to its pages; programs get Shifter's answer.
    assert served.get("/").body == "{lookup,pull,expire,list}"
    assert served.get("/", Accept="text/html").headers["location"] == "page/images"
    assert served.get("/page").headers["location"] == "page/images"


def test_one_byte(served: Gateway, registry: Registry, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "tiny")
    layout.image("1", [tar([("file", b"x", {})])], {}, HERE.architecture)
    registry.push(layout.path, "1", "site/tiny:1")
    digest = "sha256:" + served.pulled(f"{registry.host}/site/tiny:1")["id"]
    assert "of 1 byte in " in served.get(f"/page/image?id={digest}").body
    for size in range(3):
        row = {"digest": f"sha256:{size:064x}", "size": size, "pulled": 1e9, "used": 1e9}
        insert(served, "images", **row, public=1, facts="{}")
        name = {"platform": HERE.key(), "name": f"docker.io/a:{size}", "digest": row["digest"]}
        insert(served, "names", **name, pulled=1e9)
    body = served.get("/page/images").body
    assert all(f">{words}<" in body for words in ("0 bytes", "1 byte", "2 bytes")), body


def test_many_follow_the_queue(served: Gateway) -> None:
    """Each is a connection: one user has a few, they are given back, and none keeps the end."""
    cookie = log_in(served, str(own_token(served)["token"]))
    streams = []
    for _ in range(8):
        one = socket.create_connection(("127.0.0.1", served.port))
        one.sendall(f"GET /page/events HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\n\r\n".encode())
        while b"data: " not in one.recv(65536):
            pass
        streams.append(one)
    assert page(served, "events", cookie).status == 429
    assert page(served, "queue", cookie).status == 200
    for one in streams[:7]:
        one.close()
    end = time.monotonic() + 60
    while page_status(served, cookie) != 200:
        assert time.monotonic() < end
    assert served.stop() == 0
    assert streams[7].recv(65536) is not None


def test_many_begin_to_follow_the_queue_at_once(served: Gateway) -> None:
    """None passes the limit while another one is being looked at."""
    cookie = log_in(served, str(own_token(served)["token"]))
    streams = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(40)]
    for one in streams:
        one.sendall(f"GET /page/events HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\n\r\n".encode())
    statuses = [int(one.recv(65536).split()[1]) for one in streams]
    assert sorted(statuses) == [200] * 8 + [429] * 32
    # Those that were refused are not counted.
    streams[statuses.index(200)].close()
    end = time.monotonic() + 60
    while page_status(served, cookie) != 200:
        assert time.monotonic() < end
    for one in streams:
        one.close()


def page_status(served: Gateway, cookie: str) -> int:
    """Return the status of a stream's head alone."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    connection.request("GET", "/page/events", headers={"Cookie": cookie})
    answer = connection.getresponse()
    status = answer.status
    answer.close()
    connection.close()
    return status


CROSS = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


REQUESTS: list[tuple[str, str, dict[str, str], int]] = [
    # A link from elsewhere leads to a page; nothing else of another site is answered.
    ("GET", "/page/images", CROSS, 200),
    ("GET", "/page/images", {**CROSS, "Sec-Fetch-Dest": "iframe"}, 403),
    ("GET", "/page/images", {**CROSS, "Sec-Fetch-Mode": "no-cors"}, 403),
    ("GET", f"/api/list/{SYSTEM}/", CROSS, 403),
    ("GET", f"/api/expire/{SYSTEM}/docker/box/", CROSS, 403),
    ("GET", f"/api/list/{SYSTEM}/", {"Sec-Fetch-Site": "same-site"}, 403),
    ("GET", f"/api/list/{SYSTEM}/", {"Sec-Fetch-Site": "same-origin"}, 200),
    ("GET", f"/api/list/{SYSTEM}/", {"Origin": "http://evil.example"}, 403),
    ("GET", f"/api/list/{SYSTEM}/", {"Origin": "null"}, 403),
    ("GET", f"/api/list/{SYSTEM}/", {"Host": "localhost:80", "Origin": "http://localhost:80"}, 200),
    ("POST", "/page/logout", {"Sec-Fetch-Site": "cross-site"}, 403),
    ("POST", "/page/login", {}, 403),
    # A name that is made to mean this machine: the socket's peer does not count.
    ("GET", f"/api/list/{SYSTEM}/", {"Host": "evil.example:8080"}, 401),
    ("GET", "/page/images", {"Host": "evil.example"}, 401),
    ("GET", "/page/images", {"Host": "127.0.0.1.evil.example."}, 401),
    ("GET", "/page/images", {"Host": "127.0.0.1:8080"}, 200),
    ("GET", "/page/images", {"Host": "[::1]:8080"}, 200),
    ("GET", "/page/images", {"Host": "a.localhost"}, 200),
]


def test_other_sites(served: Gateway) -> None:
    for method, path, headers, status in REQUESTS:
        found = served.ask(method, path, None, False, **headers)
        assert found.status == status, (method, path, headers, found)


@pytest.mark.needs("chromium")
def test_another_sites_page_in_a_browser(
    browser: Browser, served: Gateway, registry: Registry
) -> None:
    """Its frames, pictures, forms and requests gain nothing where ssh forwards the socket."""
    tag = f"{registry.host}/site/box:1"
    served.pulled(tag)
    with forwarded(served.socket) as port:
        ours = f"http://localhost:{port}"
        expire = f"{ours}/api/expire/{SYSTEM}/docker/{tag}/"

        class Evil(Quiet):
            def do_GET(self) -> None:
                page = f"""<!DOCTYPE html><title>evil</title>
                <iframe src="{ours}/page/images"></iframe>
                <img src="{expire}"><form method="post" action="{ours}/page/logout"></form>
                <script>
                const done = [];
                const ask = (url, more) => fetch(url, {{credentials: "include", ...more}})
                  .then(answer => done.push(answer.status), error => done.push("refused"));
                Promise.all([ask("{expire}", {{mode: "no-cors"}}), ask("{ours}/api/list/{SYSTEM}/"),
                  ask("{ours}/page/events"), ask("{ours}/api/v1/expire/", {{method: "POST",
                  mode: "no-cors", body: '{{"dry_run": false}}'}})])
                  .then(() => {{ document.title = "asked " + done.join(" "); }});
                </script>"""
                self.answer(200, page.encode(), Content_Type="text/html")

        evil = serve(Evil)
        try:
            # The same site for browsers (localhost), and another.
            for name in ("localhost", "127.0.0.1"):
                browser.open(f"http://{name}:{evil.server_port}/")
                browser.until(lambda: browser.driver.title.startswith("asked"))
                assert "200" not in browser.driver.title
                frame = browser.one("iframe")
                browser.driver.switch_to.frame(frame)
                assert "site/box" not in browser.driver.page_source
                browser.driver.switch_to.default_content()
                browser.driver.execute_script("document.forms[0].submit()")
                browser.until(lambda: "another site" in browser.text)
        finally:
            evil.shutdown()
            evil.server_close()
        assert served.get(f"/api/lookup/{SYSTEM}/docker/{tag}/").status == 200
        browser.open(f"{ours}/page/images")
        assert "site/box" in browser.text


@pytest.mark.needs("postgresql")
def test_the_pages_of_a_shared_database(user: User, tmp_path: Path, registry: Registry) -> None:
    """PostgreSQL takes what SQLite takes: the lists, the queue, what is used by day."""
    with (
        cluster(user, user.home / "c") as base,
        gateway(user, tmp_path / "site", f"--database={base.url}") as one,
    ):
        one.pulled(f"{registry.host}/site/big:1")
        one.get(f"/api/lookup/{SYSTEM}/docker/{registry.host}/site/big:1/")
        for path in ("images", "images?q=BIG%25", "images?q=big&order=name", "queue", "usage"):
            found = one.get(f"/page/{path}")
            assert found.status == 200, found
            named = "site/big:1" in found.body.replace("<wbr>", "")
            assert named is ("%25" not in path), path
        token = str(one.ask("POST", "/api/v1/tokens/", {"scope": "read", "days": 1}).body["token"])
        cookie = log_in(one, token)
        assert "1 name" in page(one, "images", cookie).body
        assert "site/big:1" in json.dumps(first_event(one, cookie))
