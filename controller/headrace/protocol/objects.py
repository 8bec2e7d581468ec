"""Names in Kubernetes objects: API groups, annotations, labels, condition types, field managers."""

from __future__ import annotations

from headrace.core import GA_GROUP

GATEWAY_GROUP = "gateway.networking.k8s.io"
COORDINATION_GROUP = "coordination.k8s.io"

# Condition types.
ACCEPTED = "Accepted"
RESOLVED_REFS = "ResolvedRefs"
READY = "Ready"
# Of a pool: which generation of each route is translated, see `protocol.translated`.
ROUTES_TRANSLATED = "headrace.dev/RoutesTranslated"
# Of a pool: present only while a filter is refused.
FILTERS_ACCEPTED = "headrace.dev/FiltersAccepted"

# On an endpoint picker's Service: the picker is ours, and takes the pick and the observation as two streams.
PICKER_ANNOTATION = "headrace.dev/endpoint-picker"
PICKER_ANNOTATION_OURS = "headrace"
# On a pool.
BODY_MODE_ANNOTATION = "headrace.dev/request-body-mode"
OBSERVATION_ANNOTATION = "headrace.dev/response-observation"
POOL_ANNOTATIONS = (BODY_MODE_ANNOTATION, OBSERVATION_ANNOTATION)
# On a Pod: which of the pool's target ports it serves on, as "8000,8002"; the first annotation found counts.
ACTIVE_PORTS_ANNOTATIONS = (f"{GA_GROUP}/active-ports", "llm-d.ai/active-ports")
# What `kubectl apply` leaves on an object.
LAST_APPLIED_ANNOTATION = "kubectl.kubernetes.io/last-applied-configuration"

# On a Pod: its engine, of which the first label found counts; its part of the work; the prompts it is meant for.
ENGINE_LABELS = (f"{GA_GROUP}/engine-type", "llm-d.ai/engine-type")
ROLE_LABEL = "llm-d.ai/role"
CONTEXT_LENGTH_LABEL = "llm-d.ai/context-length-range"
# On a ConfigMap: it says which adapters a base model has (keys baseModel, adapters).
BASE_MODEL_SELECTOR = f"{GA_GROUP}/bbr-managed=true"
# On an EndpointSlice: the Service it belongs to.
SERVICE_LABEL = "kubernetes.io/service-name"
# On a route of a replacement's own: it leads to the old pool, and is none of those to be changed.
HOLD_LABEL = "headrace.dev/replacement"
PART_OF_LABEL = "app.kubernetes.io/part-of"
COMPONENT_LABEL = "app.kubernetes.io/component"
INSTANCE_LABEL = "app.kubernetes.io/instance"

# A replacement, as field manager, source of events and header of its own requests.
REPLACEMENT = "headrace-replace"
# The marks of GitOps controllers, as labels or annotations.
GITOPS_MARKS = {
    "argocd.argoproj.io/tracking-id": "Argo CD",
    "argocd.argoproj.io/instance": "Argo CD",
    "kustomize.toolkit.fluxcd.io/name": "Flux",
    "helm.toolkit.fluxcd.io/name": "Flux",
}
