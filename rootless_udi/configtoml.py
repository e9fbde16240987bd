"""TOML files to a `Site`: merged, checked, each problem with its file and line.

Off the start path: `rootless_udi.config` imports this where no flattened copy fits.

How files merge: a key of a later file takes the place of the same key of an earlier one, lists
as a whole. Mounts are kept by destination, files of /etc and registries by name, operations on
the environment add up in the order of the files, MPI profiles and modules are kept by name. The
smallest `cache.limit` counts, so that a user's file can't raise the site's.
"""

import difflib
import json
import os
import re
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from rootless_udi import config, configmodule, modules, tomllines, trust
from rootless_udi import configschema as schema
from rootless_udi.config import BUILT_IN, DEFAULT_MOUNTS, MountRow, Site, Source
from rootless_udi.errors import UdiError, disk_hint
from rootless_udi.mpi_inject import profiles
from rootless_udi.records import Record
from rootless_udi.steps import Env


class Problem(Record):
    """What is wrong in a file: `line` from 1, `key` may be empty, `hint` says what is right."""

    path: str
    line: int
    key: str
    why: str
    hint: str = ""

    def __str__(self) -> str:
        key = f"{self.key}: " if self.key else ""
        return f"{self.path}:{self.line}: {key}{self.why}"


class Document:
    """One file being read: its values, and its problems as they are found."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.problems: list[Problem] = []
        self.values: dict[str, Any] = {}
        self.lines: dict[tomllines.Key, int] = {}
        try:
            self.values = tomllib.loads(text)
            self.lines = tomllines.lines(text)
        except tomllib.TOMLDecodeError as error:
            at = re.search(r"\(at line (\d+), column \d+\)$", str(error))
            line = int(at[1]) if at else max(1, len(text.splitlines()))
            why = re.sub(r" \(at .*\)$", "", str(error))
            self.problems.append(Problem(path, line, "", f"not TOML: {why}"))
        except RecursionError:
            self.problems.append(Problem(path, 1, "", "not TOML: nested too deeply"))

    def line(self, *key: str | int) -> int:
        """Return where a key stands."""
        return tomllines.line_of(self.lines, key)

    def wrong(self, key: tuple[str | int, ...], why: str, hint: str = "") -> None:
        """Note a problem."""
        self.problems.append(Problem(self.path, self.line(*key), dotted(key), why, hint))

    def check(self, key: tuple[str | int, ...], check: schema.Check, value: Any) -> Any:
        """Return the checked value; None, with the problem noted, for a wrong one."""
        try:
            return check(value)
        except schema.Wrong as wrong:
            self.wrong(key, wrong.why, wrong.hint)
            return None

    def table(self, key: tuple[str | int, ...], value: Any) -> dict[str, Any]:
        """Return a table; an empty one, with the problem noted, for another type."""
        found: dict[str, Any] | None = self.check(key, lambda v: schema.expect(v, dict), value)
        return found or {}

    def unknown(self, key: tuple[str | int, ...], known: Iterable[str]) -> None:
        """Note a key that is none of `known`."""
        names = sorted(known)
        near = difflib.get_close_matches(str(key[-1]), names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"keys here: {', '.join(names)}"
        self.wrong(key, "unknown key", hint)


def dotted(key: tuple[str | int, ...]) -> str:
    """Return a key for a message: mount[2].source counts from 1, as people do."""
    text = ""
    for part in key:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if text else part
    return text


class _Merge:
    """The Site being made of the files, one after another."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.mounts = {row.destination: row for row in DEFAULT_MOUNTS}
        self.environment: list[Env] = []
        self.mirrors: dict[str, tuple[str, ...]] = {}
        self.insecure: dict[str, bool] = {}
        self.etc = dict(Site().etc)
        self.modules: dict[str, Any] = {}
        self.mpi: dict[str, Any] = {}

    def add(self, document: Document, site: bool) -> None:
        known = {key.split(".")[0] for key in schema.SITE_KEYS} | set(schema.TABLES)
        for name, value in document.values.items():
            if name not in known:
                document.unknown((name,), known)
            elif name == "mount":
                self._mounts(document, value, site)
            elif name == "env":
                self._env(document, value)
            elif name == "etc":
                self._etc(document, value)
            elif name == "registry":
                self._registry(document, value)
            elif name == "mpi":
                for profile, table in document.table(("mpi",), value).items():
                    self.profile(document, profile, ("mpi", profile), table)
            else:
                self._plain(document, name, value)

    def _plain(self, document: Document, section: str, value: Any) -> None:
        names = [k.split(".")[1] for k in schema.SITE_KEYS if k.startswith(section + ".")]
        for name, one in document.table((section,), value).items():
            if name not in names:
                document.unknown((section, name), names)
                continue
            key = f"{section}.{name}"
            field, check = schema.SITE_KEYS[key]
            found = document.check((section, name), check, one)
            if found is None:
                continue
            if key == "cache.limit" and 0 < self.values.get(field, 0) <= (found or 2**63):
                continue
            self.values[field] = found
            self.origins[key] = f"{document.path}:{document.line(section, name)}"

    def _mounts(self, document: Document, rows: Any, site: bool) -> None:
        rows = document.check(("mount",), lambda v: schema.expect(v, list, "write [[mount]]"), rows)
        for number, value in enumerate(rows or ()):
            key = ("mount", number)
            row = document.table(key, value)
            for name in row:
                if name not in schema.TABLES["mount"]:
                    document.unknown((*key, name), schema.TABLES["mount"])
            if "source" not in row and "destination" not in row:
                document.wrong(key, "no source", 'write source = "/path"')
                continue
            self._mount(document, key, row, site)

    def _mount(
        self, document: Document, key: tuple[str | int, ...], row: dict[str, Any], site: bool
    ) -> None:
        source = row.get("source", row.get("destination"))
        target = "destination" if "destination" in row else "source"
        found = (
            document.check((*key, "source"), schema.path, source),
            document.check((*key, target), lambda v: schema.destination(v, site), row.get(target)),
            document.check((*key, "options"), schema.options, row.get("options", [])),
            document.check((*key, "required"), schema.truth, row.get("required", True)),
            document.check((*key, "enabled"), schema.truth, row.get("enabled", True)),
        )
        if None in found:
            return
        self.mounts.pop(found[1], None)
        if found[4]:
            origin = f"{document.path}:{document.line(*key)}"
            self.mounts[found[1]] = MountRow(*found[:4], origin)

    def _env(self, document: Document, value: Any) -> None:
        table = document.table(("env",), value)
        for name in table:
            if name not in schema.TABLES["env"]:
                document.unknown(("env", name), schema.TABLES["env"])
            else:
                reason = f"{document.path}:{document.line('env', name)}"
                self.environment += (
                    document.check(
                        ("env", name),
                        lambda one, name=name, reason=reason: schema.environment(  # type: ignore[misc]
                            {name: one}, reason
                        ),
                        table[name],
                    )
                    or []
                )

    def _etc(self, document: Document, value: Any) -> None:
        for name, one in document.table(("etc",), value).items():
            if name == "host":
                found = document.check(("etc", "host"), schema.texts, one)
                names = [document.check(("etc", "host"), schema.etc_name, n) for n in found or ()]
                if found is not None and None not in names:
                    self.etc = {n: f"/etc/{n}" for n in names}
                    self.origins["etc.host"] = f"{document.path}:{document.line('etc', 'host')}"
            elif name == "files":
                for file, source in document.table(("etc", "files"), one).items():
                    key = ("etc", "files", file)
                    target = document.check(key, schema.etc_name, file)
                    path = document.check(key, schema.path, source)
                    if target and path:
                        self.etc[target] = path
                        self.origins[f"etc.files.{target}"] = (
                            f"{document.path}:{document.line(*key)}"
                        )
            else:
                document.unknown(("etc", name), schema.TABLES["etc"])

    def _registry(self, document: Document, value: Any) -> None:
        for host, table in document.table(("registry",), value).items():
            for name, one in document.table(("registry", host), table).items():
                key = ("registry", host, name)
                if name == "mirrors":
                    self.mirrors[host] = document.check(key, schema.texts, one) or ()
                elif name == "insecure":
                    self.insecure[host] = bool(document.check(key, schema.truth, one))
                else:
                    document.unknown(key, schema.REGISTRY)
                    continue
                self.origins[dotted(key)] = f"{document.path}:{document.line(*key)}"

    def profile(
        self, document: Document, name: str, key: tuple[str | int, ...], value: Any
    ) -> None:
        """Take an MPI profile, from [mpi.NAME] or a file of mpi.d."""
        table = document.table(key, value) if key else value
        try:
            profiles.from_dict(name, table, document.path)
        except UdiError as error:
            part = next((k for k in table if f" {k}" in error.message), "")
            document.wrong((*key, part) if part else key, error.message, error.hint)
            return
        self.mpi[name] = table
        self.origins[f"mpi.{name}"] = f"{document.path}:{document.line(*key)}"

    def site(self) -> Site:
        return Site(
            **self.values,
            mounts=tuple(self.mounts.values()),
            environment=tuple(self.environment),
            mirrors=tuple(self.mirrors.items()),
            insecure=tuple(name for name, yes in self.insecure.items() if yes),
            etc=tuple(self.etc.items()),
            modules=self.modules,
            mpi=self.mpi,
            origins=tuple(self.origins.items()),
        )


def merge(sources: Iterable[Source], texts: Iterable[str]) -> tuple[Site, list[Problem]]:
    """Return the merged Site, without what is wrong, and every problem found.

    A module's problems are also kept in the module, so that only who selects it meets them.
    """
    result = _Merge()
    problems: list[Problem] = []
    for source, text in zip(sources, texts, strict=True):
        document = Document(source.path, text)
        name = os.path.basename(source.path).removesuffix(".toml")
        if source.kind.endswith("-mpi"):
            result.profile(document, name, (), document.values)
        elif source.kind.endswith("-module"):
            module = configmodule.module(name, document)
            result.modules[name] = modules.flat(module)
        else:
            result.add(document, source.kind == "site")
        problems += document.problems
    return result.site(), problems


def merged(sources: Iterable[Source], texts: Iterable[str]) -> Site:
    """Return the merged Site. Raises UdiError for the first problem outside modules."""
    sources = list(sources)
    site, problems = merge(sources, texts)
    plain = {source.path for source in sources if not source.kind.endswith("-module")}
    mine = [problem for problem in problems if problem.path in plain]
    if mine:
        more = f" (and {len(mine) - 1} more: see `udi config check`)" if len(mine) > 1 else ""
        raise UdiError(f"{mine[0]}{more}", mine[0].hint or "see `udi config check`")
    return site


def write_cache(
    path: str, sources: list[Source], texts: list[str], flat: Mapping[str, Any]
) -> None:
    """Write a flattened copy in one rename; where that fails, launches go on without it."""
    try:
        trust.make(os.path.dirname(path), 0o700)
        _write(path, sources, texts, flat, 0o600)
    except OSError:
        return


def compile_site(environ: Mapping[str, str]) -> str:
    """Write the site's flattened copy beside its files; return its path (`udi config compile`).

    Raises UdiError where there are no site files, one is wrong, or the copy can't be written.
    """
    own = {"UDI_SITE_DIR": config.site_directory(environ)}
    sources = config.find(own)
    path = f"{own['UDI_SITE_DIR']}/{config.COMPILED}"
    if not sources:
        raise UdiError(f"no configuration in {own['UDI_SITE_DIR']}", "write udi.toml there first")
    texts = [config.read(source) for source in sources]
    try:
        _write(path, sources, texts, config.to_flat(merged(sources, texts)), 0o644)
    except OSError as error:
        raise UdiError(
            f"writing {path} failed: {error.strerror}",
            disk_hint(error.errno, "run it as the owner of that directory"),
        ) from error
    return path


def _write(
    path: str, sources: list[Source], texts: list[str], flat: Mapping[str, Any], mode: int
) -> None:
    rows = [
        [s.path, s.kind, s.mtime, s.size, s.inode, t] for s, t in zip(sources, texts, strict=True)
    ]
    document = {"format": config.FORMAT, "files": rows, "site": flat}
    handle, partial = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".config-")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            json.dump(document, file)
            os.fchmod(file.fileno(), mode)
        os.replace(partial, path)
    except OSError:
        os.unlink(partial)
        raise


__all__ = ["BUILT_IN", "Document", "Problem", "compile_site", "dotted", "merge", "merged"]
