package reflector

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"net"
	"sync"
	"time"
)

// maxLeaves bounds the certificates kept; beyond it one is dropped for each new one.
const maxLeaves = 256

// An authority is the reflector's own CA: made at start, kept in memory, it
// signs a leaf for every server name that a client asks for.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	leaf *ecdsa.PrivateKey // one key for all leaves: they prove nothing but their origin

	mu     sync.Mutex
	leaves map[string]*tls.Certificate
}

func newAuthority(now time.Time) (*authority, error) {
	a := &authority{leaves: make(map[string]*tls.Certificate)}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	if a.leaf, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	t := template("wallprobe reflector CA", now)
	t.IsCA, t.BasicConstraintsValid, t.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, t, t, &a.key.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	a.cert, err = x509.ParseCertificate(der)
	return a, err
}

func template(name string, now time.Time) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    now.Add(-24 * time.Hour), // clients' clocks may be slow
		NotAfter:     now.Add(90 * 24 * time.Hour),
	}
}

// digest is the SHA-256 of the CA's certificate.
func (a *authority) digest() string {
	sum := sha256.Sum256(a.cert.Raw)
	return hex.EncodeToString(sum[:])
}

// certificate gives the leaf for the name in a ClientHello, or for the address
// it was aimed at where there is none.
func (a *authority) certificate(h *tls.ClientHelloInfo, now time.Time) (*tls.Certificate, error) {
	name := h.ServerName
	if name == "" {
		name, _, _ = net.SplitHostPort(h.Conn.LocalAddr().String())
	}
	if len(name) > 253 {
		return nil, fmt.Errorf("server name of %d bytes: at most 253", len(name))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.leaves[name]; c != nil {
		return c, nil
	}
	c, err := a.mint(name, now)
	if err != nil {
		return nil, err
	}
	if len(a.leaves) >= maxLeaves {
		for k := range a.leaves {
			delete(a.leaves, k)
			break
		}
	}
	a.leaves[name] = c
	return c, nil
}

func (a *authority) mint(name string, now time.Time) (*tls.Certificate, error) {
	t := template(name, now)
	t.KeyUsage, t.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	if ip := net.ParseIP(name); ip != nil {
		t.IPAddresses = []net.IP{ip}
	} else {
		t.DNSNames = []string{name}
	}
	if len(name) > 64 { // RFC 5280 appendix A.1: ub-common-name
		t.Subject.CommonName = "wallprobe"
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, &a.leaf.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("certificate for %q: %w", name, err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: a.leaf}, nil
}
