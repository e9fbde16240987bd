"""Who is believed of what lies beside an image: a squashfs that is said to be its content.

Whoever may push to a repository may push such a claim (`artifact`), and would choose what
`NAME@sha256:...` runs. So it counts only where the configuration trusts the registry that has it,
or where a key that the policy names has signed it.
"""

from collections.abc import Callable, Sequence

from rootless_udi.base.records import Record
from rootless_udi.plan.reference import Reference
from rootless_udi.plan.site import Site

Signatures = Callable[[str], Sequence[tuple[bytes, str]]]
"""Returns the signatures of a manifest's digest, each a payload and what signs it, in base64."""


class Believed(Record):
    """`registries`: hosts whose claims are taken as they are (`registry."HOST".trusted`)."""

    registries: tuple[str, ...] = ()

    def anybody(self, reference: Reference, hosts: Sequence[str]) -> bool:
        """Tell whether any claim about the image could be believed: else none is asked for."""
        return any(host in self.registries for host in hosts)

    def judge(
        self, reference: Reference, host: str, artifact: str, signatures: Signatures
    ) -> tuple[str, str]:
        """Return (why the artifact with this digest at `host` is believed, ""), or ("", why not).

        `signatures` reads what is beside it at the registry; it raises UdiError.
        """
        if host in self.registries:
            return f"{host} is trusted (registry.{host}.trusted)", ""
        return "", f"nobody vouches for it: {host} is not trusted for this"


def believed(site: Site) -> Believed:
    """Return who is believed by the configuration."""
    return Believed(site.trusted)
