//go:build programs

// The suite's backends, which are built beside it: named here, so that go.mod and go.sum pin what they need.
package conformance

import _ "sigs.k8s.io/gateway-api/conformance/echo-basic"
