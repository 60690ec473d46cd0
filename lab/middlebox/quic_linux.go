package middlebox

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync"

	"github.com/quic-go/quic-go"
)

// QUIC is UDP.Between: it speaks QUIC to both ends, as Between does TLS.
func (i *Interceptor) QUIC(ctx context.Context, clients net.PacketConn, listen func() (*net.UDPConn, error)) {
	tr := &quic.Transport{Conn: clients}
	defer tr.Close()
	ln, err := tr.Listen(&tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h3"},
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) { return i.leaf(h.ServerName) },
	}, interceptedQUIC())
	if err != nil {
		return
	}
	defer ln.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		near, err := ln.Accept(ctx)
		if err != nil {
			return
		}
		wg.Go(func() { i.interceptQUIC(ctx, near, listen) })
	}
}

func interceptedQUIC() *quic.Config {
	return &quic.Config{Versions: []quic.Version{quic.Version1}, InitialPacketSize: 1200, DisablePathMTUDiscovery: true}
}

// interceptQUIC makes the second connection and joins the streams of both.
func (i *Interceptor) interceptQUIC(ctx context.Context, near *quic.Conn, listen func() (*net.UDPConn, error)) {
	defer near.CloseWithError(0, "")
	aimed, ok := near.RemoteAddr().(*Aimed)
	if !ok {
		return
	}
	u, err := listen()
	if err != nil {
		return
	}
	defer u.Close()
	name := near.ConnectionState().TLS.ServerName
	far, err := quic.Dial(ctx, u, net.UDPAddrFromAddrPort(aimed.Server), &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: name, NextProtos: []string{"h3"},
		InsecureSkipVerify: true, // #nosec: it believes whoever is there, as its clients believe it
	}, interceptedQUIC())
	if err != nil {
		return
	}
	defer far.CloseWithError(0, "")
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(near.Context(), cancel)()
	defer context.AfterFunc(far.Context(), cancel)()
	var wg sync.WaitGroup
	for _, way := range [][2]*quic.Conn{{near, far}, {far, near}} {
		wg.Go(func() { joinStreams(ctx, way[0], way[1]) })
		wg.Go(func() { joinHalves(ctx, way[0], way[1]) })
	}
	<-ctx.Done()
	near.CloseWithError(0, "")
	far.CloseWithError(0, "")
	wg.Wait()
}

// joinStreams makes a stream of to for each of from.
func joinStreams(ctx context.Context, from, to *quic.Conn) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		a, err := from.AcceptStream(ctx)
		if err != nil {
			return
		}
		b, err := to.OpenStreamSync(ctx)
		if err != nil {
			return
		}
		half := func(to, from *quic.Stream) {
			_, _ = io.Copy(to, from)
			_ = to.Close()
		}
		wg.Go(func() { half(b, a) })
		wg.Go(func() { half(a, b) })
	}
}

// joinHalves does so for streams of one direction.
func joinHalves(ctx context.Context, from, to *quic.Conn) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		a, err := from.AcceptUniStream(ctx)
		if err != nil {
			return
		}
		b, err := to.OpenUniStreamSync(ctx)
		if err != nil {
			return
		}
		wg.Go(func() {
			_, _ = io.Copy(b, a)
			_ = b.Close()
		})
	}
}
