package middlebox

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/wallprobe/wallprobe/lab"
)

// Issuer is the name of the authority whose certificates the boxes show.
const Issuer = "wallprobe lab inspection"

// Intercept speaks TLS to both ends of connections, as security appliances do
// that look into it: the client gets a certificate of the box's own for the
// name that it asked for, the server the client's name and ALPN offer. What
// does not begin with a TLS handshake is forwarded as it is. The server sees
// the client's own address.
type Intercept struct {
	Ports string // which server ports, as nft has it
	From  string // the interface by which clients come in; empty is lan0
}

// An InterceptProxy is an Intercept put into the way.
type InterceptProxy struct {
	*TCPProxy
	returns *diversion
}

// Open puts the box into the way on a host.
func (i Intercept) Open(h *lab.Host) (*InterceptProxy, error) {
	authority, err := newAuthority()
	if err != nil {
		return nil, err
	}
	b := &interception{host: h, authority: authority}
	p := &InterceptProxy{}
	if p.TCPProxy, err = (TCP{Ports: i.Ports, From: i.From, Answer: b.answer}).Open(h); err != nil {
		return nil, err
	}
	if p.returns, err = divertReturns(h, p.listeners[0].Addr().(*net.TCPAddr).Port); err != nil {
		return nil, errors.Join(fmt.Errorf("interceptor on %s: %w", h.Name(), err), p.Close())
	}
	return p, nil
}

// Serve works until ctx ends and returns nil then, after every connection has
// been closed and the box lifted out of the way.
func (p *InterceptProxy) Serve(ctx context.Context) error {
	return errors.Join(p.TCPProxy.Serve(ctx), p.Close())
}

// Close lifts the box out of the way without Serve. It may be called again.
func (p *InterceptProxy) Close() error {
	err := p.TCPProxy.Close()
	if p.returns != nil {
		err = errors.Join(err, p.returns.end())
		p.returns = nil
	}
	return err
}

// speakFirst is how long a client may take to say something before the server
// is taken to speak first, which is not how TLS begins.
const speakFirst = 300 * time.Millisecond

// drainTime is how long the second direction may take when the first has ended.
const drainTime = 5 * time.Second

type interception struct {
	host      *lab.Host
	authority *authority
}

// answer plays the server towards the client.
func (i *interception) answer(c net.Conn) {
	near := &peeked{Conn: c, in: bufio.NewReader(c)}
	_ = c.SetReadDeadline(time.Now().Add(speakFirst))
	first, _ := near.in.Peek(2)
	_ = c.SetReadDeadline(time.Time{})
	if len(first) == 2 && first[0] == 0x16 && first[1] == 3 { // a handshake record, RFC 8446 section 5.1
		i.intercept(near)
		return
	}
	far, err := i.dial(c)
	if err != nil {
		return
	}
	defer far.Close()
	splice(near, far)
}

// dial connects to where the client aimed, from the client's address.
func (i *interception) dial(c net.Conn) (far net.Conn, err error) {
	d := net.Dialer{Timeout: dialTimeout, Control: transparent, LocalAddr: &net.TCPAddr{IP: c.RemoteAddr().(*net.TCPAddr).IP}}
	d.SetMultipathTCP(false)
	err = i.host.Do(func() error {
		far, err = d.Dial("tcp", c.LocalAddr().String())
		return err
	})
	return far, err
}

// intercept shakes hands with the server first, so that the client is told the
// protocol that the server chose.
func (i *interception) intercept(c net.Conn) {
	var far *tls.Conn
	defer func() {
		if far != nil {
			far.NetConn().Close()
		}
	}()
	near := tls.Server(c, &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		conn, err := i.dial(c)
		if err != nil {
			return nil, err
		}
		far = tls.Client(conn, &tls.Config{
			ServerName: hello.ServerName, NextProtos: hello.SupportedProtos,
			InsecureSkipVerify: true, // #nosec: such boxes often do not either
		})
		ctx, cancel := context.WithTimeout(hello.Context(), dialTimeout)
		defer cancel()
		if err := far.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		certificate, err := i.authority.leaf(hello.ServerName)
		if err != nil {
			return nil, err
		}
		config := &tls.Config{Certificates: []tls.Certificate{*certificate}}
		if p := far.ConnectionState().NegotiatedProtocol; p != "" {
			config.NextProtos = []string{p}
		}
		return config, nil
	}})
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	if near.HandshakeContext(ctx) == nil {
		splice(near, far)
	}
}

// splice joins two connections until both directions have ended.
func splice(near, far net.Conn) {
	var wg sync.WaitGroup
	forward := func(to, from net.Conn) {
		_, _ = io.Copy(to, from)
		if half, ok := to.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
		_ = from.SetReadDeadline(time.Now()) // nothing more is forwarded from here
		_ = to.SetReadDeadline(time.Now().Add(drainTime))
	}
	wg.Go(func() { forward(far, near) })
	wg.Go(func() { forward(near, far) })
	wg.Wait()
}

// A peeked connection gives its first bytes again.
type peeked struct {
	net.Conn
	in *bufio.Reader
}

func (p *peeked) Read(b []byte) (int, error) { return p.in.Read(b) }

func (p *peeked) CloseWrite() error { return p.Conn.(*net.TCPConn).CloseWrite() }

// An authority makes certificates for any name.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate

	mu     sync.Mutex
	leaves map[string]*tls.Certificate
}

// maxLeaves bounds the names for which certificates are kept.
const maxLeaves = 1024

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: Issuer},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &authority{key: key, cert: cert, leaves: make(map[string]*tls.Certificate)}, err
}

// leaf is the certificate for a server name, which may be empty.
func (a *authority) leaf(name string) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.leaves[name]; c != nil {
		return c, nil
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter,
	}
	if name != "" {
		t.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, &a.key.PublicKey, a.key)
	if err != nil {
		return nil, err
	}
	c := &tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: a.key}
	if len(a.leaves) < maxLeaves {
		a.leaves[name] = c
	}
	return c, nil
}

// pem is the authority's certificate and key, as programs read them.
func (a *authority) pem() ([]byte, error) {
	key, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		return nil, err
	}
	return slices.Concat(
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})), nil
}
