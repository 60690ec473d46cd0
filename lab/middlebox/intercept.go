package middlebox

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"sync"
	"time"
)

// An Interceptor speaks TLS to both ends, as security appliances do that look
// into it: it is a TCP box's Between. To the client it shows a certificate of
// its own authority for the name that is asked for.
type Interceptor struct {
	Authority  string   // common name of who signs; empty is "interceptor"
	ALPN       []string // names that it knows; of others the server hears nothing
	MaxVersion uint16   // of TLS towards the server; 0 is the highest
	Plain      bool     // speak without TLS to the server

	mu   sync.Mutex
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

// Between is TCP.Between.
func (i *Interceptor) Between(client, server net.Conn) {
	near := tls.Server(client, &tls.Config{NextProtos: i.ALPN, GetCertificate: i.certificate})
	if near.Handshake() != nil {
		return
	}
	defer near.Close()
	var far interface {
		io.ReadWriter
		CloseWrite() error
	}
	far, plain := server.(*net.TCPConn)
	if !i.Plain || !plain {
		st := near.ConnectionState()
		config := &tls.Config{ServerName: st.ServerName, InsecureSkipVerify: true, MaxVersion: i.MaxVersion} // #nosec: it believes whoever is there, as its clients believe it
		if st.NegotiatedProtocol != "" {
			config.NextProtos = []string{st.NegotiatedProtocol}
		}
		far = tls.Client(server, config)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(far, near)
		_ = far.CloseWrite()
	}()
	_, _ = io.Copy(near, far)
	_ = near.CloseWrite()
	<-done
}

func (i *Interceptor) certificate(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
	return i.leaf(h.ServerName)
}

// leaf signs a certificate for a name.
func (i *Interceptor) leaf(name string) (*tls.Certificate, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.cert == nil {
		if err := i.authority(); err != nil {
			return nil, fmt.Errorf("interceptor: %w", err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("interceptor: %w", err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, leaf, i.cert, &key.PublicKey, i.key)
	if err != nil {
		return nil, fmt.Errorf("interceptor: certificate for %q: %w", name, err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, i.cert.Raw}, PrivateKey: key}, nil
}

func (i *Interceptor) authority() (err error) {
	if i.Authority == "" {
		i.Authority = "interceptor"
	}
	if i.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: i.Authority}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &i.key.PublicKey, i.key)
	if err != nil {
		return err
	}
	i.cert, err = x509.ParseCertificate(der)
	return err
}
