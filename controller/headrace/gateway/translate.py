"""What Envoy Gateway made of routes to InferencePools, made right. Pure: (request, snapshot) to response.

Envoy Gateway (v1.9) takes pools for custom backends: two of them in a rule become one cluster without weights, and a
missing one takes the valid one beside it along. So the route's action is built anew from the route object, which the
xDS route's name leads to; Envoy Gateway's cluster of the rule is kept as the template of the pool's, so that what its
policies ask for stays. Everything that has nothing to do with pools is passed on byte for byte."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import TypeAlias

from google.protobuf.message import DecodeError

from headrace.core import Pool
from headrace.gateway import filters, model_routing, names
from headrace.gateway.backend_filters import InvalidFilter, header_changes
from headrace.gateway.clusters import former_picker_cluster, number, picker_cluster, pool_cluster
from headrace.gateway.names import PoolKey
from headrace.gateway.protocol.extension_pb2 import PostTranslateModifyRequest, PostTranslateModifyResponse
from headrace.gateway.retries import bound_failures, retry_policy
from headrace.gateway.snapshot import Backend, Snapshot, backends_of
from headrace.gateway.trust import find_trust
from headrace.gateway.xds_names import RuleName, parse_route_name
from headrace.kube.routes import rules_of
from headrace.protocol.translated import RouteKey
from headrace.xds.envoy.config.cluster.v3 import cluster_pb2
from headrace.xds.envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from headrace.xds.envoy.config.route.v3 import route_components_pb2, route_pb2
from headrace.xds.envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2

_Weight: TypeAlias = route_components_pb2.WeightedCluster.ClusterWeight
_Manager: TypeAlias = http_connection_manager_pb2.HttpConnectionManager


@dataclass
class Translation:
    """The response; the pools whose picker nobody verifies; the routes with a backend that cannot be had as it is asked
    for, each with the first reason; what could not be done, for the log."""

    response: PostTranslateModifyResponse
    unverified: set[PoolKey] = field(default_factory=set)
    refused: dict[RouteKey, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def named_rules(request: PostTranslateModifyRequest) -> dict[str, frozenset[RuleName]]:
    """The rules of routes that a hook call is about, by route configuration. What cannot be read names none."""
    found: dict[str, frozenset[RuleName]] = {}
    for content in request.routes:
        try:
            configuration = route_pb2.RouteConfiguration.FromString(content)
        except DecodeError:
            continue
        rules = {parse_route_name(route.name) for host in configuration.virtual_hosts for route in host.routes}
        found[configuration.name] = frozenset(rule for rule in rules if rule is not None)
    return found


def translate(request: PostTranslateModifyRequest, snapshot: Snapshot) -> Translation:
    """Build the response to Envoy Gateway's PostTranslateModify.

    A resource that cannot be parsed, and a route whose object is unknown, pass as they are and are noted: nothing
    here fails as a whole."""
    work = _Work(request, snapshot)
    routes = [work.route_configuration(content) for content in request.routes]
    listeners = [work.listener(content) for content in request.listeners]
    clusters = [*request.clusters, *work.clusters()]
    work.result.response = PostTranslateModifyResponse(
        clusters=clusters, secrets=request.secrets, listeners=listeners, routes=routes
    )
    return work.result


class _Work:
    """The state of one translation."""

    def __init__(self, request: PostTranslateModifyRequest, snapshot: Snapshot) -> None:
        self.result = Translation(PostTranslateModifyResponse())
        self._snapshot = snapshot
        self._listeners = request.listeners
        self._templates: dict[str, cluster_pb2.Cluster] = {}
        for content in request.clusters:
            try:
                cluster = cluster_pb2.Cluster.FromString(content)
            except DecodeError as error:
                self.result.notes.append(f"a cluster cannot be read: {error}")
                continue
            self._templates[cluster.name] = cluster
        self._switches: dict[tuple[PoolKey, bool], _Weight] = {}
        self._plans: dict[PoolKey, filters.PickPlan | None] = {}
        self._made: dict[str, cluster_pb2.Cluster] = {}
        self._variants: dict[tuple[PoolKey, bytes], str] = {}
        self._configurations: set[str] = set()
        self._by_model: set[str] = set()

    # Routes

    def route_configuration(self, content: bytes) -> bytes:
        """A route configuration, changed where its routes lead to pools."""
        try:
            configuration = route_pb2.RouteConfiguration.FromString(content)
        except DecodeError as error:
            self.result.notes.append(f"a route configuration cannot be read: {error}")
            return content
        changed = False
        by_model = any(
            model_routing.matches_model(route) for host in configuration.virtual_hosts for route in host.routes
        )
        for host in configuration.virtual_hosts:
            for route in host.routes:
                try:
                    changed = self._route(route) or changed
                except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
                    self.result.notes.append(f"route {route.name} is left as it is: {error!r}")
            if by_model:
                defaults = model_routing.filter_defaults(self._managers.get(configuration.name, ()))
                self.result.notes += model_routing.secure_host(host, defaults)
        if by_model:
            self._by_model.add(configuration.name)
        elif not changed:
            return content
        self._configurations.add(configuration.name)
        return bytes(configuration.SerializeToString(deterministic=True))

    def _route(self, route: route_components_pb2.Route) -> bool:
        rule_name = parse_route_name(route.name)
        if rule_name is None or route.WhichOneof("action") not in ("route", "direct_response"):
            return False
        found = self._snapshot.routes.get(rule_name.route)
        if found is None:
            self.result.notes.append(f"route {route.name} is left as it is: its object is not known")
            return False
        rules = rules_of(found)
        if rule_name.rule >= len(rules):
            self.result.notes.append(f"route {route.name} is left as it is: the object known has {len(rules)} rules")
            return False
        backends = backends_of(rules[rule_name.rule], rule_name.route[1])
        if not any(backend.is_pool for backend in backends):
            return False
        old = {weight.name: weight for weight in route.route.weighted_clusters.clusters}
        plans: list[filters.PickPlan] = []
        weights: list[_Weight] = []
        factor = filters.SAMPLE_OF if any(map(self._samples, backends)) else 1
        for backend in backends:
            if backend.weight:
                weights += self._weights(rule_name, backend, old, plans, factor)
        if route.WhichOneof("action") == "direct_response":
            # Envoy Gateway answers 500 by itself where it found no valid backend, and so it should.
            if not plans:
                return False
            route.ClearField("direct_response")
        action = route.route
        action.ClearField("cluster")
        if weights:
            action.weighted_clusters.CopyFrom(route_components_pb2.WeightedCluster(clusters=weights))
        else:
            action.cluster = names.INVALID_CLUSTER
        action.cluster_not_found_response_code = route_components_pb2.RouteAction.INTERNAL_SERVER_ERROR
        if plans:
            self._prepare(route, plans)
        return True

    def _prepare(self, route: route_components_pb2.Route, plans: Sequence[filters.PickPlan]) -> None:
        if not route.route.HasField("timeout"):
            # Envoy's own is 15 s for the whole answer: it would cut a long one. Its idle timeout stays.
            route.route.timeout.SetInParent()
        if not route.route.HasField("retry_policy"):
            route.route.retry_policy.CopyFrom(retry_policy())
        # A retry needs the whole body once more: a listener of Envoy Gateway keeps 32 KiB.
        buffered = any(plan.body_mode is filters.BodyMode.BUFFERED for plan in plans)
        wanted = filters.BUFFER_LIMIT_BYTES if buffered else filters.RETRY_LIMIT_BYTES
        route.request_body_buffer_limit.value = max(wanted, route.request_body_buffer_limit.value)

    def _weights(
        self, rule: RuleName, backend: Backend, old: Mapping[str, _Weight], plans: list[filters.PickPlan], factor: int
    ) -> Iterable[_Weight]:
        """The weighted clusters of one backend; one that does not resolve keeps its share, which is answered 500."""
        share = backend.weight * factor
        invalid = [_Weight(name=names.INVALID_CLUSTER, weight=number(share))]
        if not backend.is_pool:
            name = self._other_cluster(rule, backend, old)
            if name is None:
                return invalid
            return [_weighted(old.get(name, _Weight()), name, share)]
        if not self._snapshot.permits(rule.route, backend):
            return invalid
        try:
            changes = header_changes(backend.filters)
        except InvalidFilter as error:
            self._refuse(rule, backend, error)
            return invalid
        plan = self._plan(backend.pool_key)
        if plan is None:
            return invalid
        plans.append(plan)
        name = self._pool_cluster(plan.pool, self._template(rule, backend))
        if plan.is_sampled:
            parts = [(False, backend.weight * (factor - 1)), (True, backend.weight)]
        else:
            parts = [(plan.observation is filters.Observation.ALL, share)]
        weights = []
        for bodies, part in parts:
            weights.append(_weighted(self._switched_on(plan, bodies), name, part))
            changes.apply(weights[-1])
        return weights

    def _refuse(self, rule: RuleName, backend: Backend, error: InvalidFilter) -> None:
        problem = f"rule {rule.rule}, backend {backend.index}: its share is answered 500: {error}"
        self.result.refused.setdefault(rule.route, problem)
        note = f"{'/'.join(rule.route)}, {problem}"
        if note not in self.result.notes:
            self.result.notes.append(note)

    def _switched_on(self, plan: filters.PickPlan, bodies: bool) -> _Weight:
        """A weighted cluster with the filters of a pool; the same for every rule."""
        key = (names.pool_key(plan.pool), bodies)
        found = self._switches.get(key)
        if found is None:
            found = self._switches[key] = _Weight()
            for name, config in filters.cluster_filters(plan, observe_bodies=bodies).items():
                found.typed_per_filter_config[name].CopyFrom(config)
        return found

    def _samples(self, backend: Backend) -> bool:
        plan = self._plan(backend.pool_key) if backend.is_pool else None
        return plan is not None and plan.is_sampled

    def _other_cluster(self, rule: RuleName, backend: Backend, old: Mapping[str, _Weight]) -> str | None:
        """Envoy Gateway's cluster of a Service or another backend that is no pool; None: it does not resolve."""
        own = f"{rule.destination}/backend/{backend.index}"
        if own in self._templates:
            return own
        merged = f"{backend.kind.lower()}/{backend.namespace}/{backend.name}/"
        for name in old:
            if name.startswith(merged):
                return name
        return rule.destination if rule.destination in self._templates else None

    # Clusters

    def _plan(self, key: PoolKey) -> filters.PickPlan | None:
        """How to pick for a pool; None where it does not exist, cannot be used, or names no picker."""
        if key in self._plans:
            return self._plans[key]
        plan = None
        pool = self._snapshot.pools.get(key)
        if pool is None:
            notes = [f"its share is answered 500: {self._snapshot.bad_pools.get(key, 'there is no such pool')}"]
        elif pool.picker is None:
            notes = ["its share is answered 500: it names no picker"]
        else:
            # While the picker is missing, the failure mode decides what becomes of requests.
            service, problem = self._snapshot.picker_service(pool)
            plan = filters.plan_pick(pool, service)
            trust = find_trust(self._snapshot, service)
            if trust.unverified and not service.cleartext:
                self.result.unverified.add(key)
            notes = [problem, *plan.notes, "" if service.cleartext else trust.problem]
            cluster = picker_cluster(pool, service, trust.hostname)
            for made in (cluster, former_picker_cluster(cluster)):
                self._made[made.name] = made
        self.result.notes += [f"InferencePool {'/'.join(key)}: {note}" for note in notes if note]
        self._plans[key] = plan
        return plan

    def _template(self, rule: RuleName, backend: Backend) -> cluster_pb2.Cluster | None:
        own = self._templates.get(f"{rule.destination}/backend/{backend.index}")
        return own if own is not None else self._templates.get(rule.destination)

    def _pool_cluster(self, pool: Pool, template: cluster_pb2.Cluster | None) -> str:
        """The name of the pool's cluster that keeps what the template says; rules of different policies have one each,
        over the same endpoints."""
        key = names.pool_key(pool)
        kept = cluster_pb2.Cluster()
        if template is not None:
            kept.CopyFrom(template)
        # What only names the rule is no reason for another cluster.
        for part in ("name", "alt_stat_name", "metadata", "eds_cluster_config"):
            kept.ClearField(part)
        content = kept.SerializeToString(deterministic=True)
        known = self._variants.get((key, content))
        if known is not None:
            return known
        name = names.pool_cluster_name(key)
        if name in self._made:
            name = f"{name}/policy/{sha256(content).hexdigest()[:12]}"
        self._made[name] = made = pool_cluster(pool, kept, name)
        bound_failures(made)
        self._variants[(key, content)] = name
        return name

    def clusters(self) -> list[bytes]:
        """The clusters that were added."""
        return [cluster.SerializeToString(deterministic=True) for cluster in self._made.values()]

    # Listeners

    @cached_property
    def _managers(self) -> dict[str, list[_Manager]]:
        """The connection managers that serve a route configuration, by its name. What cannot be read is noted later."""
        found: dict[str, list[_Manager]] = {}
        for content in self._listeners:
            with contextlib.suppress(DecodeError):
                for network_filter in _network_filters(listener_pb2.Listener.FromString(content)):
                    manager = _Manager()
                    if network_filter.typed_config.Unpack(manager):
                        found.setdefault(manager.rds.route_config_name, []).append(manager)
        return found

    def listener(self, content: bytes) -> bytes:
        """A listener, with our filters before its router where it serves a changed route configuration."""
        if not self._configurations:
            return content
        try:
            listener = listener_pb2.Listener.FromString(content)
        except DecodeError as error:
            self.result.notes.append(f"a listener cannot be read: {error}")
            return content
        changed = [self._network_filter(network_filter) for network_filter in _network_filters(listener)]
        return bytes(listener.SerializeToString(deterministic=True)) if any(changed) else content

    def _network_filter(self, network_filter: listener_components_pb2.Filter) -> bool:
        manager = _Manager()
        try:
            if not network_filter.typed_config.Unpack(manager):
                return False
        except DecodeError as error:
            self.result.notes.append(f"a connection manager cannot be read: {error}")
            return False
        if manager.rds.route_config_name not in self._configurations or not manager.http_filters:
            return False
        kept = list(manager.http_filters)
        if any(found.name == names.PICK_FILTER for found in kept):
            return False
        if manager.rds.route_config_name in self._by_model:
            model_routing.prepare_manager(manager)
        else:
            del manager.http_filters[:]
            # The router is the last; nothing may come between the pick and it, or it would see no picked header.
            manager.http_filters.extend([*kept[:-1], *filters.listener_filters(), kept[-1]])
        network_filter.typed_config.Pack(manager, deterministic=True)
        return True


def _weighted(like: _Weight, name: str, share: int) -> _Weight:
    """A copy with another name and share."""
    weight = _Weight()
    weight.CopyFrom(like)
    weight.name = name
    weight.weight.value = share
    return weight


def _network_filters(listener: listener_pb2.Listener) -> Iterable[listener_components_pb2.Filter]:
    for chain in listener.filter_chains:
        yield from chain.filters
    yield from listener.default_filter_chain.filters
