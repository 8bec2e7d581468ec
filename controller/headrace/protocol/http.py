"""Names of HTTP headers, in lower case as ext_proc carries them.

Sources: Gateway API Inference Extension, proposal 004 (endpoint picker protocol) 1.0.0; the reference picker; llm-d."""

from __future__ import annotations

from headrace.protocol.objects import REPLACEMENT

# Pseudo headers.
METHOD = ":method"
SCHEME = ":scheme"
PATH = ":path"
HOST_NAMED = ":authority"
STATUS = ":status"

ACCEPT = "accept"
ACCEPT_ENCODING = "accept-encoding"
AUTHORIZATION = "authorization"
CACHE_CONTROL = "cache-control"
CONTENT_ENCODING = "content-encoding"
CONTENT_LENGTH = "content-length"
CONTENT_TYPE = "content-type"
HOST = "host"
RETRY_AFTER = "retry-after"
TE = "te"
WWW_AUTHENTICATE = "www-authenticate"
REQUEST_ID = "x-request-id"

# The endpoint picker protocol's. They are also keys of filter metadata.
DESTINATION = "x-gateway-destination-endpoint"
SERVED = "x-gateway-destination-endpoint-served"
SUBSET = "x-gateway-destination-endpoint-subset"
# They steer the gateway, so a client's own are removed before anyone reads them.
UNTRUSTED = (DESTINATION, SERVED, SUBSET)

# Its last entry is the address from which the gateway itself was reached.
FORWARDED_FOR = "x-forwarded-for"
# A client's inputs: llm-d's name first, which takes precedence, then the reference picker's.
OBJECTIVE = ("x-llm-d-inference-objective", "x-gateway-inference-objective")
FAIRNESS_ID = ("x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id")
MODEL_REWRITE = ("x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite")
SLO_TTFT_MS = ("x-llm-d-slo-ttft-ms", "x-slo-ttft-ms")
SLO_TPOT_MS = ("x-llm-d-slo-tpot-ms", "x-slo-tpot-ms")
CONTROL = frozenset((*OBJECTIVE, *FAIRNESS_ID, *MODEL_REWRITE, *SLO_TTFT_MS, *SLO_TPOT_MS))
UNTRUSTED_OR_CONTROL = CONTROL.union(UNTRUSTED)

# Which session a request belongs to: a token that the picker gave, or the client's own identifier.
SESSION_TOKEN = "x-session-token"
SESSION_ID = "x-session-id"

# Set by body-based routing, never by a client: routes match them.
MODEL = "x-gateway-model-name"
BASE_MODEL = "x-gateway-base-model-name"
MODELS = (MODEL, BASE_MODEL)

# Errors that the picker itself answers: the reason, in one word.
DROPPED_REASON = "x-llm-d-request-dropped-reason"

# The conformance suite's, behind a flag: which endpoints to choose from, and which one answered.
CONFORMANCE_SELECTION = "test-epp-endpoint-selection"
CONFORMANCE_SERVED = "x-conformance-test-served-endpoint"

# A replacement's own requests for warming up.
CANARY = REPLACEMENT
# The simulator's answers.
SIMULATOR = "x-headrace-simulator"
SIMULATOR_POD = "x-headrace-pod"
