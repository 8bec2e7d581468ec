package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"sort"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
)

type balancer struct {
	options
	client   kubernetes.Interface
	services corelisters.ServiceLister
	nodes    corelisters.NodeLister
	slices   discoverylisters.EndpointSliceLister
	routes   *router
	forward  *forwarder
}

// reconcile brings addresses, routes and the forwarder to what the caches say now.
func (b *balancer) reconcile(ctx context.Context) error {
	services, err := b.services.List(labels.Everything())
	if err != nil {
		return err
	}
	nodes, err := b.nodes.List(labels.Everything())
	if err != nil {
		return err
	}
	var problems []error
	for s, give := range assign(services, b.addresses) {
		problems = append(problems, b.patch(ctx, s, give))
	}
	if ready := readyNodes(nodes); len(ready) > 0 {
		single, err := b.singleRoutes(services, ready)
		problems = append(problems, err, b.routes.converge(b.options.services, b.addresses, ready[0].address, single))
	}
	b.forward.point(published(services))
	return errors.Join(problems...)
}

// patch writes the Service's LoadBalancer address into its status.
func (b *balancer) patch(ctx context.Context, s *v1.Service, give string) error {
	ingress := []map[string]string{}
	if give != "" {
		ingress = append(ingress, map[string]string{"ip": give, "ipMode": string(v1.LoadBalancerIPModeVIP)})
	}
	body, err := json.Marshal(map[string]any{"status": map[string]any{"loadBalancer": map[string]any{"ingress": ingress}}})
	if err != nil {
		return err
	}
	_, err = b.client.CoreV1().Services(s.Namespace).Patch(ctx, s.Name, types.MergePatchType, body, metav1.PatchOptions{}, "status")
	if err != nil {
		return fmt.Errorf("address %q for Service %s/%s: %w", give, s.Namespace, s.Name, err)
	}
	logf("Service %s/%s has address %q", s.Namespace, s.Name, give)
	return nil
}

type node struct {
	name    string
	address netip.Addr
}

// readyNodes are the Ready nodes with an address, by name.
func readyNodes(nodes []*v1.Node) []node {
	var ready []node
	for _, n := range nodes {
		up := false
		for _, c := range n.Status.Conditions {
			up = up || c.Type == v1.NodeReady && c.Status == v1.ConditionTrue
		}
		for _, a := range n.Status.Addresses {
			if parsed, err := netip.ParseAddr(a.Address); up && a.Type == v1.NodeInternalIP && err == nil {
				ready = append(ready, node{n.Name, parsed})
				break
			}
		}
	}
	sort.Slice(ready, func(i, j int) bool { return ready[i].name < ready[j].name })
	return ready
}

// singleRoutes routes each address of a Service with externalTrafficPolicy Local to a node that has an endpoint of it:
// every other node drops its traffic.
func (b *balancer) singleRoutes(services []*v1.Service, ready []node) (map[netip.Addr]netip.Addr, error) {
	single := map[netip.Addr]netip.Addr{}
	for _, s := range services {
		parsed, err := netip.ParseAddr(address(s))
		if err != nil || !ours(s) || s.Spec.ExternalTrafficPolicy != v1.ServiceExternalTrafficPolicyLocal {
			continue
		}
		selector := labels.SelectorFromSet(labels.Set{discovery.LabelServiceName: s.Name})
		slices, err := b.slices.EndpointSlices(s.Namespace).List(selector)
		if err != nil {
			return nil, err
		}
		for _, n := range ready {
			if hasEndpoint(slices, n.name) {
				single[parsed] = n.address
				break
			}
		}
	}
	return single, nil
}

func hasEndpoint(slices []*discovery.EndpointSlice, nodeName string) bool {
	for _, slice := range slices {
		for _, e := range slice.Endpoints {
			if e.NodeName != nil && *e.NodeName == nodeName && (e.Conditions.Ready == nil || *e.Conditions.Ready) {
				return true
			}
		}
	}
	return false
}
