"""Merge TOML files to one `Site`, and report each error with its file and line.

Off the start path: `rootless_udi.config.load` imports this only if there is no flattened copy of
these files.

A key in a later file replaces the same key of an earlier one; a list is replaced as a whole. A
mount replaces one with the same destination; a file of /etc, a registry, an MPI profile and a
module replace those of the same name. Operations on the environment are all kept, in the order of
the files. Of several values of `cache.limit` the smallest counts, so that a user's file can't raise
the site's.
"""

import os
from collections.abc import Iterable
from typing import Any

from rootless_udi.base.errors import UdiError
from rootless_udi.config import modulefile, schema
from rootless_udi.config.document import Document, Problem, dotted
from rootless_udi.config.files import ConfigFile
from rootless_udi.mpi_inject.mpi import profiles
from rootless_udi.plan import modules
from rootless_udi.plan.site import DEFAULT_MOUNTS, MountRow, Site
from rootless_udi.plan.steps import Env


class _Merge:
    """The Site that is being made; `add` is called with one file after another."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.mounts = {row.destination: row for row in DEFAULT_MOUNTS}
        self.environment: list[Env] = []
        self.mirrors: dict[str, tuple[str, ...]] = {}
        self.insecure: dict[str, bool] = {}
        self.trusted: dict[str, bool] = {}
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
            document.check((*key, "options"), schema.mount_options, row.get("options", [])),
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
                elif name == "trusted":
                    self.trusted[host] = bool(document.check(key, schema.truth, one))
                else:
                    document.unknown(key, schema.REGISTRY)
                    continue
                self.origins[dotted(key)] = f"{document.path}:{document.line(*key)}"

    def profile(
        self, document: Document, name: str, key: tuple[str | int, ...], value: Any
    ) -> None:
        """Add an MPI profile, from [mpi.NAME] or a file in mpi.d."""
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
            trusted=tuple(name for name, yes in self.trusted.items() if yes),
            etc=tuple(self.etc.items()),
            modules=self.modules,
            mpi=self.mpi,
            origins=tuple(self.origins.items()),
        )


def merge(sources: Iterable[ConfigFile], texts: Iterable[str]) -> tuple[Site, list[Problem]]:
    """Return the merged Site, without the wrong values, and all problems.

    A module keeps its first problem too: it is an error only for those who select the module.
    """
    result = _Merge()
    problems: list[Problem] = []
    for source, text in zip(sources, texts, strict=True):
        document = Document(source.path, text)
        name = os.path.basename(source.path).removesuffix(".toml")
        if source.kind.endswith("-mpi"):
            result.profile(document, name, (), document.values)
        elif source.kind.endswith("-module"):
            module = modulefile.module(name, document)
            result.modules[name] = modules.flat(module)
        else:
            result.add(document, source.kind == "site")
        problems += document.problems
    return result.site(), problems


def merged(sources: Iterable[ConfigFile], texts: Iterable[str]) -> Site:
    """Return the merged Site. Raises UdiError with the first problem outside of modules."""
    sources = list(sources)
    site, problems = merge(sources, texts)
    plain = {source.path for source in sources if not source.kind.endswith("-module")}
    mine = [problem for problem in problems if problem.path in plain]
    if mine:
        more = f" (and {len(mine) - 1} more: see `udi config check`)" if len(mine) > 1 else ""
        raise UdiError(f"{mine[0]}{more}", mine[0].hint or "see `udi config check`")
    return site
