"""Names that the parts agree on with each other and with the world. Each is written here, and only here.

`http`: headers. `rpc`: gRPC services and metadata, Envoy's filter metadata. `objects`: API groups, annotations, labels
and condition types. `translated`: the text of one condition. They hold no logic beyond that text's."""
