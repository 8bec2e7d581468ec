// Load for an ext_proc server, over one HTTP/2 connection as one worker of Envoy opens.
//
//	load -address 127.0.0.1:9002 -file requests.bin -streams 32 -seconds 5
//
// The file has requests: each a count of messages, then each message with its length before it (all 32 bits, big
// endian). A request is a stream: its messages, the last with the end of the stream; answered is one that names an
// endpoint and ends with grpc-status 0. Prints one line of JSON.
package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"sort"
	"syscall"
	"time"
)

const (
	data, headers, rstStream, settings, ping, goAway, windowUpdate = 0, 1, 3, 4, 6, 7, 8
	endStream, endHeaders, ack                                     = 1, 4, 1
	frameBytes                                                     = 16384
	greatestWindow                                                 = 1<<31 - 1
)

var destination = []byte("x-gateway-destination-endpoint")
var statusOK = []byte("\x0bgrpc-status\x010")

type stream struct {
	began  time.Time
	rest   []byte // what flow control has not let out yet
	window int
	picked bool
}

type client struct {
	out           *bufio.Writer
	requests      [][]byte
	block         []byte
	streams       map[uint32]*stream
	blocked       []uint32
	nextID        uint32
	sent          int
	window        int
	initialWindow int
	until         time.Time
	latencies     []time.Duration
	bad           int
}

func literal(name, value string) []byte {
	out := append([]byte{0, byte(len(name))}, name...)
	return append(append(out, byte(len(value))), value...)
}

func (c *client) frame(kind, flags byte, id uint32, payload []byte) {
	var head [9]byte
	binary.BigEndian.PutUint32(head[:], uint32(len(payload))<<8|uint32(kind))
	head[4] = flags
	binary.BigEndian.PutUint32(head[5:], id)
	c.out.Write(head[:])
	c.out.Write(payload)
}

func (c *client) number(kind byte, id, value uint32) {
	c.frame(kind, 0, id, binary.BigEndian.AppendUint32(nil, value))
}

func (c *client) begin() {
	s := &stream{began: time.Now(), rest: c.requests[c.sent%len(c.requests)], window: c.initialWindow}
	c.sent++
	id := c.nextID
	c.nextID += 2
	c.streams[id] = s
	block := c.block
	if id == 1 {
		// Takes back the table that the server may not allow.
		block = append([]byte{0x20}, block...)
	}
	c.frame(headers, endHeaders, id, block)
	c.push(id, s)
}

func (c *client) push(id uint32, s *stream) {
	for len(s.rest) > 0 {
		size := min(len(s.rest), s.window, c.window, frameBytes)
		if size <= 0 {
			c.blocked = append(c.blocked, id)
			return
		}
		flags := byte(0)
		if size == len(s.rest) {
			flags = endStream
		}
		c.frame(data, flags, id, s.rest[:size])
		s.rest = s.rest[size:]
		s.window -= size
		c.window -= size
	}
}

func (c *client) pushBlocked() {
	blocked := c.blocked
	c.blocked = nil
	for _, id := range blocked {
		if s := c.streams[id]; s != nil {
			c.push(id, s)
		}
	}
}

func (c *client) over(id uint32, good bool) {
	s := c.streams[id]
	if s == nil {
		return
	}
	delete(c.streams, id)
	if good && s.picked {
		c.latencies = append(c.latencies, time.Since(s.began))
	} else {
		c.bad++
	}
	if time.Now().Before(c.until) {
		c.begin()
	}
}

func (c *client) handle(kind, flags byte, id uint32, payload []byte) {
	switch kind {
	case data:
		if s := c.streams[id]; s != nil && bytes.Contains(payload, destination) {
			s.picked = true
		}
	case headers:
		if flags&endStream != 0 {
			c.over(id, bytes.Contains(payload, statusOK))
		}
	case rstStream:
		c.over(id, false)
	case settings:
		if flags&ack != 0 {
			return
		}
		for ; len(payload) >= 6; payload = payload[6:] {
			if binary.BigEndian.Uint16(payload) == 4 {
				value := int(binary.BigEndian.Uint32(payload[2:]))
				for _, s := range c.streams {
					s.window += value - c.initialWindow
				}
				c.initialWindow = value
			}
		}
		c.frame(settings, ack, 0, nil)
		c.pushBlocked()
	case ping:
		if flags&ack == 0 {
			c.frame(ping, ack, 0, payload)
		}
	case windowUpdate:
		increment := int(binary.BigEndian.Uint32(payload))
		if id == 0 {
			c.window += increment
		} else if s := c.streams[id]; s != nil {
			s.window += increment
		}
		c.pushBlocked()
	case goAway:
		log.Fatalf("GOAWAY: %q", payload)
	}
}

func read(path string) [][]byte {
	content, err := os.ReadFile(path)
	if err != nil {
		log.Fatal(err)
	}
	var requests [][]byte
	for len(content) > 0 {
		count := binary.BigEndian.Uint32(content)
		content = content[4:]
		var request []byte
		for ; count > 0; count-- {
			size := 4 + binary.BigEndian.Uint32(content)
			request = append(append(request, 0), content[:size]...)
			content = content[size:]
		}
		requests = append(requests, request)
	}
	return requests
}

// readFrames reads all the time: a client that does not read while it writes may wait for a server that waits for it.
func readFrames(connection net.Conn, frames chan<- []byte) {
	in := bufio.NewReaderSize(connection, 1<<20)
	for {
		head, err := in.Peek(9)
		if err != nil {
			log.Fatal(err)
		}
		one := make([]byte, 9+binary.BigEndian.Uint32(head)>>8)
		if _, err := io.ReadFull(in, one); err != nil {
			log.Fatal(err)
		}
		frames <- one
	}
}

func main() {
	address := flag.String("address", "127.0.0.1:9002", "the server")
	file := flag.String("file", "", "the requests")
	streams := flag.Int("streams", 32, "streams that are open at a time")
	seconds := flag.Float64("seconds", 5, "how long")
	encrypted := flag.Bool("tls", false, "TLS, with whatever certificate the server has")
	flag.Parse()
	connection, err := net.Dial("tcp", *address)
	if *encrypted && err == nil {
		connection = tls.Client(connection, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	}
	if err != nil {
		log.Fatal(err)
	}
	c := &client{
		out:      bufio.NewWriterSize(connection, 1<<20),
		requests: read(*file), streams: map[uint32]*stream{}, nextID: 1, window: 65535, initialWindow: 65535,
	}
	for _, field := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":authority", "epp"},
		{":path", "/envoy.service.ext_proc.v3.ExternalProcessor/Process"},
		{"content-type", "application/grpc"}, {"te", "trailers"},
	} {
		c.block = append(c.block, literal(field[0], field[1])...)
	}
	c.out.WriteString("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	// No table, so that every status comes in full; and no waiting for windows.
	c.frame(settings, 0, 0, binary.BigEndian.AppendUint32([]byte{0, 1, 0, 0, 0, 0, 0, 4}, greatestWindow))
	c.number(windowUpdate, 0, greatestWindow-65535)
	began := time.Now()
	c.until = began.Add(time.Duration(*seconds * float64(time.Second)))
	for range *streams {
		c.begin()
	}
	frames := make(chan []byte, 1024)
	go readFrames(connection, frames)
	received := 0
	for len(c.streams) > 0 {
		if len(frames) == 0 {
			c.out.Flush()
		}
		one := <-frames
		payload := one[9:]
		c.handle(one[3], one[4], binary.BigEndian.Uint32(one[5:])&greatestWindow, payload)
		if received += len(payload); received > 1<<28 {
			c.number(windowUpdate, 0, uint32(received))
			received = 0
		}
	}
	took := time.Since(began).Seconds()
	sort.Slice(c.latencies, func(i, j int) bool { return c.latencies[i] < c.latencies[j] })
	share := func(of float64) float64 {
		if len(c.latencies) == 0 {
			return 0
		}
		return c.latencies[int(of*float64(len(c.latencies)-1))].Seconds()
	}
	var usage syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	own := float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9
	line, _ := json.Marshal(map[string]any{
		"answered": len(c.latencies), "bad": c.bad, "seconds": took, "own_cpu_seconds": own,
		"p50_seconds": share(0.5), "p99_seconds": share(0.99),
	})
	fmt.Println(string(line))
}
