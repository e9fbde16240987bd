"""The completion script for fish, made from the commands as data (common.tree)."""

from collections.abc import Iterable

from rootless_udi.commands.common.tree import (
    CONTAINER,
    DIRECTORY,
    FILE,
    IMAGE,
    LIST_CONTAINERS,
    LIST_IMAGES,
    LIST_MODULES,
    MODULES,
    Command,
    Operand,
    Opt,
    quoted,
    stops,
    walk,
)

_FISH = """\
# fish completion for udi-run, udi, shifter and shifterimg, made by `udi completion fish`

function __udi_images
    %(images)s
end
function __udi_containers
    %(containers)s
end
function __udi_modules
    %(modules)s; echo none
end
# True while no operand is there (with a number: exactly so many are).
function __udi_operands
    set -l words (commandline -opc)
    set -l count 0
    set -l next ""
    for word in $words[2..-1]
        if test -n "$next"
            set next ""
        else if string match -qr -- '%(values)s' $word
            set next $word
        else if not string match -qr -- '^-' $word
            set count (math $count + 1)
        end
    end
    test $count -eq $argv[1]
end
# True where these words, and no further commands, are the operands so far.
function __udi_at
    set -l words (commandline -opc)
    set -l found
    for word in $words[2..-1]
        string match -qr -- '^-' $word; or set -a found $word
    end
    test "$found[1..$argv[1]]" = "$argv[2..-1]"
end
"""


def script(commands: Iterable[Command]) -> str:
    """Return the script for all programs."""
    commands = list(commands)
    lists = {"images": LIST_IMAGES, "containers": LIST_CONTAINERS, "modules": LIST_MODULES}
    out = [_FISH % {**lists, "values": _values(commands)}]
    for command in commands:
        for path, one in walk(command):
            out += _fish_lines(path, one)
    return "\n".join(out) + "\n"


def _fish_lines(path: tuple[str, ...], command: Command) -> list[str]:
    begin = f"complete -c {path[0]}"
    words = path[1:]
    here = f"__udi_at {len(words)} {' '.join(words)}" if words else ""
    out = []
    if command.commands or (words and not command.operands):
        out.append(f"{begin} -f -n {quoted(here or 'true')}")
    for one in command.commands:
        condition = f"{here}; and " if here else ""
        condition += f"__udi_operands {len(words)}"
        out.append(f"{begin} -f -n {quoted(condition)} -a {one.name} -d {quoted(one.text)}")
    before = here
    if stops(command) or (command.commands and not words):
        # Behind the image, or the command of udi, options are another's.
        none_yet = f"__udi_operands {len(words)}"
        before = f"{here}; and {none_yet}" if here else none_yet
    for option in command.options:
        out.append(_fish_option(begin, before, option))
    for at, operand in enumerate(command.operands):
        action = _fish_action(operand)
        if action and operand.kind != FILE:
            count = f"__udi_operands {len(words) + at}"
            condition = f"{here}; and {count}" if words and not operand.many else here or count
            out.append(f"{begin} -n {quoted(condition)} -a {action}")
    return out


def _fish_option(begin: str, here: str, option: Opt) -> str:
    words = [begin]
    if here:
        words.append(f"-n {quoted(here)}")
    for name in option.names:
        words.append(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}")
    if option.takes == "value":
        words.append("-r" if option.kind in (FILE, DIRECTORY) else "-x")
    action = _fish_action(option)
    if action and option.takes != "none":
        words.append(f"-a {action}")
    return " ".join([*words, f"-d {quoted(option.text)}"])


def _fish_action(of: "Opt | Operand") -> str:
    if of.choices:
        return quoted(" ".join(of.choices))
    return {
        IMAGE: "'(__udi_images)'",
        CONTAINER: "'(__udi_containers)'",
        MODULES: "'(__udi_modules)'",
        DIRECTORY: "'(__fish_complete_directories)'",
    }.get(of.kind, "")


def _values(commands: Iterable[Command]) -> str:
    """Return a pattern of the options whose value is the next word."""
    found = {
        name
        for command in commands
        for _, one in walk(command)
        for option in one.options
        if option.takes == "value"
        for name in option.names
    }
    return f"^({'|'.join(sorted(found))})$"
