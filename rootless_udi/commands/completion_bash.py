"""The completion script for bash, made from the commands as data (common.tree)."""

from collections.abc import Iterable

from rootless_udi.commands.common.tree import (
    IMAGE,
    LIST_CONTAINERS,
    LIST_IMAGES,
    LIST_MODULES,
    Command,
    Operand,
    Opt,
    stops,
    walk,
)

_BASH = """\
# bash completion for udi-run, udi, shifter and shifterimg, made by `udi completion bash`

_udi_images() { %(images)s; }
_udi_containers() { %(containers)s; }
_udi_modules() { %(modules)s; echo none; }

# Offer the words of $1 that begin with $2; bash breaks words at ":" and "=" and wants the rest.
_udi_offer() {
    local IFS=$'\\n' word lead=${3-}
    [[ $COMP_WORDBREAKS == *:* && $2 == *:* ]] && lead=${2%%"${2##*:}"}
    while read -r word; do
        [[ $word && $word == "$2"* ]] && COMPREPLY+=("${word#"$lead"}")
    done <<< "$1"
}
_udi_files() {
    local IFS=$'\\n'
    compopt -o filenames 2>/dev/null
    COMPREPLY+=($(compgen "$1" -- "$2"))
}
_udi_value() {
    case $1 in
        image) _udi_offer "$(_udi_images)" "$2" ;;
        container) _udi_offer "$(_udi_containers)" "$2" ;;
        modules) _udi_offer "$(_udi_modules)" "${2##*,}" ;;
        file) _udi_files -f "${2##*:}" ;;
        directory) _udi_files -d "$2" ;;
        command) _udi_files -c "$2"; _udi_files -f "$2" ;;
        "") ;;
        *) _udi_offer "${1//,/$'\\n'}" "$2" ;;
    esac
}
_udi_complete() {
    COMPREPLY=()
    local line=${COMP_LINE:0:COMP_POINT} words cur path option="" operands=0 at word
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    cur=${words[${#words[@]}-1]}
    path=${1##*/}
    for ((at = 1; at < ${#words[@]} - 1; at++)); do
        word=${words[at]}
        if [[ $option ]]; then
            [[ $option == image ]] && _udi_has_image "$path" && operands=1
            option=""
        elif [[ $word == -- ]]; then
            operands=$((operands + 1))
        elif [[ $word == -?* ]]; then
            [[ $word == --image=* ]] && _udi_has_image "$path" && operands=1
            [[ $word == *=* ]] || option=$(_udi_takes "$path" "$word")
        elif _udi_is "$path/$word"; then
            path+=/$word
        else
            operands=$((operands + 1))
        fi
        if ((operands)) && _udi_ends "$path" "$operands"; then
            _udi_value command "$cur"
            return
        fi
    done
    if [[ $option ]]; then
        _udi_value "${option#=}" "$cur"
    elif [[ $cur == --*=* ]]; then
        option=$(_udi_takes "$path" "${cur%%%%=*}" equals)
        _udi_value "${option#=}" "${cur#*=}"
    elif [[ $cur == -* ]]; then
        _udi_offer "$(_udi_options "$path")" "$cur"
        [[ ${COMPREPLY[0]-} == *= ]] && compopt -o nospace 2>/dev/null
    else
        _udi_offer "$(_udi_commands "$path")" "$cur"
        _udi_value "$(_udi_operand "$path" "$operands")" "$cur"
    fi
}
"""


def script(commands: Iterable[Command]) -> str:
    """Return the script for all programs."""
    paths = [item for command in commands for item in walk(command)]
    lists = {"images": LIST_IMAGES, "containers": LIST_CONTAINERS, "modules": LIST_MODULES}
    out = [_BASH % lists]
    out.append(_bash_case("_udi_is", ((path, "return 0") for path, _ in paths), "return 1"))
    # Behind the image, words are the command's own: those commands are listed in _udi_ends.
    ends = [(path, c) for path, c in paths if stops(c)]
    out.append(
        _bash_case(
            "_udi_ends",
            ((path, f"(($2 >= {max(1, len(c.operands) - 1)}))") for path, c in ends),
            "return 1",
        )
    )
    given = [(path, "return 0") for path, c in ends if c.operands[0].kind == IMAGE]
    out.append(_bash_case("_udi_has_image", given, "return 1"))
    out.append(
        _bash_case("_udi_commands", ((p, _echo(x.name for x in c.commands)) for p, c in paths))
    )
    out.append(_bash_case("_udi_options", ((p, _echo(_spellings(c))) for p, c in paths)))
    out.append(_bash_case("_udi_operand", ((p, _bash_operands(c)) for p, c in paths)))
    out.append(_bash_takes(paths))
    out.append("complete -F _udi_complete " + " ".join(p[0] for p, _ in paths if len(p) == 1))
    return "\n".join(out) + "\n"


def _bash_case(name: str, rows: "Iterable[tuple[tuple[str, ...], str]]", last: str = "") -> str:
    lines = [f"{name}() {{", "    case $1 in"]
    lines += [f"        {'/'.join(path)}) {text} ;;" for path, text in rows if text]
    lines += [f"        *) {last} ;;"] if last else []
    return "\n".join([*lines, "    esac", "}"])


def _echo(words: Iterable[str]) -> str:
    found = list(words)
    return "printf '%s\\n' " + " ".join(found) if found else ""


def _spellings(command: Command) -> list[str]:
    """Return the options: long ones that take a value with a "=", the others as they are."""
    return [
        f"{name}=" if name.startswith("--") and option.takes != "none" else name
        for option in command.options
        for name in option.names
    ]


def _value(of: "Opt | Operand") -> str:
    return ",".join(of.choices) or of.kind


def _bash_operands(command: Command) -> str:
    kinds = [_value(operand) for operand in command.operands]
    if not any(kinds):
        return ""
    many = command.operands[-1].many
    cases = [f"{at}) echo {kind} ;;" for at, kind in enumerate(kinds) if kind]
    cases += [f"*) echo {kinds[-1]} ;;"] if many and kinds[-1] else []
    return f"case $2 in {' '.join(cases)} esac"


def _bash_takes(paths: "list[tuple[tuple[str, ...], Command]]") -> str:
    """Return a shell function that prints "=" and the kind of an option's value, or nothing."""
    lines = ["_udi_takes() {", "    case $1:$2 in"]
    for path, command in paths:
        for option in command.options:
            if option.takes == "none":
                continue
            names = "|".join(f"{'/'.join(path)}:{name}" for name in option.names)
            only = "[[ ${3-} ]] && " if option.takes == "optional" else ""
            lines.append(f"        {names}) {only}echo ={_value(option)} ;;")
    return "\n".join([*lines, "    esac", "}"])
