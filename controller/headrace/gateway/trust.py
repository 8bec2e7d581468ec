"""By which CA an endpoint picker is verified: what its BackendTLSPolicy says, else the controller's default. Pure.

The answer reaches Envoy as an SDS secret, not as a part of the cluster: Envoy Gateway calls no hook when a policy, a
ConfigMap or a Service changes, and a CA must be able to change under traffic."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from headrace.core import Pool
from headrace.gateway.snapshot import Object, PickerService, Snapshot, mapping, mappings
from headrace.xds.envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2

_SYSTEM_CA_FILE = "/etc/ssl/certs/ca-certificates.crt"
_MATCH_DNS = common_pb2.SubjectAltNameMatcher.DNS
_MATCH_URI = common_pb2.SubjectAltNameMatcher.URI


class Trust(Struct, frozen=True):
    """How to verify a picker. `ca` is PEM; `system` the proxy's own bundle; neither: nothing is trusted, unless
    `unverified`. `problem` says why nothing is trusted."""

    hostname: str
    ca: str = ""
    system: bool = False
    unverified: bool = False
    alternative_names: tuple[tuple[str, str], ...] = ()
    problem: str = ""


def config_maps_of(policy: Object) -> Iterator[tuple[str, str]]:
    """(namespace, name) of the ConfigMaps that a BackendTLSPolicy takes its CA from."""
    namespace = str(mapping(policy.get("metadata")).get("namespace") or "")
    validation = mapping(mapping(policy.get("spec")).get("validation"))
    for reference in mappings(validation.get("caCertificateRefs")):
        if not reference.get("group") and reference.get("kind") == "ConfigMap":
            yield namespace, str(reference.get("name") or "")


def find_policy(snapshot: Snapshot, service: PickerService) -> Object | None:
    """The BackendTLSPolicy of a Service's port: one for the port comes before one for the Service, then the oldest."""
    found: list[tuple[tuple[bool, str, str], Object]] = []
    for policy, section in snapshot.policies_of(service.namespace, service.name):
        if section in ("", service.port_name):
            metadata = mapping(policy.get("metadata"))
            rank = (not section, str(metadata.get("creationTimestamp") or ""), str(metadata.get("name") or ""))
            found.append((rank, policy))
    return min(found, key=lambda entry: entry[0])[1] if found else None


def find_trust(snapshot: Snapshot, service: PickerService) -> Trust:
    """How to verify the picker behind a Service."""
    default_name = f"{service.name}.{service.namespace}.svc"
    policy = find_policy(snapshot, service)
    if policy is None:
        if not snapshot.verify_by_default:
            return Trust(hostname=default_name, unverified=True)
        problem = (
            f"no BackendTLSPolicy names Service {service.namespace}/{service.name}: write one with the picker's CA"
        )
        return Trust(hostname=default_name, problem=problem)
    validation = mapping(mapping(policy.get("spec")).get("validation"))
    hostname = str(validation.get("hostname") or default_name)
    alternatives = tuple(
        (str(entry.get("type")), str(entry.get("hostname") or entry.get("uri") or ""))
        for entry in mappings(validation.get("subjectAltNames"))
    )
    if validation.get("wellKnownCACertificates") == "System":
        return Trust(hostname, system=True, alternative_names=alternatives)
    parts: list[str] = []
    for key in config_maps_of(policy):
        content = mapping(mapping(snapshot.config_maps.get(key)).get("data")).get("ca.crt")
        if isinstance(content, str) and "BEGIN CERTIFICATE" in content:
            parts.append(content.strip())
    if not parts:
        name = mapping(policy.get("metadata")).get("name")
        problem = f"BackendTLSPolicy {service.namespace}/{name} leads to no ConfigMap with a PEM certificate in ca.crt"
        return Trust(hostname, alternative_names=alternatives, problem=problem)
    return Trust(hostname, ca="\n".join(parts) + "\n", alternative_names=alternatives)


def pool_trust(snapshot: Snapshot, pool: Pool) -> Trust:
    """How to verify a pool's picker; of a picker that cannot be resolved nothing is trusted."""
    service, problem = snapshot.picker_service(pool)
    return Trust(hostname="", problem=problem) if problem else find_trust(snapshot, service)


def trust_secret(name: str, trust: Trust, nothing: str) -> secret_pb2.Secret:
    """The SDS secret. `nothing` is the certificate of a CA that has signed nothing: trusting it trusts nobody, whereas
    an empty secret would trust everybody."""
    secret = secret_pb2.Secret(name=name)
    context = secret.validation_context
    if trust.unverified:
        context.trust_chain_verification = common_pb2.CertificateValidationContext.ACCEPT_UNTRUSTED
        return secret
    if trust.system:
        context.trusted_ca.filename = _SYSTEM_CA_FILE
    else:
        context.trusted_ca.inline_string = trust.ca or nothing
    own = (("Hostname", trust.hostname),) if trust.hostname else ()
    for kind, value in trust.alternative_names or own:
        matcher = context.match_typed_subject_alt_names.add(san_type=_MATCH_URI if kind == "URI" else _MATCH_DNS)
        matcher.matcher.exact = value
    return secret
