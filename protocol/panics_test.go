package protocol

import (
	"bufio"
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	pkgsftp "github.com/pkg/sftp"

	"github.com/wallprobe/wallprobe/wire"
)

// A brokenFar panics in one of its methods, as an error in the reflector might,
// from a number of calls on.
type brokenFar struct {
	*testFar
	method string
	spare  int

	mu     sync.Mutex
	called bool
}

func (f *brokenFar) at(method string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if method != f.method {
		return
	}
	if f.spare--; f.spare < 0 {
		f.called = true
		panic("an error in " + method)
	}
}

func (f *brokenFar) Prove(p []byte, from net.Addr) (wire.Message, *wire.Keys, error) {
	f.at("Prove")
	return f.testFar.Prove(p, from)
}

func (f *brokenFar) Certificate(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.at("Certificate")
	return f.testFar.Certificate(h)
}

func (f *brokenFar) Listen(at netip.Addr) (net.Listener, error) {
	f.at("Listen")
	return f.testFar.Listen(at)
}

func (f *brokenFar) Dial(ctx context.Context, m wire.Message, from, to netip.AddrPort) (net.Conn, error) {
	f.at("Dial")
	return f.testFar.Dial(ctx, m, from, to)
}

func (f *brokenFar) Now() time.Time {
	f.at("Now")
	return f.testFar.Now()
}

func (f *brokenFar) Inner(ctx context.Context, c net.Conn) []wire.Event {
	if f.inner != nil {
		return f.inner.TCP.Serve(ctx, c, f)
	}
	s := &sniffed{Conn: c, r: bufio.NewReader(c)}
	return Claim(s.peek, true).TCP.Serve(ctx, s, f)
}

// Whatever goroutine it was in, a library's too, a panic comes out of Serve,
// where the reflector bounds it; nothing goes on.
func TestPanicsAnywhereComeOutWhereTheProtocolIsServed(t *testing.T) {
	proved := 0
	for _, p := range every(t) {
		for _, f := range []*brokenFar{{method: "Prove"}, {method: "Now"}, {method: "Now", spare: 1}, {method: "Now", spare: 2}, {method: "Certificate"}, {method: "Listen"}, {method: "Dial"}} {
			synctest.Test(t, func(t *testing.T) {
				f.testFar = newFar()
				near, far := memoryPair(t)
				f.mem = &memoryNet{}
				x := f.exchange()
				x.Variant, x.Bytes, x.Listen, x.Dial = p.variant, 3000, f.mem.listen, func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
					return f.mem.dial(ctx, AddrPort(near.LocalAddr()), to)
				}
				var out any
				var wg sync.WaitGroup
				wg.Go(func() { p.TCP.Probe(t.Context(), near, x); near.Close() })
				wg.Go(func() {
					defer far.Close()
					defer func() { out = recover() }()
					if p.Inside {
						f.inner = p.Protocol
					}
					serve := p.TCP.Serve
					if Secure(p.name) {
						serve = serveTLS
					}
					serve(t.Context(), far, f)
				})
				wg.Wait()
				if held, ok := out.(*Panic); ok {
					if !strings.Contains(string(held.Stack), "brokenFar") {
						t.Errorf("%s, %s: not the stack of the panic:\n%s", p, f.method, held.Stack)
					}
					out = held.Value
				}
				if want := "an error in " + f.method; f.called && out != want || !f.called && out != nil {
					t.Errorf("%s, %s: %v came out", p, f.method, out)
				}
				if left := leftBehind(); len(left) > 0 {
					t.Errorf("%s, %s: left behind:\n%s", p, f.method, strings.Join(left, "\n\n"))
				}
			})
			if f.called && f.method == "Prove" {
				proved++
			}
		}
	}
	if n := len(every(t)); proved != n {
		t.Errorf("%d of %d protocols prove a token", proved, n)
	}
}

// pkg/sftp serves each file's requests in goroutines of its own.
func TestPanicsOverFilesOfSFTPEndTheirConnection(t *testing.T) {
	for name, try := range map[string]func(*sftpFiles) error{
		"read": func(s *sftpFiles) error {
			_, err := (&keyedReader{files: s, size: 1}).ReadAt(make([]byte, 1), 0)
			return err
		},
		"write": func(s *sftpFiles) error {
			_, err := (&keyedWriter{files: s, size: 1}).WriteAt(make([]byte, 1), 0)
			return err
		},
		"create": func(s *sftpFiles) error { _, err := s.Filewrite(pkgsftp.NewRequest("Put", "/1.bin")); return err },
		"open":   func(s *sftpFiles) error { _, err := s.Fileread(nil); return err },
		"remove": func(s *sftpFiles) error { return s.Filecmd(nil) },
		"list":   func(s *sftpFiles) error { _, err := s.Filelist(nil); return err },
	} {
		near, c := memoryPair(t)
		f := &sftpFar{conn: &sshConn{Conn: c}} // without keys
		if err := try(&sftpFiles{f}); err == nil || f.panics.first == nil {
			t.Errorf("%s: %v, kept %v", name, err, f.panics.first)
		}
		if _, err := near.Read(make([]byte, 1)); FaultOf(err) != FaultEOF {
			t.Errorf("%s: the connection goes on: %v", name, err)
		}
	}
}
