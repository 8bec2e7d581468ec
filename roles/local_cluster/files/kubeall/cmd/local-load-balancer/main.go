// local-load-balancer does for a local cluster what a cloud does for a real one, from the host's network namespace:
// it gives Services of type LoadBalancer an address, routes those addresses and the service network to a node that can
// serve them, and forwards one loopback address to the Service that asks for it by annotation.
package main

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

type options struct {
	kubeconfig string
	addresses  netip.Prefix
	services   netip.Prefix
	publish    string
	namespace  string
}

func parse(arguments []string) (options, error) {
	var o options
	var addresses, services string
	flags := flag.NewFlagSet("local-load-balancer", flag.ContinueOnError)
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "path of the kubeconfig")
	flags.StringVar(&addresses, "addresses", "", "network that LoadBalancer addresses are taken from")
	flags.StringVar(&services, "services", "", "the cluster's service network")
	flags.StringVar(&o.publish, "publish", "", "address:port on the host that is forwarded to the published Service; empty: none")
	flags.StringVar(&o.namespace, "control-plane-namespace", "", "network namespace file in which the service network is routed too")
	if err := flags.Parse(arguments); err != nil {
		return o, err
	}
	var err error
	if o.addresses, err = netip.ParsePrefix(addresses); err != nil {
		return o, fmt.Errorf("--addresses: %w", err)
	}
	if o.services, err = netip.ParsePrefix(services); err != nil {
		return o, fmt.Errorf("--services: %w", err)
	}
	if o.publish != "" {
		if _, err = netip.ParseAddrPort(o.publish); err != nil {
			return o, fmt.Errorf("--publish: %w", err)
		}
	}
	return o, nil
}

func main() {
	o, err := parse(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "local-load-balancer:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "local-load-balancer:", err)
		os.Exit(1)
	}
}

func logf(format string, values ...any) {
	fmt.Printf("%s "+format+"\n", append([]any{time.Now().UTC().Format(time.RFC3339)}, values...)...)
}

// run serves until ctx ends. The forwarder listens from the first moment on, so that no other program takes its port.
func run(ctx context.Context, o options) error {
	forward := &forwarder{}
	if o.publish != "" {
		if err := forward.listen(ctx, o.publish); err != nil {
			return err
		}
	}
	config, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	routes, err := newRouter(o.namespace)
	if err != nil {
		return err
	}
	if err := waitUntilAllowed(ctx, client); err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	services := factory.Core().V1().Services()
	nodes := factory.Core().V1().Nodes()
	slices := factory.Discovery().V1().EndpointSlices()
	wake := make(chan struct{}, 1)
	notify := func(any) {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	handler := cache.ResourceEventHandlerFuncs{AddFunc: notify, UpdateFunc: func(_, new any) { notify(new) }, DeleteFunc: notify}
	for _, informer := range []cache.SharedIndexInformer{services.Informer(), nodes.Informer(), slices.Informer()} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return err
		}
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	logf("serving addresses of %s, publishing on %q", o.addresses, o.publish)
	b := &balancer{options: o, client: client, services: services.Lister(), nodes: nodes.Lister(), slices: slices.Lister(), routes: routes, forward: forward}
	for {
		retry := time.Duration(1<<62 - 1)
		if err := b.reconcile(ctx); err != nil {
			logf("%v", err)
			retry = time.Second
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
			// Endpoint changes come in bursts; one pass serves them all.
			time.Sleep(50 * time.Millisecond)
		case <-time.After(retry):
		}
	}
}

// waitUntilAllowed asks until the API server lets us read: right after its first start our role does not exist yet, and
// an informer that is refused backs off for up to half a minute.
func waitUntilAllowed(ctx context.Context, client kubernetes.Interface) error {
	for said := false; ; {
		_, err := client.CoreV1().Services("").List(ctx, metav1.ListOptions{Limit: 1})
		if err == nil {
			return nil
		}
		if !said {
			logf("waiting for the API server: %v", err)
			said = true
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}
