package main

import (
	"net/netip"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var network = netip.MustParsePrefix("172.30.100.0/30")

func service(name string, age int, change func(*v1.Service)) *v1.Service {
	s := &v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, CreationTimestamp: metav1.NewTime(time.Unix(int64(1000-age), 0))}}
	s.Spec.Type = v1.ServiceTypeLoadBalancer
	s.Spec.Ports = []v1.ServicePort{{Port: 80}, {Port: 443}}
	if change != nil {
		change(s)
	}
	return s
}

func has(ip string) func(*v1.Service) {
	return func(s *v1.Service) { s.Status.LoadBalancer.Ingress = []v1.LoadBalancerIngress{{IP: ip}} }
}

func check(t *testing.T, services []*v1.Service, want map[string]string) {
	t.Helper()
	got := map[string]string{}
	for s, give := range assign(services, network) {
		got[s.Name] = give
	}
	if len(got) != len(want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	for name, give := range want {
		if got[name] != give {
			t.Fatalf("got %v, want %v", got, want)
		}
	}
}

func TestOldestIsServedFirstAndAddressesAreKept(t *testing.T) {
	check(t, []*v1.Service{service("young", 1, nil), service("old", 9, nil), service("served", 5, has("172.30.100.1"))},
		map[string]string{"old": "172.30.100.2", "young": "172.30.100.3"})
}

func TestAnAddressHeldTwiceIsGivenToTheOlder(t *testing.T) {
	check(t, []*v1.Service{service("a", 9, has("172.30.100.1")), service("b", 5, has("172.30.100.1"))}, map[string]string{"b": "172.30.100.2"})
}

func TestAWishIsGrantedOnceAndOnlyInsideTheNetwork(t *testing.T) {
	wish := func(ip string) func(*v1.Service) { return func(s *v1.Service) { s.Spec.LoadBalancerIP = ip } }
	check(t, []*v1.Service{service("a", 9, wish("172.30.100.2")), service("b", 5, wish("172.30.100.2")), service("c", 4, wish("10.0.0.1"))},
		map[string]string{"a": "172.30.100.2"})
}

func TestAFullNetworkGivesNothing(t *testing.T) {
	check(t, []*v1.Service{service("a", 9, has("172.30.100.1")), service("b", 8, has("172.30.100.2")), service("c", 7, has("172.30.100.3")), service("d", 6, nil)}, map[string]string{})
}

func TestAServiceThatIsNoLoadBalancerAnyMoreGivesItsAddressBack(t *testing.T) {
	s := service("a", 9, has("172.30.100.1"))
	s.Spec.Type = v1.ServiceTypeClusterIP
	check(t, []*v1.Service{s}, map[string]string{"a": ""})
}

func TestAnotherLoadBalancerClassIsLeftAlone(t *testing.T) {
	class := "example.com/other"
	s := service("a", 9, nil)
	s.Spec.LoadBalancerClass = &class
	check(t, []*v1.Service{s}, map[string]string{})
}

func TestTheOldestAnnotatedServiceWithAnAddressIsPublished(t *testing.T) {
	annotate := func(s *v1.Service) { s.Annotations = map[string]string{publishAnnotation: "true"} }
	young := service("young", 1, func(s *v1.Service) { annotate(s); has("172.30.100.2")(s) })
	if got := published([]*v1.Service{service("none", 9, has("172.30.100.1")), service("waiting", 8, annotate), young}); got != "172.30.100.2:80" {
		t.Fatalf("got %q", got)
	}
	if got := published([]*v1.Service{service("waiting", 8, annotate)}); got != "" {
		t.Fatalf("got %q", got)
	}
}
