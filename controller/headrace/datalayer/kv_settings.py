"""Where servers publish their KV cache events, as the configuration says it.

Source: llm-d-router, parameters of precise-prefix-cache-producer. What cuts and names blocks there is the servers' own
affair here."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.scheduling import Parameters


@dataclass(frozen=True)
class KvEventsSettings:
    """Where servers publish. `port` is that of the Pod's first rank; a rank's own is that many above it. `topic` is
    what the topics must begin with."""

    port: int = 5557
    topic: str = ""


def read_kv_events(parameters: Parameters) -> KvEventsSettings:
    """The settings of a precise-prefix-cache-producer's parameters. Raises InvalidConfig."""
    events = parameters.object("kvEventsConfig")
    discovery = events.object("podDiscoveryConfig")
    settings = KvEventsSettings(discovery.integer("socketPort", 5557, at_least=1), events.text("topicFilter"))
    if settings.port > 65_000:
        raise discovery.refuse("socketPort", "give a port of 1 to 65000")
    if not events.boolean("discoverPods", True):
        raise events.refuse("discoverPods", "servers are listened to where they run: leave it out, or true")
    # The endpoint picker knows its Pods; how blocks are cut and named is the servers' own affair.
    discovery.ignore("podLabelSelector", "podNamespace")
    events.ignore("zmqEndpoint", "concurrency", "engineType")
    parameters.ignore("tokenProcessorConfig", "indexerConfig", "tokenizersPoolConfig", "kvCacheBackends")
    discovery.finish()
    events.finish()
    return settings
