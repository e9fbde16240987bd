"""Who is believed of what lies beside an image: a squashfs that is said to be its content.

Whoever may push to a repository may push such a claim (`artifact`), and would choose what
`NAME@sha256:...` runs. So it counts only where the configuration trusts the registry that has it,
or where a key that the policy names has signed it.
"""

from collections.abc import Sequence

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.plan.reference import Reference
from rootless_udi.plan.site import Site
from rootless_udi.pull.identity import Name
from rootless_udi.pull.policy import Policy, Signatures, read
from rootless_udi.pull.retry import GaveUp


class Believed(Record):
    """`registries`: hosts whose claims are taken as they are (`registry."HOST".trusted`). `policy`:
    which images may be used, and who must have signed them; None for any. Without `claims` no
    claim is believed, and images are made of their layers."""

    registries: tuple[str, ...] = ()
    policy: Policy | None = None
    claims: bool = True

    def allow(
        self, reference: Reference, digests: Sequence[str], signatures: Signatures
    ) -> tuple[str, ...]:
        """Return who vouches for an image by the policy. Raises UdiError where it is refused."""
        return self.policy.check(reference, digests, signatures) if self.policy else ()

    def anybody(self, reference: Reference, hosts: Sequence[str]) -> bool:
        """Tell whether any claim about the image could be believed: else none is asked for."""
        keyed = self.policy is not None and self.policy.keyed(reference)
        return self.claims and (keyed or any(host in self.registries for host in hosts))

    def judge(
        self, reference: Reference, host: str, artifact: str, signatures: Signatures
    ) -> tuple[str, str]:
        """Return (why the artifact with this digest at `host` is believed, ""), or ("", why not).

        `signatures` reads what is beside it at the registry; it raises UdiError.
        """
        if host in self.registries:
            return f"{host} is trusted (registry.{host}.trusted)", ""
        against = f"nobody vouches for it: {host} is not trusted for this"
        if self.policy is None or not self.policy.keyed(reference):
            return "", against
        # An artifact has no tag: it is signed for the repository.
        wanted = Name(f"{reference.registry}/{reference.repository}", f"@{artifact}")
        try:
            return "; ".join(self.policy.check(reference, [artifact], signatures, wanted)), ""
        except GaveUp:
            raise
        except UdiError as error:
            return "", error.message


def believed(site: Site) -> Believed:
    """Return who is believed by the configuration. Raises UdiError for a bad policy."""
    return Believed(site.trusted, read(site.policy) if site.policy else None)
