"""The command lines of other programs that can serve an image (squashfuse_ll and others)."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootless_udi.plan.image import Root


def command(root: "Root", connection: str) -> tuple[str, list[str]]:
    """Return path and argv of the program that serves `root`.

    `connection` is the mounted connection as /dev/fd/N, or a folder to mount on.
    """
    if root.program:
        options = (*root.options, *(("-o", f"offset={root.offset}") if root.offset else ()))
        return root.program, [root.program, "-f", *options, root.path, connection]
    from rootless_udi.base import program

    # A new Python: pyfuse3 and fuse-python are in site-packages, which this one does not read.
    words = f"--transport={root.server}", f"--offset={root.offset}", root.path, connection
    argv = program.argv("from rootless_udi.fuse.main import main; sys.exit(main())", *words)
    return argv[0], argv
