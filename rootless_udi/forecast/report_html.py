"""The forecast as one HTML page for a site's support: no script, nothing from elsewhere."""

from collections.abc import Sequence
from html import escape

from rootless_udi.base.errors import counted, plain
from rootless_udi.forecast import report
from rootless_udi.forecast.check import Answer
from rootless_udi.forecast.finding import FAILS, RUNS, UNKNOWN, UNLOOKED, WITH, CheckFinding

_ORDER = (FAILS, UNKNOWN, WITH, UNLOOKED, RUNS)
_STYLE = """
:root { color-scheme: light dark; --ground: #f7f8f8; --surface: #fff; --text: #1c2428;
  --quiet: #55626a; --line: #dfe4e6; --link: #0b6480; --no: #b3261e; --yes: #1d6f42;
  --ask: #8a5300; }
@media (prefers-color-scheme: dark) { :root { --ground: #12171a; --surface: #1a2125;
  --text: #e4eaec; --quiet: #9babb3; --line: #2c373c; --link: #6cc4dd; --no: #ff9b92;
  --yes: #7fd3a0; --ask: #f0bd6c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 2rem 1.25rem; background: var(--ground);
  color: var(--text); font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere; -webkit-text-size-adjust: 100%; }
h1 { font-size: 1.5rem; line-height: 1.3; margin: 0 0 .75rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
a { color: var(--link); }
code { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, monospace; font-size: .9em; }
table { border-collapse: separate; border-spacing: 0; width: 100%; background: var(--surface);
  border: 1px solid var(--line); border-radius: 10px; }
th, td { padding: .6rem 1rem; text-align: left; vertical-align: top; }
th { font-size: .85rem; color: var(--quiet); }
td { border-top: 1px solid var(--line); }
.check { width: 9rem; color: var(--quiet); } .answer { width: 8.5rem; }
dl { margin: .3rem 0 0; display: grid; grid-template-columns: 4.5rem 1fr; gap: 0 .5rem;
  font-size: .92rem; }
dt { color: var(--quiet); } dd { margin: 0; }
.fails { color: var(--no); font-weight: 600; } .unknown { color: var(--ask); font-weight: 600; }
.runs, .with { color: var(--yes); font-weight: 600; } .unlooked { color: var(--quiet); }
summary { cursor: pointer; padding: .6rem 0; color: var(--quiet); }
footer { margin-top: 3rem; color: var(--quiet); font-size: .9rem; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; border-radius: 4px; }
@media (max-width: 42rem) {
  .findings, .findings tbody, .findings tr, .findings td { display: block; width: auto; }
  .findings thead { position: absolute; clip-path: inset(50%); width: 1px; height: 1px;
    overflow: hidden; }
  .findings tr { border-top: 1px solid var(--line); padding: .6rem 1rem; }
  .findings tr:first-child { border-top: 0; }
  .findings td { border: 0; padding: 0; }
}
@media print { body { padding: 0; } table { border: 0; } }
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
    fine = [f for f in found if f.verdict == RUNS]
    shown = _table([f for f in found if f.verdict != RUNS])
    if fine:
        shown += (
            f"<details><summary>{counted(len(fine), 'check')} found nothing in the way</summary>"
            f"{_table(fine)}</details>"
        )
    return (
        f'<section id="site{number}"><h2>{_text(one.site)}: '
        f'<span class="{one.verdict}">{_text(report.headline(one))}</span></h2>{shown}</section>\n'
    )


def _table(found: Sequence[CheckFinding]) -> str:
    if not found:
        return ""
    head = '<th class="check">Check</th><th class="answer">Answer</th><th>What was found</th>'
    rows = "".join(map(_row, found))
    return f'<table class="findings"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>\n'


def _row(one: CheckFinding) -> str:
    facts = [("Image", report.evidence(one.image)), ("Site", report.evidence(one.site))]
    facts += [("Give", " ".join(one.options)), ("Remedy", one.remedy)]
    terms = "".join(f"<dt>{name}</dt><dd>{_text(text)}</dd>" for name, text in facts if text)
    more = f"<dl>{terms}</dl>" if terms else ""
    return (
        f'<tr><td class="check">{_text(one.check)}</td><td class="{one.verdict}">'
        f"{_text(report.WORDS[one.verdict])}</td><td>{_text(one.what)}{more}</td></tr>\n"
    )


def _text(text: str) -> str:
    """Return a text for HTML: what an image or a capture says is never markup."""
    return escape(plain(text))
