"""Envoy's messages: xDS, and the conversation of ext_proc. All modules below are generated: `make protos`.

Source: the protos of Envoy as the Go module github.com/envoyproxy/go-control-plane/envoy has them; its version is in
controller/protos/go.mod. Annotations are left out."""
