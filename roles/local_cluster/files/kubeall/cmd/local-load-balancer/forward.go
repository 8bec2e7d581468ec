package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// forwarder joins connections to one address of the host with the published Service.
type forwarder struct {
	target atomic.Pointer[string]
}

// nothing is what a client reads while there is no Service to forward to.
const nothing = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"

// point sets where new connections go; established ones stay.
func (f *forwarder) point(target string) {
	if old := f.target.Swap(&target); old == nil || *old != target {
		logf("published address leads to %q", target)
	}
}

func (f *forwarder) listen(ctx context.Context, address string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { listener.Close() })
	go func() {
		for {
			client, err := listener.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				logf("accept: %v", err)
				time.Sleep(100 * time.Millisecond)
				continue
			}
			go f.join(client.(*net.TCPConn))
		}
	}()
	return nil
}

func (f *forwarder) join(client *net.TCPConn) {
	defer client.Close()
	target := f.target.Load()
	if target == nil || *target == "" {
		refuse(client, "No Service of type LoadBalancer carries the annotation "+publishAnnotation+": \"true\" yet.\n")
		return
	}
	connection, err := net.DialTimeout("tcp", *target, 5*time.Second)
	if err != nil {
		refuse(client, fmt.Sprintf("The published Service does not answer at %s: %v\n", *target, err))
		return
	}
	service := connection.(*net.TCPConn)
	defer service.Close()
	var both sync.WaitGroup
	both.Add(2)
	go pass(service, client, &both)
	go pass(client, service, &both)
	both.Wait()
}

// pass copies one direction and hands its end on. A reset is handed on too, so that nobody waits for a dead peer.
func pass(to, from *net.TCPConn, both *sync.WaitGroup) {
	defer both.Done()
	if _, err := io.Copy(to, from); err != nil {
		to.SetLinger(0)
		from.SetLinger(0)
		to.Close()
		from.Close()
		return
	}
	to.CloseWrite()
}

func refuse(client *net.TCPConn, why string) {
	client.SetDeadline(time.Now().Add(2 * time.Second))
	fmt.Fprintf(client, nothing, len(why), why)
	client.CloseWrite()
	io.Copy(io.Discard, client)
}
