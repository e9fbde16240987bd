"""How a command adds its parser to udi's, and the options that several commands have."""

import argparse
from collections.abc import Callable
from typing import TypeAlias

from rootless_udi.commands.common.given import Arguments

Parsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What argparse's add_subparsers returns: the commands of udi, or the actions of one command."""


def command(
    parsers: Parsers, name: str, function: Callable[[Arguments], int], text: str
) -> argparse.ArgumentParser:
    """Add a command and return its parser.

    `function` gets the parsed words and returns the exit status; `text` is the line in --help.
    """
    one = parsers.add_parser(name, help=text, description=text)
    one.set_defaults(command=function)
    return one


def group(parsers: Parsers, name: str, text: str) -> Parsers:
    """Add a command that only has actions (udi config show); return where those are added."""
    one = parsers.add_parser(name, help=text)
    return one.add_subparsers(metavar="ACTION", required=True)


def add_json(parser: argparse.ArgumentParser, text: str = "as JSON") -> None:
    """Add --json: the same answer for programs."""
    parser.add_argument("--json", action="store_true", help=text)


def add_platform(parser: argparse.ArgumentParser) -> None:
    """Add --platform: which of the platforms of a pulled image is meant."""
    parser.add_argument("--platform", help="that of the image, as it was pulled")


def add_insecure(parser: argparse.ArgumentParser) -> None:
    """Add --insecure: speak to the registry without TLS."""
    parser.add_argument("--insecure", action="store_true", help="plain HTTP (loopback is always)")
