"""What `udi config show` and `udi config check` print. Off the start path."""

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from rootless_udi.base.errors import UdiError
from rootless_udi.config import files, load
from rootless_udi.config.document import Problem
from rootless_udi.config.merge import merge
from rootless_udi.config.schema import SITE_KEYS
from rootless_udi.plan import modules, sizes
from rootless_udi.plan.site import BUILT_IN, Site
from rootless_udi.plan.volumes import shown


def merged(environ: Mapping[str, str]) -> tuple[Site, list[Problem]]:
    """Return the merged configuration, with `$NAME` as it was written, and all problems.

    Raises UdiError where a file can't be read or may be written by others.
    """
    sources = files.find(environ)
    return merge(sources, [files.read(source) for source in sources])


def show(site: Site) -> str:
    """Return each key with its value and the file and line that it came from.

    In most lines the part before " # " is TOML. Mounts, operations on the environment (in their
    order), MPI profiles and modules are listed in words.
    """
    rows = [
        (f"{key} = {_value(key, getattr(site, SITE_KEYS[key][0]))}", site.origin(key))
        for key in SITE_KEYS
    ]
    for name, source in site.etc:
        one = site.origin(f"etc.files.{name}")
        origin = one if one != BUILT_IN else site.origin("etc.host")
        rows.append((f"etc.files.{json.dumps(name)} = {json.dumps(source)}", origin))
    for host, mirrors in site.mirrors:
        key = f"registry.{json.dumps(host)}.mirrors"
        rows.append((f"{key} = {_value('', mirrors)}", site.origin(f"registry.{host}.mirrors")))
    for name, hosts in (("insecure", site.insecure), ("trusted", site.trusted)):
        for host in hosts:
            key = f"registry.{json.dumps(host)}.{name}"
            rows.append((f"{key} = true", site.origin(f"registry.{host}.{name}")))
    for row in site.mounts:
        text = (
            f"source = {json.dumps(row.source)}, destination = {json.dumps(row.destination)}, "
            f"options = {_value('', row.options)}, required = {_value('', row.required)}"
        )
        rows.append((f"mount: {text}", row.origin))
    for env in site.environment:
        rows.append((f"env: {_operation(env.op, env.name, env.value)}", env.reason))
    for name in site.mpi:
        rows.append((f"mpi: {name}", site.origin(f"mpi.{name}")))
    for name, module in sorted(modules.available(site.modules).items()):
        if not module.built_in:
            state = (module.problem and "broken") or ("enabled" if module.enabled else "disabled")
            rows.append((f"module: {name} ({state}) {module.description}".rstrip(), module.origin))
    width = min(60, max(len(text) for text, _ in rows))
    return "".join(f"{text:<{width}}  # {origin}\n" for text, origin in rows)


def _operation(op: str, name: str, value: str) -> str:
    return f"unset {name}" if op == "unset" else f"{op} {name}={shown(value) if value else ''}"


def _value(key: str, value: Any) -> str:
    if key == "cache.limit" and value:
        return json.dumps(sizes.show(value))
    return json.dumps(value, ensure_ascii=False)


def check(environ: Mapping[str, str]) -> list[Problem]:
    """Return all problems: in the files, between modules, and with paths that this host lacks.

    Raises UdiError as `merged` does.
    """
    site, problems = merged(environ)
    try:
        real = load.expanded(site, environ)
    except UdiError as error:
        problems.append(Problem("mount", 1, "", error.message, error.hint))
        real = site.replace(mounts=())
    return [*problems, *_modules(site), *_host(real)]


def _modules(site: Site) -> Iterable[Problem]:
    known = modules.available(site.modules)
    for name, module in known.items():
        if module.enabled and not module.problem:
            yield from _selected((name,), known, module.origin, 1, "requires")
    path, line = _at(site.origin("modules.default"))
    yield from _selected(site.default_modules, known, path, line, "modules.default")


def _selected(
    names: tuple[str, ...], known: Mapping[str, modules.Module], path: str, line: int, key: str
) -> Iterable[Problem]:
    try:
        modules.select(names, known)
    except UdiError as error:
        yield Problem(path, line, key, error.message, error.hint)


def _host(site: Site) -> Iterable[Problem]:
    """Yield a problem for each path that is named and missing on this host."""
    missing = "does not exist on this host"
    for row in site.mounts:
        if row.required and not os.path.exists(row.source):
            path, line = _at(row.origin)
            hint = "make it, or write required = false"
            yield Problem(path, line, "mount", f"source {row.source} {missing}", hint)
    for name, source in site.etc:
        own = site.origin(f"etc.files.{name}")
        path, line = _at(own if own != BUILT_IN else site.origin("etc.host"))
        if path != BUILT_IN and not os.path.exists(source):
            yield Problem(path, line, f"etc {name}", f"{source} {missing}", "make it")
    for key, paths in (
        ("cache.paths", site.cache_paths),
        ("gpu.cdi_spec_dirs", site.cdi_spec_dirs),
    ):
        path, line = _at(site.origin(key))
        # The directories that are built in need not exist.
        usual = path == BUILT_IN or paths == Site().cdi_spec_dirs
        if not usual and paths and not any(os.path.isdir(one) for one in paths):
            yield Problem(path, line, key, f"none of them exists here: {', '.join(paths)}")
    for key, one in (("server.squashfuse", site.squashfuse),):
        if one and not os.access(one, os.X_OK):
            path, line = _at(site.origin(key))
            yield Problem(path, line, key, f"{one} is no program on this host", "install it")


def _at(origin: str) -> tuple[str, int]:
    path, _, line = origin.rpartition(":")
    return (path, int(line)) if path and line.isdigit() else (origin, 1)


def report(problems: Iterable[Problem]) -> str:
    """Return the text of `udi config check`: FILE:LINE: KEY: WHY, and the hint below."""
    return "".join(f"{one}\n" + (f"    {one.hint}\n" if one.hint else "") for one in problems)
