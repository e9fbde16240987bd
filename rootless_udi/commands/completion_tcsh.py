"""The completion script for tcsh, made from the commands as data: a list of rules for each program.

tcsh uses the first rule that fits. A rule can only ask for the word, its position, and the one or
two words before it. So options are offered behind the image too, and all commands of udi share one
list of options.
"""

from collections.abc import Iterable, Iterator

from rootless_udi.commands.common.tree import (
    CONTAINER,
    DIRECTORY,
    FILE,
    IMAGE,
    LIST_CONTAINERS,
    LIST_IMAGES,
    MODULES,
    Command,
    Operand,
    Opt,
    walk,
)

# By sh, since csh can't redirect standard error alone; as an alias, since a rule has no quotes.
_TCSH = """\
# tcsh completion for udi-run, udi, shifter and shifterimg, made by `udi completion tcsh`

alias _udi_images 'sh -c "%(images)s"'
alias _udi_containers 'sh -c "%(containers)s"'
alias _udi_modules 'sh -c "udi config show 2>/dev/null; echo module: mpi; echo module: gpu; \
echo module: none" | sed -n "s/^module: \\([^ ]*\\).*/\\1/p"'
"""
_LISTS = {
    IMAGE: "`_udi_images`",
    CONTAINER: "`_udi_containers`",
    MODULES: "`_udi_modules`",
    FILE: "f",
    DIRECTORY: "d",
}


def script(commands: Iterable[Command]) -> str:
    """Return the script for all programs."""
    lines = [_TCSH.replace("%(images)s", LIST_IMAGES).replace("%(containers)s", LIST_CONTAINERS)]
    for command in commands:
        rules = dict.fromkeys(f"'{rule}'" for rule in _rules(command))
        lines.append(" \\\n    ".join([f"complete {command.name}", *rules]))
    return "\n".join(lines) + "\n"


def _rules(command: Command) -> Iterator[str]:
    """Yield the rules of one program; their parts have "@" between, since image names have "/"."""
    below = list(walk(command))
    options = [option for _, one in below for option in one.options]
    # A value behind "=", then options, long and short.
    for option in options:
        if option.takes != "none" and _list(option):
            yield f"c@{option.long}=@{_list(option)}@"
    long = {f"{o.long[2:]}{'' if o.takes == 'none' else '='}" for o in options}
    yield f"c@--@({' '.join(sorted(long))})@@"
    # An option's value that is a word of its own; then the words behind it.
    valued = [(n, o) for o in options if o.takes == "value" for n in o.names]
    for name, option in valued:
        yield f"n@{name}@{_list(option) or 'x:' + option.meta.lower()}@"
    if not command.commands:
        images = any(operand.kind == IMAGE for operand in command.operands)
        if images:
            yield "n@--image=*@f@"
            yield from (f"N@{name}@{_LISTS[IMAGE]}@" for name, o in valued if o.kind != IMAGE)
            yield f"n@-*@{_LISTS[IMAGE]}@"
            yield f"p@1@{_LISTS[IMAGE]}@"
        return
    yield f"p@1@({' '.join(one.name for one in command.commands)})@"
    # The deepest first, since "profile" is a command of udi and of udi mpi.
    for path, one in sorted(below[1:], key=lambda item: -len(item[0])):
        if one.commands and len(path) > 2:
            yield f"N@{path[-2]}@({' '.join(sub.name for sub in one.commands)})@"
        elif one.commands:
            yield f"n@{one.name}@({' '.join(sub.name for sub in one.commands)})@"
        elif one.operands and _list(one.operands[0]):
            yield f"n@{one.name}@{_list(one.operands[0])}@"


def _list(of: "Opt | Operand") -> str:
    return f"({' '.join(of.choices)})" if of.choices else _LISTS.get(of.kind, "")
