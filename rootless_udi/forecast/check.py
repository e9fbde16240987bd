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
from rootless_udi.forecast import finding, gpucode_check, gpucode_cuda
from rootless_udi.forecast.asked import Asked
from rootless_udi.forecast.finding import CheckFinding
from rootless_udi.forecast.site import Capture

Facts = Mapping[str, Any]
Check = Callable[[Capture, Facts, Asked], Iterator[CheckFinding]]

CHECKS: tuple[Check, ...] = (gpucode_cuda.check, gpucode_check.check)
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
    found = tuple(one for look in CHECKS for one in look(site, facts, asked))
    return Answer(site.name, finding.worst(found), found)
