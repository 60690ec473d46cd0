package middlebox

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// An Interceptor speaks TLS to both ends, as security appliances do that look
// into it: it is a TCP box's Between. To the client it shows a certificate of
// its own authority for the name that is asked for, to the server it says the
// client's name and ALPN offer, and the client is told what the server chose.
// What does not begin with a TLS handshake is forwarded as it is.
type Interceptor struct {
	Authority  string    // common name of who signs; empty is Issuer
	ALPN       []string  // names that it knows, of others the server hears nothing; nil knows all
	MaxVersion uint16    // of TLS towards the server; 0 is the highest
	Plain      bool      // speak without TLS to the server
	Later      bool      // let all pass until the client begins TLS, as behind STARTTLS
	Rewrites   []Rewrite // changes to what is said inside

	once      sync.Once
	authority *authority
	err       error // of making it
}

// handshakeTime bounds both handshakes together.
const handshakeTime = 10 * time.Second

// drainTime is how long the second direction may take when the first has ended.
const drainTime = 5 * time.Second

// Between is TCP.Between.
func (i *Interceptor) Between(client, server net.Conn) {
	near, far := &peeked{Conn: client, in: bufio.NewReader(client)}, &peeked{Conn: server, in: bufio.NewReader(server)}
	switch {
	case i.Later:
		if !near.passUntilTLS(server) {
			return
		}
	case !near.beginsTLS(far):
		splice(near, far, nil)
		return
	}
	i.intercept(near, far)
}

// intercept shakes hands with the server first, so that the client is told the
// protocol that the server chose.
func (i *Interceptor) intercept(client, server net.Conn) {
	far := server
	near := tls.Server(client, &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		leaf, err := i.leaf(hello.ServerName)
		if err != nil {
			return nil, err
		}
		config := &tls.Config{Certificates: []tls.Certificate{*leaf}, NextProtos: i.ALPN}
		if i.Plain {
			return config, nil
		}
		tc := tls.Client(server, &tls.Config{
			ServerName: hello.ServerName, NextProtos: i.offer(hello.SupportedProtos), MaxVersion: i.MaxVersion,
			InsecureSkipVerify: true, // #nosec: it believes whoever is there, as its clients believe it
		})
		if err := tc.HandshakeContext(hello.Context()); err != nil {
			return nil, err
		}
		far, config.NextProtos = tc, nil
		if p := tc.ConnectionState().NegotiatedProtocol; p != "" {
			config.NextProtos = []string{p}
		}
		return config, nil
	}})
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTime)
	defer cancel()
	if near.HandshakeContext(ctx) == nil {
		splice(near, far, i.Rewrites)
	}
}

// offer is what the server hears of a client's ALPN names.
func (i *Interceptor) offer(names []string) (known []string) {
	for _, name := range names {
		if i.ALPN == nil || slices.Contains(i.ALPN, name) {
			known = append(known, name)
		}
	}
	return known
}

// leaf is a certificate of the authority, which the first one makes.
func (i *Interceptor) leaf(name string) (*tls.Certificate, error) {
	i.once.Do(func() {
		if i.Authority == "" {
			i.Authority = Issuer
		}
		i.authority, i.err = newAuthority(i.Authority)
	})
	if i.err != nil {
		return nil, fmt.Errorf("interceptor: %w", i.err)
	}
	leaf, err := i.authority.leaf(name)
	if err != nil {
		return nil, fmt.Errorf("interceptor: certificate for %q: %w", name, err)
	}
	return leaf, nil
}

// splice joins two connections until both directions have ended.
func splice(near, far net.Conn, rewrites []Rewrite) {
	relay(near, far, func(to, from net.Conn, side Side) {
		e, buf := newEditor(rewrites, side), make([]byte, 32<<10)
		for {
			data, err := e.read(from, buf)
			if _, unsent := to.Write(data); unsent != nil || err != nil {
				return
			}
		}
	})
}

// relay forwards both directions until both have ended.
func relay(near, far net.Conn, forward func(to, from net.Conn, side Side)) {
	ended := make(chan struct{})
	one := func(to, from net.Conn, side Side) {
		forward(to, from, side)
		if half, ok := to.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
		ended <- struct{}{}
	}
	go one(far, near, Client)
	go one(near, far, Server)
	<-ended
	enough := time.AfterFunc(drainTime, func() {
		_ = near.Close()
		_ = far.Close()
	})
	<-ended
	enough.Stop()
}

// A peeked connection gives its first bytes again.
type peeked struct {
	net.Conn
	in *bufio.Reader
}

func (p *peeked) Read(b []byte) (int, error) { return p.in.Read(b) }

func (p *peeked) CloseWrite() error {
	if half, ok := p.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return p.Close()
}

// beginsTLS tells whether a handshake record of the client's is what is said
// first, RFC 8446 section 5.1. It waits until either end speaks: a client that
// takes its time is no other protocol.
func (p *peeked) beginsTLS(server *peeked) bool {
	past := time.Unix(1, 0)
	spoke := make(chan struct{})
	go func() {
		defer close(spoke)
		_, _ = server.in.Peek(1)
		_ = p.SetReadDeadline(past) // it spoke first, or is gone
	}()
	first, _ := p.in.Peek(2)
	_ = server.SetReadDeadline(past)
	<-spoke
	_ = server.SetReadDeadline(time.Time{})
	_ = p.SetReadDeadline(time.Time{})
	return len(first) == 2 && first[0] == 0x16 && first[1] == 3
}

// passUntilTLS joins the client to the server until the client begins TLS,
// and tells whether it did.
func (p *peeked) passUntilTLS(server net.Conn) (began bool) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(p.Conn, server)
	}()
	for {
		first, err := p.in.Peek(1)
		if began = err == nil && first[0] == 0x16; began || err != nil {
			break
		}
		b, _ := p.in.Peek(p.in.Buffered())
		if _, err := server.Write(b); err != nil {
			break
		}
		_, _ = p.in.Discard(len(b))
	}
	_ = server.SetReadDeadline(time.Unix(1, 0)) // it has nothing to say now
	<-done
	_ = server.SetReadDeadline(time.Time{})
	return began
}
