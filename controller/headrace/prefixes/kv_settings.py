"""Where servers publish their KV cache events, as the configuration says it.

Source: llm-d-router, parameters of precise-prefix-cache-producer. What cuts and names blocks there is the servers' own
affair here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from headrace.config.decode import Parameters


@dataclass(frozen=True)
class KvEventsSettings:
    """Where servers publish. `port` is that of the Pod's first rank; a rank's own is that many above it. `topic` is
    what the topics must begin with."""

    port: int = 5557
    topic: str = ""


class _Discovery(Parameters, frozen=True):
    socket_port: Annotated[int, Meta(ge=1, le=65_000)] = 5557
    # The endpoint picker knows its Pods.
    pod_label_selector: Any = None
    pod_namespace: Any = None


class _Events(Parameters, frozen=True):
    topic_filter: str = ""
    # Servers are listened to where they run.
    discover_pods: Literal[True] = True
    pod_discovery_config: _Discovery = _Discovery()
    zmq_endpoint: Any = None
    concurrency: Any = None
    engine_type: Any = None


class KvEventsParameters(Parameters, frozen=True):
    """A precise-prefix-cache-producer's parameters."""

    kv_events_config: _Events = _Events()
    token_processor_config: Any = None
    indexer_config: Any = None
    tokenizers_pool_config: Any = None
    kv_cache_backends: Any = None

    def settings(self) -> KvEventsSettings:
        """The settings that they come to."""
        events = self.kv_events_config
        return KvEventsSettings(events.pod_discovery_config.socket_port, events.topic_filter)
