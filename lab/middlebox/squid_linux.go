package middlebox

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/wallprobe/wallprobe/lab"
)

// Squid is a real inspecting proxy in the way of TLS: squid with ssl-bump,
// which decrypts every connection, reads the HTTP inside, and encrypts it
// again under an authority of its own. What is not TLS is passed on.
type Squid struct {
	Ports string // which server ports, as nft has it
	From  string // the interface by which clients come in; empty is lan0
}

// Where Debian and Ubuntu keep squid's programs, which are not in the path of
// ordinary users.
var squidPrograms = map[string][]string{
	"squid":                 {"squid", "/usr/sbin/squid"},
	"security_file_certgen": {"/usr/lib/squid/security_file_certgen", "/usr/lib64/squid/security_file_certgen"},
}

const (
	squidPackage   = "squid-openssl"
	squidPort      = 3129 // takes what is diverted to it
	squidPlainPort = 3128 // squid does not start without an ordinary one
	squidUser      = 13   // squid refuses to work as user 0, even one of a namespace
	squidStart     = 15 * time.Second
	squidEnd       = 100 * time.Millisecond // it has nothing to put in order
)

// squidConfig leaves everything out that is not about inspection: no cache, no
// user to become, no files but those of its folder.
const squidConfig = `http_port 127.0.0.1:%[2]d
https_port %[3]d intercept ssl-bump tls-cert=%[1]s/authority.pem generate-host-certificates=on dynamic_cert_mem_cache_size=4MB
sslcrtd_program %[4]s -s %[1]s/certificates -M 4MB
sslcrtd_children 4 startup=1
acl everybody src all
http_access allow everybody
acl beginning at_step SslBump1
ssl_bump peek beginning
ssl_bump bump all
tls_outgoing_options flags=DONT_VERIFY_PEER
sslproxy_cert_error allow all
on_unsupported_protocol tunnel all
cache deny all
pid_filename none
cache_log %[1]s/squid.log
access_log none
logfile_rotate 0
coredump_dir %[1]s
shutdown_lifetime 0 seconds
pinger_enable off
`

// A SquidProxy is a Squid put into the way.
type SquidProxy struct {
	host    *lab.Host
	dir     string
	process *lab.Process
	once    sync.Once
	err     error
}

// Open starts squid and puts it into the way. The error is a *MissingError
// where squid is not installed. Where it does not start, its log is kept and named.
func (s Squid) Open(h *lab.Host) (*SquidProxy, error) {
	program, err := squidProgram("squid")
	if err != nil {
		return nil, err
	}
	certgen, err := squidProgram("security_file_certgen")
	if err != nil {
		return nil, err
	}
	p := &SquidProxy{host: h}
	if p.dir, err = os.MkdirTemp("", "wallprobe-squid-"); err != nil {
		return nil, err
	}
	if err := p.prepare(certgen); err != nil {
		return nil, errors.Join(fmt.Errorf("squid on %s: %w", h.Name(), err), p.Close())
	}
	if err := p.start(program); err != nil {
		return nil, fmt.Errorf("squid on %s: %w", h.Name(), errors.Join(err, p.complain()))
	}
	if err := p.redirect(s); err != nil {
		return nil, errors.Join(fmt.Errorf("squid on %s: %w", h.Name(), err), p.Close())
	}
	return p, nil
}

func squidProgram(name string) (string, error) {
	for _, where := range squidPrograms[name] {
		if path, err := exec.LookPath(where); err == nil {
			return path, nil
		}
	}
	return "", &MissingError{Box: lab.BoxInspect, Program: name, Package: squidPackage}
}

// prepare writes what squid reads.
func (p *SquidProxy) prepare(certgen string) error {
	a, err := newAuthority(Issuer)
	if err != nil {
		return err
	}
	text, err := a.pem()
	if err != nil {
		return err
	}
	config := fmt.Sprintf(squidConfig, p.dir, squidPlainPort, squidPort, certgen)
	for name, content := range map[string][]byte{"authority.pem": text, "squid.conf": []byte(config)} {
		if err := os.WriteFile(filepath.Join(p.dir, name), content, 0o600); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), squidStart)
	defer cancel()
	out, err := exec.CommandContext(ctx, certgen, "-c", "-s", filepath.Join(p.dir, "certificates"), "-M", "4MB").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", certgen, err, bytes.TrimSpace(out))
	}
	return nil
}

// start starts squid as a user other than root, which is this user outside of
// squid's own user namespace, and waits until it listens.
func (p *SquidProxy) start(program string) error {
	cmd := p.host.Command(context.Background(), program, "-N", "-f", filepath.Join(p.dir, "squid.conf"))
	cmd.Dir = p.dir
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
	cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: squidUser, HostID: os.Geteuid(), Size: 1}}
	cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: squidUser, HostID: os.Getegid(), Size: 1}}
	var err error
	if p.process, err = p.host.Start(cmd); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = p.process.Wait()
	}()
	deadline := time.After(squidStart)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			return errors.New("it ended at once")
		case <-deadline:
			return fmt.Errorf("it did not listen within %v", squidStart)
		case <-tick.C:
			log, err := os.ReadFile(p.log())
			switch {
			case err != nil: // not begun yet
			case bytes.Contains(log, []byte("Cannot bind socket")):
				return errors.New("its port is taken")
			case bytes.Contains(log, []byte("Accepting NAT intercepted SSL bumped")):
				return nil
			}
		}
	}
}

func (p *SquidProxy) log() string { return filepath.Join(p.dir, "squid.log") }

// redirect sends the connections of clients to squid, which asks the kernel
// where they were aimed.
func (p *SquidProxy) redirect(s Squid) error {
	from := s.From
	if from == "" {
		from = "lan0"
	}
	rules := fmt.Sprintf(`table inet middlebox_squid {
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		iifname "%s" tcp dport %s counter redirect to :%d
	}
}
`, from, s.Ports, squidPort)
	_, err := p.host.NFT(context.Background(), []byte(rules), "-f", "-")
	return err
}

// Serve works until ctx ends and returns nil then, after squid has ended. When
// squid ends before, the error is the end of its log.
func (p *SquidProxy) Serve(ctx context.Context) error {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = p.process.Wait()
	}()
	select {
	case <-ctx.Done():
		err := p.Close()
		<-ended
		return err
	case <-ended:
		return fmt.Errorf("squid on %s ended: %w", p.host.Name(), p.complain())
	}
}

// complain gives the last lines of squid's log, which stays where it is.
func (p *SquidProxy) complain() error {
	text, _ := os.ReadFile(p.log())
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	lines = lines[max(0, len(lines)-5):]
	p.end()
	return fmt.Errorf("its log is kept in %s: %s", p.log(), strings.Join(lines, "; "))
}

// Close ends squid and removes what it wrote. It may be called again.
func (p *SquidProxy) Close() error {
	p.once.Do(func() {
		p.end()
		_, err := p.host.NFT(context.Background(), []byte("add table inet middlebox_squid\ndelete table inet middlebox_squid\n"), "-f", "-")
		p.err = errors.Join(err, os.RemoveAll(p.dir))
	})
	return p.err
}

// end stops squid and its helpers.
func (p *SquidProxy) end() {
	if p.process == nil {
		return
	}
	_ = p.process.Stop(squidEnd)                        // how it ended is nobody's interest
	_ = syscall.Kill(-p.process.Pid(), syscall.SIGKILL) // its helpers; fails when all have ended
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
