package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// router keeps routes towards the nodes, in the host's network namespace and in the control plane's.
type router struct {
	host         *netlink.Handle
	controlPlane *netlink.Handle
	last         string
}

func newRouter(namespace string) (*router, error) {
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	r := &router{host: host}
	if namespace != "" {
		handle, err := netns.GetFromPath(namespace)
		if err != nil {
			return nil, fmt.Errorf("--control-plane-namespace %s: %w", namespace, err)
		}
		defer handle.Close()
		if r.controlPlane, err = netlink.NewHandleAt(handle, unix.NETLINK_ROUTE); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func ipnet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func replace(handle *netlink.Handle, to netip.Prefix, via netip.Addr) error {
	if err := handle.RouteReplace(&netlink.Route{Dst: ipnet(to), Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("route %s via %s: %w", to, via, err)
	}
	return nil
}

// converge routes the service network and the LoadBalancer network via one node, and single addresses via theirs;
// routes to single addresses that are no longer wanted go. Nothing outside these two networks is looked at.
func (r *router) converge(services, addresses netip.Prefix, via netip.Addr, single map[netip.Addr]netip.Addr) error {
	now := fmt.Sprint(services, addresses, via, single)
	if now == r.last {
		return nil
	}
	problems := []error{replace(r.host, services, via), replace(r.host, addresses, via)}
	if r.controlPlane != nil {
		problems = append(problems, replace(r.controlPlane, services, via))
	}
	for to, through := range single {
		problems = append(problems, replace(r.host, netip.PrefixFrom(to, to.BitLen()), through))
	}
	routes, err := r.host.RouteList(nil, netlink.FAMILY_V4)
	problems = append(problems, err)
	for i := range routes {
		dst := routes[i].Dst
		if dst == nil {
			continue
		}
		ones, bits := dst.Mask.Size()
		at, ok := netip.AddrFromSlice(dst.IP.To4())
		if _, wanted := single[at]; ok && ones == bits && addresses.Contains(at) && !wanted {
			problems = append(problems, r.host.RouteDel(&routes[i]))
		}
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	r.last = now
	logf("routing via %s, single addresses %v", via, single)
	return nil
}
