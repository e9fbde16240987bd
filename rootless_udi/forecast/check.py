"""Will an image run at a site? Every check is asked; each answers with findings.

A check is a function `look(site, facts, asked) -> Iterator[CheckFinding]`, a row of CHECKS:

    site    site.Capture: what is known of the machine, with its sections as dictionaries
    facts   the image's facts as `udi pull` notes them ("arch", "env", "entrypoint", "cmd", "user",
            "elf", ...; any may be missing), and under "forecast" what each gatherer returned:
            facts["forecast"][NAME]. A check must bear that its own part is missing (UNKNOWN).
    asked   Asked: the image, the options of udi-run, the command

It looks at one kind of thing, reads no file of the site's machine (that may be elsewhere), and
yields a finding for each fact that decides: RUNS too, so that the report shows what was looked at.
What it did not look at, it says by UNLOOKED; what it can't tell, by UNKNOWN. A check never raises
for what an image or a capture says. Something that costs time and is the same for all sites (a run
of the command) is done once and kept in `asked.memo` under the check's name.

What a check needs of the image's files it has gathered by a gatherer (`needs.Gatherer`), a row of
`imagefacts.GATHERERS`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rootless_udi.base.records import Record
from rootless_udi.forecast import (
    abilities,
    asis,
    command,
    finding,
    gpucode_check,
    gpucode_cuda,
    isa,
    libc,
    machine,
    mpi,
)
from rootless_udi.forecast.asked import MPI_GOES_IN, Asked
from rootless_udi.forecast.finding import CheckFinding
from rootless_udi.forecast.site import Capture

Facts = Mapping[str, Any]
Check = Callable[[Capture, Facts, Asked], Iterator[CheckFinding]]

CHECKS: tuple[Check, ...] = (
    machine.architecture,
    machine.kernel,
    machine.levels,
    abilities.namespaces,
    abilities.store,
    command.look,
    abilities.hidden,
    abilities.given_volumes,
    abilities.modules,
    mpi.look,
    libc.look,
    abilities.gpus_given,
    abilities.wants_gpu,
    gpucode_cuda.check,
    isa.check,
    asis.run,
    gpucode_check.check,
    asis.rights,
    asis.configuration,
)
"""In the order in which a launch would fail: the report keeps it."""


class Answer(Record):
    """The forecast for one site: its name, the verdict of all findings, and these."""

    site: str
    verdict: str
    findings: tuple[CheckFinding, ...]

    @property
    def options(self) -> tuple[str, ...]:
        """The options of udi-run that have to be given besides, as words of a command line."""
        return finding.options(self.findings)


def check(site: Capture, facts: Facts, asked: Asked) -> Answer:
    """Return the forecast of what is asked at `site`."""
    asked.memo.pop(MPI_GOES_IN, None)
    found = (*check_facts(facts), *(one for look in CHECKS for one in look(site, facts, asked)))
    return Answer(site.name, finding.worst(found), found)


def check_facts(facts: Facts) -> Iterator[CheckFinding]:
    """Yield what of the image could not be read: no check has looked at such files."""
    found = facts.get("forecast")
    rows = found.get("unread") if isinstance(found, dict) else None
    if rows:
        path, why = rows[0]
        more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        yield CheckFinding(
            "image",
            finding.UNKNOWN if path == "/" else finding.UNLOOKED,
            f"{path}{more} can't be read: {why}",
            finding.Evidence(str(path), str(why)),
            remedy="pull or copy the image again, or read it as its owner",
        )


def as_data(one: Answer) -> dict[str, Any]:
    """Return an answer as JSON's types."""
    return {
        "site": one.site,
        "verdict": one.verdict,
        "options": list(one.options),
        "findings": [finding.as_data(row) for row in one.findings],
    }


def status(answers: tuple[Answer, ...]) -> int:
    """Return the exit status for several sites: 1 where one will not run it, 3 where one can't be
    told, 0 where all will."""
    verdicts = {one.verdict for one in answers}
    return 1 if finding.FAILS in verdicts else 3 if finding.UNKNOWN in verdicts else 0
