"""The completion script for zsh, made from the commands as data (common.tree)."""

from collections.abc import Iterable

from rootless_udi.commands.common.tree import (
    COMMAND,
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

_ZSH = """\
#compdef udi-run udi shifter shifterimg
# zsh completion, made by `udi completion zsh`: a file _udi in a directory of $fpath

_udi_images() {
    local -a names
    names=(${(f)"$(%(images)s)"})
    compadd -a names
    _files -g '*.(sqfs|squashfs)(-.)'
}
_udi_containers() {
    local -a names
    names=(${(f)"$(%(containers)s)"})
    compadd -a names
}
_udi_modules() {
    local -a names
    names=(${(f)"$(%(modules)s)"} none)
    _values -s , module $names
}
"""
_ZSH_ACTIONS = {
    IMAGE: "_udi_images",
    CONTAINER: "_udi_containers",
    FILE: "_files",
    DIRECTORY: "_files -/",
    MODULES: "_udi_modules",
}


def script(commands: Iterable[Command]) -> str:
    """Return the script for all programs."""
    found = list(commands)
    lists = {"images": LIST_IMAGES, "containers": LIST_CONTAINERS, "modules": LIST_MODULES}
    out = [_ZSH % lists]
    out += [_zsh_function(path, one) for command in found for path, one in walk(command)]
    cases = " ".join(f"{c.name}) {_zsh_name((c.name,))} ;;" for c in found)
    out.append(f"case $service in {cases} esac")
    return "\n".join(out) + "\n"


def _zsh_name(path: tuple[str, ...]) -> str:
    return "_udi_do_" + "_".join(path).replace("-", "__")


def _zsh_function(path: tuple[str, ...], command: Command) -> str:
    specs = [_zsh_option(option) for option in command.options]
    if command.commands:
        specs += ["'1: :->command'", "'*:: :->rest'"]
    for at, operand in enumerate(command.operands, 1):
        if operand.kind == COMMAND:
            specs.append("'*::command:_normal'")
        else:
            action = _zsh_action(operand)
            specs.append(quoted(f"{'*' if operand.many else at}:{operand.name}:{action}"))
    stop = "-A '-*' " if stops(command) else ""
    lines = [f"{_zsh_name(path)}() {{"]
    if command.commands:
        lines.append("    local state line context; typeset -A opt_args")
    body = " \\\n        ".join([f"_arguments -s -S {stop}".rstrip(), *specs])
    lines.append(f"    {body}")
    if command.commands:
        names = " ".join(quoted(f"{_colon(c.name)}:{c.text}") for c in command.commands)
        cases = " ".join(f"{c.name}) {_zsh_name((*path, c.name))} ;;" for c in command.commands)
        lines += [
            "    case $state in",
            f"        command) local -a found; found=({names}); _describe command found ;;",
            f"        rest) case $line[1] in {cases} esac ;;",
            "    esac",
        ]
    return "\n".join([*lines, "}"])


def _zsh_option(option: Opt) -> str:
    text = option.text.replace("[", "(").replace("]", ")")
    value = ""
    if option.takes != "none":
        value = f"{':' * (1 + (option.takes == 'optional'))}{_colon(option.meta)}:"
        value += _zsh_action(option)
    out = []
    for name in option.names:
        sign = ""
        if option.takes != "none":
            long = name.startswith("--")
            sign = ("=-" if long else "-") if option.takes == "optional" else "=" if long else "+"
        out.append(quoted(f"*{name}{sign}[{text}]{value}"))
    return " ".join(out)


def _zsh_action(of: "Opt | Operand") -> str:
    return f"({' '.join(of.choices)})" if of.choices else _ZSH_ACTIONS.get(of.kind, " ")


def _colon(text: str) -> str:
    return text.replace(":", "\\:")
