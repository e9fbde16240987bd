"""Where the host's MPI and its plugins lie inside an image, and the variables that lead there."""

from rootless_udi.mpi_inject.libraries import abi
from rootless_udi.mpi_inject.libraries.rooted import under
from rootless_udi.plan.steps import Directory, Env, Mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootless_udi.mpi_inject.mpi.gather import Gathered
    from rootless_udi.plan.steps import Step

FOLDER = "/opt/udiImage/mpi"
"""Where the host's MPI is inside: `lib` with every library, `root` with the MPI's own tree."""

LIB = FOLDER + "/lib"
ROOT = FOLDER + "/root"

_PLUGIN_VARIABLES = {
    "ucx": ("UCX_MODULE_DIR",),
    "ucc": ("UCC_COMPONENT_PATH",),
    "libfabric": ("FI_PROVIDER_PATH",),
    "openmpi": ("OMPI_MCA_mca_base_component_path",),
    # PMIx 4 looks in its own folder also where the second variable names another.
    "pmix": ("PMIX_PKGLIBDIR", "PMIX_MCA_mca_base_component_path"),
    "hwloc": ("HWLOC_PLUGINS_PATH",),
    "openmpi-etc": ("OPAL_SYSCONFDIR",),
    "openmpi-share": ("OPAL_PKGDATADIR",),
    "ucx-etc": ("UCX_CONFIG_DIR",),
}


def trees(got: "Gathered", root: str) -> "list[Step]":
    """Return the binds of the host's plugin folders and settings beside its libraries."""
    steps: list[Step] = []
    for tree in got.trees:
        what, place = "settings" if "-" in tree.kind else "plugins", f"{LIB}/{tree.kind}"
        if tree.folder:
            steps.append(Mount(place, under(root, tree.folder), reason=f"{what}: {tree.kind}"))
        else:
            steps.append(Directory(place, reason=f"the host has no {what}: {tree.kind}"))
    return steps


def trees_over(
    got: "Gathered", image: "dict[str, Any]", root: str, stays: "set[str]"
) -> "list[Step]":
    """Return the binds of plugin folders over the image's, but beside libraries that stay.

    Variables don't keep all libraries from the image's plugins: UCX looks beside itself, wherever
    an RPATH has found it; libibverbs also loads the drivers that /etc/libibverbs.d names.
    """
    kept = {path.rpartition("/")[0] for path in stays}
    steps: list[Step] = []
    for tree in got.trees:
        for folder in image.get("plugins", {}).get(tree.kind, ()) if tree.folder else ():
            if not any(folder.startswith(one + "/") for one in kept):
                why = f"the host's plugins over the image's: {tree.kind}"
                steps.append(Mount(folder, under(root, tree.folder), reason=why, over=True))
    return steps


def variables(got: "Gathered", names: "dict[str, str]") -> "list[Env]":
    """Return the variables that lead to the libraries and their plugins."""
    out = [Env("prepend", "LD_LIBRARY_PATH", LIB, "libraries of the host's MPI")]
    for tree in got.trees:
        place = f"{LIB}/{tree.kind}"
        if tree.kind == "libibverbs":
            drivers = sorted({f.partition("-rdmav")[0] for f in tree.files if "-rdmav" in f})
            value = ":".join(f"{place}/{d}" for d in drivers)
            out.append(Env("set", "RDMAV_DRIVERS", value, "verbs drivers of the host"))
        else:
            what = "settings" if "-" in tree.kind else "plugins"
            why = f"the host's {what} for {tree.kind.partition('-')[0]}"
            out += [Env("set", name, place, why) for name in _PLUGIN_VARIABLES[tree.kind]]
    first = next((lib for lib in got.mains if lib.role == "C"), None)
    if first:
        why = "mpi4py takes the first libmpi that it finds"
        out.append(Env("set", "MPI4PY_LIBMPI", f"{LIB}/{names.get(first.name, first.name)}", why))
        if got.mpi.prefix:
            out += _of_prefix(got, first)
    return out


def _of_prefix(got: "Gathered", first: abi.Library) -> "list[Env]":
    """Return the variables by which an MPI finds its own tree, which is at ROOT inside."""
    if first.family == abi.OPENMPI:
        out = [Env("set", "OPAL_PREFIX", ROOT, "Open MPI's tree is here")]
        if not any(f.name.startswith("libpmix.") for f in got.libraries):
            # For the PMIx inside Open MPI 4: mpiexec sets this variable to the host's path, and
            # ranks for which it differs from OPAL_PREFIX hang in MPI_Init.
            why = "the PMIx inside Open MPI 4 is here"
            out.append(Env("set", "PMIX_INSTALL_PREFIX", ROOT, why))
        return out
    if not first.release.startswith("Intel"):
        return []
    lib = ROOT + got.mpi.folder.removeprefix(got.mpi.prefix)
    fabric = next((f.real for f in got.libraries if f.name == "libfabric.so.1"), "")
    out = [
        Env("set", "I_MPI_ROOT", ROOT, "Intel MPI's tree is here"),
        Env("append", "LD_LIBRARY_PATH", lib, "Intel MPI loads libraries by name"),
    ]
    if fabric.startswith(got.mpi.prefix + "/"):
        folder = fabric.removeprefix(got.mpi.prefix).rpartition("/")[0]
        trees = {t.kind for t in got.trees}
        if "libfabric" not in trees:
            out.append(
                Env("set", "FI_PROVIDER_PATH", ROOT + folder, "libfabric's plugins of Intel MPI")
            )
    return out
