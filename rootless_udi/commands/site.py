"""udi site: captures of machines, by which `udi check` tells whether an image will run there."""

import os

from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import page, say, tell
from rootless_udi.commands.common.given import Arguments, image_stores
from rootless_udi.commands.common.parsers import Parsers, add_json, command, group
from rootless_udi.config import load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootless_udi.forecast.site import Capture

_SECONDS = 30
"""For a capture of the web to arrive."""


def add(commands: Parsers) -> None:
    """Add the parsers of `udi site` and its actions."""
    actions = group(commands, "site", "captures of machines, for udi check")
    one = command(actions, "capture", capture, "write down what this machine has and can do")
    one.add_argument("--to", metavar="FILE", help="write it there; else print it")
    one.add_argument("--name", default="", help="the site's; default: by the configuration")
    one.add_argument("--on", choices=("login", "compute"), help="what this node is; default: told")
    one.add_argument("--merge", metavar="FILE", help="another capture, whose knowledge is added")
    one.add_argument("--force", action="store_true", help="replace FILE")
    one = command(actions, "add", add_site, "keep captures under a name; several are merged")
    one.add_argument("name")
    one.add_argument("source", nargs="+", metavar="FILE-OR-URL")
    one.add_argument("--force", action="store_true", help="replace the one of that name")
    one = command(actions, "list", list_sites, "the captures that have a name here")
    add_json(one)
    one = command(actions, "show", show, "what a capture says")
    one.add_argument("site", metavar="NAME-OR-FILE")
    add_json(one, "the capture itself")


def here(name: str = "", on: str = "here") -> "Capture":
    """Return a capture of this machine. Raises UdiError."""
    from rootless_udi.commands import doctor
    from rootless_udi.forecast import capture as reader
    from rootless_udi.forecast import places

    places.need_archspec()
    environ = dict(os.environ)
    site = load.load(environ)
    findings = [(one.state, one.what, one.found) for one in doctor.findings(environ)]
    try:
        store = image_stores(site)[0]
    except UdiError:
        store = ""
    return reader.capture(name or site.name or "here", site, findings, environ, store, on)


def capture(arguments: Arguments) -> int:
    """udi site capture: write or print the capture, after those that it is merged with."""
    from rootless_udi.commands.common.newfile import writing
    from rootless_udi.forecast import places, site

    name = arguments.name or (places.read(arguments.merge).name if arguments.merge else "")
    found = here(name or load.load(os.environ).name or "mysite", arguments.on or "")
    if arguments.merge:
        found = site.merge(found, places.read(arguments.merge))
    text = site.text(found)
    if arguments.to is None:
        page(text)
        return 0
    with writing(arguments.to, arguments.force) as file:
        file.write(text.encode())
    tell(f"{arguments.to}: {len(text) / 1000:.0f} KB, taken on {_taken(found)}; look at it before")
    tell("you publish it: your name, home and host name are left out, the site's paths are not")
    return 0


def add_site(arguments: Arguments) -> int:
    """udi site add: keep captures of files and of the web under a name."""
    from rootless_udi.commands.common.newfile import writing
    from rootless_udi.forecast import places, site

    site.check_name(arguments.name)
    found = [_read(one) for one in arguments.source]
    merged = site.merge(found[0].replace(name=arguments.name), *found[1:])
    folder = places.own_folder(os.environ)
    path = f"{folder}/{arguments.name}{places.SUFFIX}"
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UdiError(f"making {folder} failed: {error.strerror}") from None
    with writing(path, arguments.force) as file:
        file.write(site.text(merged).encode())
    say(path)
    return 0


def _read(source: str) -> "Capture":
    """Return the capture in a file or at an https URL. Raises UdiError."""
    from rootless_udi.forecast import places, site

    if "://" not in source:
        return places.read(source)
    if not source.startswith("https://"):
        raise UdiError(f"GET {source} failed: is no https URL", "download it, and add the file")
    import http.client

    from rootless_udi.pull.http import Transport

    try:
        reply = Transport().get(source, {"Accept": "application/json"})
        try:
            if reply.status != 200:
                raise UdiError(f"GET {source} failed: status {reply.status}")
            data = reply.read_all(site.LARGEST, f"site capture {source}")
        finally:
            reply.close()
    except (OSError, http.client.HTTPException) as error:
        raise UdiError(f"GET {source} failed: {error}") from None
    return site.parse(data, source)


def list_sites(arguments: Arguments) -> int:
    """udi site list: name, kind, when and where taken; what can't be read says why."""
    from rootless_udi.base import jsontext
    from rootless_udi.forecast import places

    rows = []
    for one in places.known(os.environ):
        try:
            text = _summary(places.read(one.path))
        except UdiError as error:
            text = error.message
        rows.append({"name": one.name, "kind": one.kind, "path": one.path, "what": text})
    if arguments.json:
        page(jsontext.text(rows) + "\n")
        return 0
    wide = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        say(f"{row['name']:<{wide}}  {row['kind']:<7}  {row['what']}")
    return 0


def _summary(found: "Capture") -> str:
    gpus = [str(one.get("name") or one.get("arch") or "GPU") for one in found.rows("gpus")]
    parts = [
        found.word("cpu", "name") or found.machine,
        f"Linux {found.word('system', 'kernel')}" if found.word("system", "kernel") else "",
        ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)),
        ", ".join(one["version"] for one in _mpis(found)),
        f"taken on {_taken(found)}",
    ]
    return "; ".join(part for part in parts if part)


def _mpis(found: "Capture") -> list[dict[str, str]]:
    rows = found.table("mpi").get("found")
    listed = rows if isinstance(rows, list) else []
    return [
        {"version": str(one.get("version", "")), "folder": str(one.get("folder", ""))}
        for one in listed
        if isinstance(one, dict)
    ]


def _taken(found: "Capture") -> str:
    rows = [f"{one.get('on', '?')} {one.get('date', '')}".strip() for one in found.rows("taken")]
    return ", ".join(rows) or "an unknown day"


def show(arguments: Arguments) -> int:
    """udi site show: a capture in lines for people, or as it is."""
    from rootless_udi.forecast import places, site

    found = places.find(arguments.site, os.environ)
    if arguments.json:
        page(site.text(found))
        return 0
    for line in _lines(found):
        say(line)
    return 0


def _lines(found: "Capture") -> list[str]:
    system, cpu = found.table("system"), found.table("cpu")
    able = [k for k in ("userns", "fuse", "overlay") if system.get(k) is True]
    unable = [k for k in ("userns", "fuse", "overlay") if system.get(k) is False]
    lines = [
        f"site      {found.name}, taken on {_taken(found)}",
        *(f"source    {text}" for text in found.data.get("source", ()) if isinstance(text, str)),
        f"system    {found.machine}, Linux {system.get('kernel', '?')}, {system.get('os', '?')}",
        f"able to   {', '.join(able) or 'nothing that was tried'}"
        + (f"; not to {', '.join(unable)}" if unable else ""),
        f"cpu       {cpu.get('name', '?')} ({cpu.get('generic', '?')}), {cpu.get('cores', '?')} "
        "cores",
        f"memory    {found.number('memory') / 1e9:.0f} GB" if found.knows("memory") else "",
        *(
            f"gpu       {one.get('name', '')} {one.get('capability', one.get('arch', ''))}".rstrip()
            for one in found.rows("gpus")
        ),
        *(f"driver    {vendor} {one.get('version', '')}" for vendor, one in _drivers(found)),
        *(f"mpi       {one['version']} in {one['folder']}" for one in _mpis(found)),
        *(
            f"launcher  {one.get('name')} {one.get('version', '')}: {_pmi(one)}"
            for one in found.rows("launchers")
        ),
        *(
            f"network   {one.get('name')} {one.get('kind', '')}".rstrip()
            for one in found.rows("networks")
        ),
    ]
    return [line for line in lines if line]


def _drivers(found: "Capture") -> list[tuple[str, dict[str, object]]]:
    return [(k, v) for k, v in found.table("drivers").items() if isinstance(v, dict)]


def _pmi(one: dict[str, object]) -> str:
    words = one.get("pmi")
    return ", ".join(map(str, words)) if isinstance(words, list) else "nothing is known of PMI"
