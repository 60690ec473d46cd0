package lab_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/wallprobe/wallprobe/internal/need"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// coturnClient runs one of coturn's programs on the near host.
func coturnClient(t *testing.T, w *lab.World, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var out bytes.Buffer
	cmd := w.Host("host").Command(ctx, need.Program(t, args[0]), args[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := w.Host("host").Run(cmd); err != nil {
		fmt.Fprintln(&out, err)
	}
	return out.String()
}

func TestCoturnsClientsAreServed(t *testing.T) {
	lab.NeedLab(t)
	need.Program(t, "turnutils_uclient")
	need.Program(t, "turnutils_stunclient")
	s, err := scenarios.Load("../testdata/truth/turn.yaml")
	if err != nil {
		t.Fatal(err)
	}
	w := lab.Stand(t, lab.ConfigFor([]*scenarios.Scenario{s}))
	s.File, _ = filepath.Abs("../testdata/truth/turn.yaml")
	key, _ := startReflector(t, w, s, "--plain-stun") // coturn's client asks for its challenge with fewer bytes than that has
	user, pass := wire.TURN(key, wire.NewSessionID(), time.Now())
	const packets = 20
	all := fmt.Sprintf("tot_send_msgs=%d, tot_recv_msgs=%d", 2*packets, 2*packets)
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"stunclient":               {[]string{"turnutils_stunclient", "-p", "3478", "198.51.100.10"}, "UDP reflexive addr: 10.77.1.2:"},
		"uclient, channels":        {[]string{"turnutils_uclient", "-y", "-c", "-p", "3480"}, all},
		"uclient, indications":     {[]string{"turnutils_uclient", "-y", "-c", "-s", "-p", "3480"}, all},
		"uclient, TCP":             {[]string{"turnutils_uclient", "-y", "-c", "-t", "-p", "3480"}, all},
		"uclient, TLS":             {[]string{"turnutils_uclient", "-y", "-c", "-t", "-S", "-p", "5349"}, all},
		"uclient, wrong password":  {[]string{"turnutils_uclient", "-y", "-c", "-p", "3480"}, "Cannot complete Allocation"},
		"uclient, stranger's peer": {[]string{"turnutils_uclient", "-c", "-e", "198.51.100.20", "-p", "3480"}, "403"},
	} {
		t.Run(name, func(t *testing.T) {
			args := c.args
			if args[0] == "turnutils_uclient" {
				given := pass
				if name == "uclient, wrong password" {
					given = "wrong"
				}
				args = append(args, "-n", fmt.Sprint(packets), "-z", "5", "-u", user, "-w", given, "198.51.100.10")
			}
			if out := coturnClient(t, w, args...); !strings.Contains(out, c.want) {
				t.Errorf("%s says:\n%s\nwithout %q", strings.Join(args, " "), out, c.want)
			}
		})
	}
}

// turnserver runs coturn's server on a host and waits until it answers.
func turnserver(t *testing.T, w *lab.World, host string) netip.Addr {
	t.Helper()
	dir := t.TempDir()
	cert, err := selfSigned("turn.example")
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"cert.pem": {Type: "CERTIFICATE", Bytes: cert.Certificate[0]}, "key.pem": {Type: "PRIVATE KEY", Bytes: der},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	at, _ := w.Host(host).Addrs()
	var out bytes.Buffer
	cmd := w.Host(host).Command(context.Background(), need.Program(t, "turnserver"), "-n", "--no-cli", "-L", at.String(), "-E", at.String(),
		"--user", "somebody:secret", "--realm", "elsewhere", "--lt-cred-mech", "--log-file", "stdout", "--pidfile", filepath.Join(dir, "pid"),
		"--cert", filepath.Join(dir, "cert.pem"), "--pkey", filepath.Join(dir, "key.pem"), "--userdb", filepath.Join(dir, "db"), "--no-dtls")
	cmd.Stdout, cmd.Stderr, cmd.Dir = &out, &out, dir
	p, err := w.Host(host).Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Stop(time.Second)
		if t.Failed() {
			t.Logf("turnserver:\n%s", &out)
		}
	})
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		if answers(w, "udp", netip.AddrPortFrom(at, 3478)) && answers(w, "tcp", netip.AddrPortFrom(at, 5349)) {
			return at
		}
	}
	t.Fatalf("turnserver does not answer\n%s", &out)
	return at
}

// answers waits a moment for a server, and tells whether it is there.
func answers(w *lab.World, network string, at netip.AddrPort) bool {
	c, err := dialFrom(w, network, at)
	if err != nil {
		return false
	}
	defer c.Close()
	if network == "tcp" {
		return true
	}
	_, err = (&protocol.Relay{Conn: c, Stall: 100 * time.Millisecond}).Bound()
	return err == nil
}

// dialFrom connects from the near host.
func dialFrom(w *lab.World, network string, to netip.AddrPort) (c net.Conn, err error) {
	err = w.Host("host").Do(func() (err error) {
		d := net.Dialer{Timeout: 200 * time.Millisecond}
		c, err = d.Dial(network, to.String())
		return err
	})
	return c, err
}

// peerOn answers every datagram on a host with itself.
func peerOn(t *testing.T, w *lab.World, host string) netip.AddrPort {
	t.Helper()
	at, _ := w.Host(host).Addrs()
	var c *net.UDPConn
	if err := w.Host(host).Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func TestOurClientUsesCoturnsServer(t *testing.T) {
	lab.NeedLab(t)
	need.Program(t, "turnserver")
	w := lab.Stand(t, lab.Config{Hosts: []string{"other"}})
	at, peer := turnserver(t, w, "other"), peerOn(t, w, "server")
	for _, transport := range []string{"udp", "tcp", "tls"} {
		t.Run(transport, func(t *testing.T) {
			network, port := transport, uint16(3478)
			if transport == "tls" {
				network, port = "tcp", 5349
			}
			c, err := dialFrom(w, network, netip.AddrPortFrom(at, port))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			own := netip.MustParseAddrPort(c.LocalAddr().String())
			if transport == "tls" {
				c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
			}
			r := &protocol.Relay{Conn: c, Username: "somebody", Password: "secret", Stall: 2 * time.Second}
			if got, err := r.Bound(); err != nil || got != own {
				t.Fatalf("binding: %v, %v, want %v", got, err, own)
			}
			useRelay(t, r, at, own, peer)
		})
	}
	t.Run("wrong password", func(t *testing.T) {
		c, err := dialFrom(w, "udp", netip.AddrPortFrom(at, 3478))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		r := &protocol.Relay{Conn: c, Username: "somebody", Password: "wrong", Stall: 2 * time.Second}
		if err := r.Allocate(); err == nil || !strings.HasPrefix(err.Error(), "the relay refuses with 401 ") {
			t.Errorf("allocate: %v", err)
		}
	})
}

// useRelay allocates and sends data both ways, in indications and through a channel.
func useRelay(t *testing.T, r *protocol.Relay, server netip.Addr, own, peer netip.AddrPort) {
	t.Helper()
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	must("allocate", r.Allocate())
	if r.Relayed.Addr() != server || r.Mapped != own {
		t.Errorf("relayed by %v, mapped to %v", r.Relayed, r.Mapped)
	}
	must("permission", r.Permit(peer))
	heard := func(want uint16, data string) {
		t.Helper()
		channel, b, err := r.Receive(time.Now().Add(2 * time.Second))
		if err != nil || channel != want || string(b) != data {
			t.Fatalf("channel %#x: %q, %v, want %q in channel %#x", channel, b, err, data, want)
		}
	}
	must("indication", r.Indicate(peer, []byte("in an indication")))
	heard(0, "in an indication")
	must("channel", r.Bind(0x4001, peer))
	for _, data := range []string{"c", "in", "cha", "nnel", "of odd lengths"} {
		must("channel data", r.Send(0x4001, []byte(data)))
		heard(0x4001, data)
	}
	must("refresh", r.Refresh(time.Minute))
	must("end", r.Refresh(0))
}
