"""A captured machine as data: what `udi site capture` writes. Pure.

A capture is a JSON object; every section and every key may be missing, which means "not known":

    format    "rootless_udi site", version 1
    name      the site's name
    taken     where and when: [{"on": "login" | "compute", "date": "2026-01-31", "tool": "0.1.0"}]
    source    for an example: the public documents it was made of, list of texts
    system    machine ("x86_64"), kernel ("5.14.21-..."), os ("SLES 15 SP5"), pages (bytes of one),
              userns, fuse, overlay (true or false: may an ordinary user), doctor (findings)
    cpu       name (archspec's, "zen3"), vendor, features (list), generic ("x86_64_v3"), cores,
              model (text)
    memory    bytes
    libc      kind ("glibc"), version ("2.31"), defines (symbol versions of its libc.so.6)
    mpi       list of host MPIs
    launchers list: name ("slurm", "hydra"), version, pmi (["pmi2", "pmix_v4", "cray_shasta"])
    networks  list: name, kind ("cxi", "infiniband", "ethernet")
    gpus      list, one for each: vendor ("nvidia", "amd", "intel"), name, memory (bytes),
              capability ("8.0", NVIDIA), arch ("gfx90a", AMD)
    drivers   vendor -> version ("550.54.15"), cuda ("12.4", the newest that it offers), product
              ("datacenter" or "consumer": forward compatibility is for the first)
    config    mounts ([{source, destination, options}]), modules, default_modules, forbidden,
              cache_limit, store (bytes that a store may have)
"""

from typing import Any

from rootless_udi.base.records import Record

FORMAT, VERSION = "rootless_udi site", 1


class Capture(Record):
    """A capture that was read and checked. `data` is the object above; `place` is for messages."""

    name: str
    data: dict[str, Any]
    place: str = ""

    def table(self, section: str) -> dict[str, Any]:
        """Return a section that is an object, {} where it is missing."""
        found = self.data.get(section)
        return found if isinstance(found, dict) else {}

    def rows(self, section: str) -> list[dict[str, Any]]:
        """Return a section that is a list of objects, [] where it is missing."""
        found = self.data.get(section)
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []

    def knows(self, section: str) -> bool:
        """Tell whether the capture says anything about a section: no GPUs is not unknown GPUs."""
        return section in self.data
