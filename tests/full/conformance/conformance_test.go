// Package conformance runs the Gateway API Inference Extension's conformance suite as it was released.
package conformance

import (
	"testing"

	inference "sigs.k8s.io/gateway-api-inference-extension/conformance"
)

// TestConformance takes the suite's own flags: -gateway-class, -report-output and so on.
func TestConformance(t *testing.T) {
	inference.RunConformance(t)
}
