"""The forecast as one HTML page for a site's support: no script, nothing from elsewhere."""

from collections.abc import Sequence
from html import escape

from rootless_udi.base.errors import plain
from rootless_udi.forecast import report
from rootless_udi.forecast.check import Answer
from rootless_udi.forecast.finding import FAILS, RUNS, UNKNOWN, UNLOOKED, WITH, CheckFinding

_ORDER = (FAILS, UNKNOWN, WITH, UNLOOKED, RUNS)
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --no: #b3261e; --yes: #1b7f3b; --ask: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --no: #ff8a80; --yes: #7ddc9a; --ask: #ffc266; } }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
table { border-collapse: collapse; width: 100%; }
th, td { border-top: 1px solid var(--line); padding: .5rem .6rem .5rem 0; text-align: left;
  vertical-align: top; overflow-wrap: anywhere; }
td:first-child, th:first-child { white-space: nowrap; }
code { font-size: .92em; } dl { margin: .3rem 0 0; } dt { font-weight: 600; }
dd { margin: 0 0 .2rem 1rem; }
.fails { color: var(--no); font-weight: 600; } .runs { color: var(--yes); font-weight: 600; }
.with { color: var(--yes); font-weight: 600; } .unknown { color: var(--ask); font-weight: 600; }
.unlooked { opacity: .75; } footer { margin-top: 3rem; opacity: .75; font-size: .9rem; }
"""


def page(image: str, command: Sequence[str], answers: Sequence[Answer], made: str) -> str:
    """Return the page. `made` says by what and when it was made."""
    title = f"Will {image} run?"
    shown = " ".join(command)
    words = f"<p>Command: <code>{_text(shown)}</code></p>" if shown else ""
    words = words or "<p>No command was given: only the image as a whole was looked at.</p>"
    rows = "".join(
        f'<tr><td><a href="#site{n}">{_text(one.site)}</a></td>'
        f'<td class="{one.verdict}">{_text(report.headline(one))}</td></tr>'
        for n, one in enumerate(answers)
    )
    table = (
        f"<table><thead><tr><th>Site</th><th>Answer</th></tr></thead><tbody>{rows}</tbody></table>"
    )
    sites = "".join(_site(n, one) for n, one in enumerate(answers))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n<body><main>"
        f"<h1>{_text(title)}</h1>\n{words}\n{table}\n{sites}</main>\n"
        f"<footer>{_text(made)}. What was not looked at is named in the tables; the answers do not"
        " cover it.</footer></body></html>\n"
    )


def _site(number: int, one: Answer) -> str:
    found = sorted(one.findings, key=lambda f: _ORDER.index(f.verdict))
    rows = "".join(map(_row, found))
    return (
        f'<section id="site{number}"><h2>{_text(one.site)}: '
        f'<span class="{one.verdict}">{_text(report.headline(one))}</span></h2>'
        "<table><thead><tr><th>Check</th><th>Answer</th><th>What was found</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></section>\n"
    )


def _row(one: CheckFinding) -> str:
    facts = [("Image", report.evidence(one.image)), ("Site", report.evidence(one.site))]
    facts += [("Give", " ".join(one.options)), ("Remedy", one.remedy)]
    terms = "".join(f"<dt>{name}</dt><dd>{_text(text)}</dd>" for name, text in facts if text)
    more = f"<dl>{terms}</dl>" if terms else ""
    return (
        f'<tr><td>{_text(one.check)}</td><td class="{one.verdict}">'
        f"{_text(report.WORDS[one.verdict])}</td><td>{_text(one.what)}{more}</td></tr>\n"
    )


def _text(text: str) -> str:
    """Return a text for HTML: what an image or a capture says is never markup."""
    return escape(plain(text))
