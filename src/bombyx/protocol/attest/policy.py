# SPDX-License-Identifier: Apache-2.0
"""An appraisal policy as a value: whom to trust, in what state, running what (RFC 9334 Appraisal Policy for Evidence).

Always: empty means no. A policy without roots, trust classes, TCB statuses or Reference Values passes nothing.
`a | b` accepts what either names and keeps the stricter of every limit; Reference Values stay tied to their trust class
and TCB statuses to their root, so joining a development policy to a production one never loosens the production part.
For the same reason a joined policy asks only the publishers that both name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from bombyx.errors import ConfigError
from bombyx.protocol.attest.roots import INTEL_ROOT, NVIDIA_ROOT, TrustClass, trust_class_of
from bombyx.protocol.attest.roots_amd import AMD_ROOTS
from bombyx.protocol.primitives import Address, Digest
from bombyx.protocol.wire.evidence import MAX_KEYSET_LIFE

CLOCK_SKEW: Final = 60  # seconds a beacon or a start may lie ahead of our clock
_MEASUREMENT_SIZES: Final = {
    **dict.fromkeys(("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "mr_config_id", "mr_owner", "mr_owner_config"), 48),
    **dict.fromkeys(("measurement", "id_key_digest", "author_key_digest"), 48),  # SEV-SNP
    **dict.fromkeys(("mrenclave", "mrsigner", "host_data"), 32),  # SGX; SEV-SNP's host data
    **dict.fromkeys(("isv_prod_id", "isv_svn"), 2),
}  # bytes

_PLATFORM: Final = {  # what has to be measured before a compose hash that is measured means anything
    TrustClass.TDX: frozenset({"mrtd", "rtmr1", "rtmr2"}),
    TrustClass.SNP: frozenset({"measurement"}),
}
_OF_THE_IMAGE: Final = frozenset({"rtmr3", "mr_config_id", "host_data"})  # these hold the compose hash itself


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedRoot:
    """An Endorser's root certificate and the platform states accepted under it. Its bytes decide the trust class."""

    name: str
    certificate: bytes  # DER
    tcb_statuses: frozenset[str] = frozenset({"UpToDate"})
    minimum_tcb: tuple[tuple[str, int], ...] = ()  # AMD only: least firmware levels that count as UpToDate

    @property
    def trust_class(self) -> TrustClass:
        """The best class it can give: one root may vouch for two technologies."""
        found = [trust_class_of(self.certificate, technology) for technology in ("tdx", "snp", "sgx")]
        return next((one for one in found if one is not TrustClass.SIMULATED), TrustClass.SIMULATED)


def amd_root(family: str, minimum_tcb: tuple[tuple[str, int], ...]) -> TrustedRoot:
    """AMD's for one processor family, with the least firmware levels accepted."""
    return TrustedRoot(name=f"amd-{family}", certificate=AMD_ROOTS[family], minimum_tcb=minimum_tcb)


def intel_root(tcb_statuses: frozenset[str] = frozenset({"UpToDate"})) -> TrustedRoot:
    """Intel's, the only root that gives `tdx`."""
    return TrustedRoot(name="intel", certificate=INTEL_ROOT, tcb_statuses=tcb_statuses)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceValue:
    """One known-good image: every value named here must be found in the evidence (RFC 9334 Reference Value)."""

    name: str
    trust_class: TrustClass  # of the root it counts under: tdx, snp, sgx or simulated
    compose_hash: Digest | None = None
    measurements: tuple[tuple[str, bytes], ...] = ()  # mrtd, rtmr0 .. rtmr2, ...
    gpu: bool = False  # this image can open a GPU: GPU evidence is then required

    def __post_init__(self) -> None:
        if self.compose_hash is None and not self.measurements:
            raise ConfigError(
                f"Reference Value {self.name!r} names nothing, so it would match everything", rule="ATT-10"
            )
        for name, value in self.measurements:
            if _MEASUREMENT_SIZES.get(name) != len(value):
                known = ", ".join(f"{key} ({size})" for key, size in _MEASUREMENT_SIZES.items())
                raise ConfigError(
                    f"Reference Value {self.name!r}: {name} has {len(value)} bytes; known: {known}",
                    rule="ATT-10",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class AppraisalPolicy:
    """What is accepted. The default is nothing."""

    roots: tuple[TrustedRoot, ...] = ()
    trust_classes: frozenset[TrustClass] = frozenset()
    reference_values: tuple[ReferenceValue, ...] = ()
    models: frozenset[Digest] | None = (
        None  # digests of ModelManifests; None: any model, as the client asks by digest anyway
    )
    require_gpu: bool = False
    gpu_roots: tuple[bytes, ...] = (NVIDIA_ROOT,)  # DER; one that is not NVIDIA's makes everything `simulated`
    token_roots: tuple[bytes, ...] = ()  # DER of authorities whose attestation tokens count; none: no token counts
    require_nonce: bool = True  # evidence that carries a nonce must answer the one we asked
    require_chain: bool = (
        True  # registry and beacon must be confirmed by a chain we trust; offline they are `not checked`
    )
    max_beacon_age: int = MAX_KEYSET_LIFE  # seconds
    publishers: tuple[Address, ...] = ()  # whose lists of good images, on chain, admit more than the values above
    publishers_agree: int = 0  # how many of them must hold an image good; 0: none is admitted

    def __or__(self, other: AppraisalPolicy) -> AppraisalPolicy:
        if not isinstance(other, AppraisalPolicy):
            return NotImplemented
        return AppraisalPolicy(
            roots=_joined(self.roots, other.roots),
            trust_classes=self.trust_classes | other.trust_classes,
            reference_values=_joined(self.reference_values, other.reference_values),
            models=_joined_models(self.models, other.models),
            require_gpu=self.require_gpu or other.require_gpu,
            gpu_roots=_joined(self.gpu_roots, other.gpu_roots),
            token_roots=_joined(self.token_roots, other.token_roots),
            require_nonce=self.require_nonce or other.require_nonce,
            require_chain=self.require_chain or other.require_chain,
            max_beacon_age=min(self.max_beacon_age, other.max_beacon_age),
            publishers=tuple(one for one in self.publishers if one in other.publishers),
            publishers_agree=max(self.publishers_agree, other.publishers_agree),
        )

    def asks_publishers(self) -> bool:
        """Whether enough publishers are named for them ever to agree."""
        return 0 < self.publishers_agree <= len(set(self.publishers))

    def admitting(self, reference: Digest) -> AppraisalPolicy:
        """The same and this compose hash, for one who has seen that enough publishers agree on it now (ATT-14).

        On hardware it counts only with a firmware and kernel that this policy itself names for that technology: what
        measures the compose file is not what a publisher vouches for.
        """
        if not self.asks_publishers():
            return self
        name = f"{self.publishers_agree} of {len(set(self.publishers))} publishers"
        platforms = self.admissible_platforms()
        added = [
            ReferenceValue(name=name, trust_class=base, compose_hash=reference, measurements=platform, gpu=gpu)
            for (base, platform), gpu in platforms.items()
        ]
        return replace(self, reference_values=_joined(self.reference_values, tuple(added)))

    def admissible_platforms(self) -> dict[tuple[TrustClass, tuple[tuple[str, bytes], ...]], bool]:
        """What an image that publishers agree on must run on; and whether GPU evidence is then due."""
        found: dict[tuple[TrustClass, tuple[tuple[str, bytes], ...]], bool] = {}
        for value in self.reference_values:
            needed = _PLATFORM.get(value.trust_class)
            kept = tuple(one for one in value.measurements if one[0] not in _OF_THE_IMAGE)
            if needed and self.may_accept(value.trust_class) and needed <= {name for name, _ in kept}:
                key = (value.trust_class, kept)
                found[key] = found.get(key, False) or value.gpu
        if self.may_accept(TrustClass.SIMULATED):
            found[TrustClass.SIMULATED, ()] = False  # it proves nothing, whatever it is measured on
        return found

    def may_accept(self, base: TrustClass) -> bool:
        """Whether evidence of this base class can still end in a class that is accepted (GPU evidence comes later)."""
        return base in self.trust_classes or (base is TrustClass.TDX and TrustClass.TDX_GPU in self.trust_classes)

    def offline(self) -> AppraisalPolicy:
        """The same, for one who has no chain to ask: registry and beacon may stay `not checked`."""
        return replace(self, require_chain=False)


def _joined(one: tuple, other: tuple) -> tuple:  # type: ignore[type-arg]
    return one + tuple(item for item in other if item not in one)


def _joined_models(one: frozenset[Digest] | None, other: frozenset[Digest] | None) -> frozenset[Digest] | None:
    if one is None or other is None:
        return one if other is None else other
    return one | other
