package main

import (
	"net/netip"
	"sort"

	v1 "k8s.io/api/core/v1"
)

const (
	publishAnnotation = "local-cluster.headrace.dev/publish"
	loadBalancerClass = "local-cluster.headrace.dev/load-balancer"
)

// ours says whether this program serves the Service: no other load balancer class is asked for.
func ours(s *v1.Service) bool {
	return s.Spec.Type == v1.ServiceTypeLoadBalancer && s.DeletionTimestamp == nil &&
		(s.Spec.LoadBalancerClass == nil || *s.Spec.LoadBalancerClass == loadBalancerClass)
}

func address(s *v1.Service) string {
	if len(s.Status.LoadBalancer.Ingress) == 0 {
		return ""
	}
	return s.Status.LoadBalancer.Ingress[0].IP
}

// assign answers with the addresses whose Services must be patched: a new address, or "" where one must be given back.
// A Service keeps what it has as long as it is valid; the oldest Service is served first; an address that is asked for
// in spec.loadBalancerIP is given if it is of the network and nobody has it.
func assign(services []*v1.Service, network netip.Prefix) map[*v1.Service]string {
	sorted := append([]*v1.Service(nil), services...)
	sort.Slice(sorted, func(i, j int) bool { return older(sorted[i], sorted[j]) })
	taken := map[string]bool{}
	kept := map[*v1.Service]bool{}
	changes := map[*v1.Service]string{}
	for _, s := range sorted {
		has := address(s)
		parsed, err := netip.ParseAddr(has)
		inside := err == nil && network.Contains(parsed)
		wanted := s.Spec.LoadBalancerIP == "" || s.Spec.LoadBalancerIP == has
		switch {
		case ours(s) && inside && wanted && !taken[has]:
			taken[has], kept[s] = true, true
		case !ours(s) && inside && s.Spec.LoadBalancerClass == nil && s.DeletionTimestamp == nil:
			changes[s] = ""
		case !ours(s) && inside:
			taken[has] = true // until it is gone
		}
	}
	free := network.Addr().Next()
	for _, s := range sorted {
		if !ours(s) || kept[s] {
			continue
		}
		give := ""
		if s.Spec.LoadBalancerIP != "" {
			if parsed, err := netip.ParseAddr(s.Spec.LoadBalancerIP); err == nil && network.Contains(parsed) && !taken[s.Spec.LoadBalancerIP] {
				give = s.Spec.LoadBalancerIP
			}
		} else {
			for network.Contains(free) && taken[free.String()] {
				free = free.Next()
			}
			if network.Contains(free) {
				give = free.String()
			}
		}
		taken[give] = true
		if give != address(s) {
			changes[s] = give
		}
	}
	return changes
}

// published is the address:port that the host's published address leads to: the first port of the oldest annotated
// Service that has an address; "" where there is none.
func published(services []*v1.Service) string {
	var found *v1.Service
	for _, s := range services {
		if ours(s) && s.Annotations[publishAnnotation] == "true" && address(s) != "" && len(s.Spec.Ports) > 0 && (found == nil || older(s, found)) {
			found = s
		}
	}
	if found == nil {
		return ""
	}
	parsed, err := netip.ParseAddr(address(found))
	if err != nil {
		return ""
	}
	return netip.AddrPortFrom(parsed, uint16(found.Spec.Ports[0].Port)).String()
}

func older(a, b *v1.Service) bool {
	if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return a.CreationTimestamp.Before(&b.CreationTimestamp)
	}
	if a.Namespace != b.Namespace {
		return a.Namespace < b.Namespace
	}
	return a.Name < b.Name
}
