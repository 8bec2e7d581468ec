"""Names that the endpoint picker protocol and the reference picker give to headers and metadata.

Source: Gateway API Inference Extension, proposal 004 (endpoint picker protocol) 1.0.0."""

from __future__ import annotations

DESTINATION = "x-gateway-destination-endpoint"
SERVED = "x-gateway-destination-endpoint-served"
SUBSET = "x-gateway-destination-endpoint-subset"

# Namespaces of filter metadata: where the pick and the served endpoint go, and where the subset hint comes from.
LOAD_BALANCER_METADATA = "envoy.lb"
SUBSET_METADATA = "envoy.lb.subset_hint"

# Headers that a client never gets past the picker: they steer the gateway.
UNTRUSTED = (DESTINATION, SERVED, SUBSET)

REQUEST_ID = "x-request-id"

# Inputs of a client: llm-d's name first, which wins, then the reference picker's.
OBJECTIVE = ("x-llm-d-inference-objective", "x-gateway-inference-objective")
FAIRNESS_ID = ("x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id")
MODEL_REWRITE = ("x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite")
SLO_TTFT_MS = ("x-llm-d-slo-ttft-ms", "x-slo-ttft-ms")
SLO_TPOT_MS = ("x-llm-d-slo-tpot-ms", "x-slo-tpot-ms")
CONTROL = frozenset((*OBJECTIVE, *FAIRNESS_ID, *MODEL_REWRITE, *SLO_TTFT_MS, *SLO_TPOT_MS))

# The conformance suite's, behind a flag: which endpoints the picker is to choose from, and which one answered.
CONFORMANCE_SELECTION = "test-epp-endpoint-selection"
CONFORMANCE_SERVED = "x-conformance-test-served-endpoint"

# On errors that the picker itself answers: why, in one word.
DROPPED_REASON = "x-llm-d-request-dropped-reason"
