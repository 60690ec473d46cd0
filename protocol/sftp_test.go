package protocol

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	pkgsftp "github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"github.com/wallprobe/wallprobe/wire"
)

// guest is somebody with an SSH client of their own.
func guest(t *testing.T, f *testFar, user string, auth ...ssh.AuthMethod) (*ssh.Client, chan []wire.Event, error) {
	t.Helper()
	near, far := pair(t)
	events := make(chan []wire.Event, 1)
	go func() { events <- serveSFTP(t.Context(), far, f); far.Close() }()
	conn, chans, reqs, err := ssh.NewClientConn(near, "far", &ssh.ClientConfig{User: user, Auth: auth, HostKeyCallback: ssh.InsecureIgnoreHostKey()})
	if err != nil {
		near.Close()
		return nil, events, err
	}
	return ssh.NewClient(conn, chans, reqs), events, nil
}

func TestFilesOfSFTPAreReadInAnyOrder(t *testing.T) {
	f := newFar()
	c, events, err := guest(t, f, f.exchange().Token())
	if err != nil {
		t.Fatal(err)
	}
	files, err := pkgsftp.NewClient(c)
	if err != nil {
		t.Fatal(err)
	}
	const size = 3 << 20
	want := make([]byte, size)
	f.keys.NewStream(wire.Reply, 7, 1).Read(want)
	r, err := files.Open("3145728.bin")
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{2 << 20, 0, 1, 100_000, size - 10, 700_000} {
		got := make([]byte, 50_000)
		n, err := r.ReadAt(got, at)
		if wanted := want[at:min(at+50_000, size)]; !cmp.Equal(wanted, got[:n]) || err != nil && err != io.EOF {
			t.Errorf("at %d: %d bytes that are others, %v", at, n, err)
		}
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	files.Close()
	c.Close()
	if e := <-events; len(e) != 1 || e[0].Stage != StageDone || e[0].BytesOut != 5*50_000+10 || !e[0].Answered {
		t.Errorf("%+v", e)
	}
}

func TestFilesOfSFTPAreCheckedWhenWritten(t *testing.T) {
	f := newFar()
	c, events, err := guest(t, f, f.exchange().Token())
	if err != nil {
		t.Fatal(err)
	}
	files, err := pkgsftp.NewClient(c)
	if err != nil {
		t.Fatal(err)
	}
	good := make([]byte, 100_000)
	f.keys.NewStream(wire.Request, 7, 1).Read(good)
	write := func(name string, pieces map[int64][]byte, order ...int64) error {
		w, err := files.OpenFile(name, os.O_WRONLY|os.O_CREATE)
		if err != nil {
			return err
		}
		for _, at := range order {
			if _, err := w.WriteAt(pieces[at], at); err != nil {
				w.Close()
				return err
			}
		}
		return w.Close()
	}
	halves := map[int64][]byte{0: good[:30_000], 30_000: good[30_000:60_000], 60_000: good[60_000:]}
	if err := write("100000.bin", halves, 60_000, 30_000, 0); err != nil {
		t.Errorf("written backwards: %v", err)
	}
	if err := write("letter.txt", map[int64][]byte{0: []byte("dear reader")}, 0); err != nil {
		t.Errorf("one's own: %v", err)
	}
	if err := write("100000.bin", halves, 0, 60_000); err == nil || !strings.Contains(err.Error(), "the file ended after 30000 bytes") {
		t.Errorf("with a gap: %v", err)
	}
	if err := write("100000.bin", halves, 0, 0); err == nil || !strings.Contains(err.Error(), "byte 0 was written already") {
		t.Errorf("written twice: %v", err)
	}
	if _, err := files.Open("/etc/passwd"); !os.IsNotExist(err) {
		t.Errorf("another file: %v", err)
	}
	if err := files.Remove("100000.bin"); err == nil {
		t.Error("a file was removed")
	}
	if i, err := files.Stat("77.bin"); err != nil || i.Size() != 77 || i.IsDir() {
		t.Errorf("%v, %v", i, err)
	}
	files.Close()
	c.Close()
	if e := <-events; len(e) != 1 || e[0].Stage != StageDone || e[0].BytesIn != 100_000+11+2*30_000 || !e[0].Answered {
		t.Errorf("%+v", e)
	}
}

func TestWrittenFileOfSFTPThatDiffersIsNamedByItsByte(t *testing.T) {
	f := newFar()
	c, events, err := guest(t, f, f.exchange().Token())
	if err != nil {
		t.Fatal(err)
	}
	files, err := pkgsftp.NewClient(c)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 50_000)
	f.keys.NewStream(wire.Request, 7, 1).Read(b)
	b[43_210] ^= 1
	w, err := files.Create("50000.bin")
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Write(b)
	if err == nil || !strings.Contains(err.Error(), "byte 43210: bytes altered on the way") {
		t.Errorf("written: %v", err)
	}
	c.Close()
	if e := <-events; len(e) != 1 || e[0].Fault != FaultAltered || e[0].BytesIn != 43_210 || e[0].Stage != StageData {
		t.Errorf("%+v", e)
	}
}

func TestTokenAloneOpensSSH(t *testing.T) {
	f, other := newFar(), newFar()
	other.keys = wire.Derive(wire.Key{9}, f.keys.ID, wire.Nonce{})
	anything := ssh.Password("anything")
	asked := ssh.KeyboardInteractive(func(string, string, []string, []bool) ([]string, error) { return nil, nil })
	for name, c := range map[string]struct {
		user  string
		auth  []ssh.AuthMethod
		fault string // "" is let in
	}{
		"a token, no password":   {f.exchange().Token(), nil, ""},
		"a token, any password":  {f.exchange().Token(), []ssh.AuthMethod{anything, asked}, ""},
		"root":                   {"root", []ssh.AuthMethod{anything, asked}, FaultForeign},
		"nobody":                 {"", nil, FaultForeign},
		"another key's token":    {other.exchange().Token(), []ssh.AuthMethod{anything}, FaultAltered},
		"half a token":           {f.exchange().Token()[:100], nil, FaultForeign},
		"the far end's own word": {AnswerToken(f.exchange().message(wire.Request), &f.keys, &net.TCPAddr{}, f), nil, FaultAltered},
	} {
		client, events, err := guest(t, f, c.user, c.auth...)
		if (err == nil) != (c.fault == "") {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			client.Close()
		}
		if e := <-events; len(e) != 1 || e[0].Fault != c.fault || e[0].Answered != (c.fault == "") || c.fault != "" && e[0].Stage != StageLogin {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

func TestSSHHasFilesAndNothingElse(t *testing.T) {
	f := newFar()
	c, events, err := guest(t, f, f.exchange().Token())
	if err != nil {
		t.Fatal(err)
	}
	for what, try := range map[string]func(*ssh.Session) error{
		"a command":         func(s *ssh.Session) error { return s.Run("id") },
		"a shell":           func(s *ssh.Session) error { return s.Shell() },
		"a terminal":        func(s *ssh.Session) error { return s.RequestPty("xterm", 24, 80, nil) },
		"another subsystem": func(s *ssh.Session) error { return s.RequestSubsystem("netconf") },
		"a second one":      func(s *ssh.Session) error { return errors.Join(s.RequestSubsystem("sftp"), s.RequestSubsystem("sftp")) },
		"a variable":        func(s *ssh.Session) error { return s.Setenv("LD_PRELOAD", "x") },
		"an agent":          func(s *ssh.Session) error { return refusedBy(s.SendRequest("auth-agent-req@openssh.com", true, nil)) },
		"a window":          func(s *ssh.Session) error { return refusedBy(s.SendRequest("x11-req", true, make([]byte, 16))) },
	} {
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		if err := try(s); err == nil {
			t.Errorf("%s was given", what)
		}
		s.Close()
	}
	if ok, _, err := c.SendRequest(sshIdle, true, nil); ok || err != nil {
		t.Errorf("a silence nobody asked for: %v, %v", ok, err)
	}
	c.Close()
	<-events
	if n := f.further.Load(); n > 0 {
		t.Errorf("%d further connections were made", n)
	}
}

// Nothing is forwarded, in either direction, for who has a token.
func TestSSHForwardsNothing(t *testing.T) {
	f := newFar()
	c, events, err := guest(t, f, f.exchange().Token())
	if err != nil {
		t.Fatal(err)
	}
	kinds := []string{"direct-tcpip", "direct-streamlocal@openssh.com", "forwarded-tcpip", "x11", "auth-agent@openssh.com", "tun@openssh.com"}
	if len(kinds) >= maxChannels {
		t.Fatal("they are refused because they are many")
	}
	for _, kind := range kinds {
		_, _, err := c.OpenChannel(kind, ssh.Marshal(struct {
			To       string
			ToPort   uint32
			From     string
			FromPort uint32
		}{"127.0.0.1", 22, "127.0.0.1", 50000}))
		if no, ok := errors.AsType[*ssh.OpenChannelError](err); !ok || no.Reason != ssh.Prohibited {
			t.Errorf("a channel %s: %v", kind, err)
		}
	}
	for _, request := range []string{"tcpip-forward", "cancel-tcpip-forward", "streamlocal-forward@openssh.com"} {
		if ok, _, err := c.SendRequest(request, true, ssh.Marshal(struct {
			At   string
			Port uint32
		}{"127.0.0.1", 50000})); ok || err != nil {
			t.Errorf("%s: %v, %v", request, ok, err)
		}
	}
	c.Close()
	<-events
	if n := f.further.Load(); n > 0 {
		t.Errorf("%d further connections were made", n)
	}
}

// refusedBy is an error when a request was.
func refusedBy(ok bool, err error) error {
	if err == nil && !ok {
		err = errors.New("refused")
	}
	return err
}

func TestNearEndOfSFTPTellsWhatStrangersAnswer(t *testing.T) {
	for name, c := range map[string]struct {
		says         string
		stage, fault string
	}{
		"nothing":            {"", StageBanner, FaultEOF},
		"half a version":     {"SSH-2.0-Open", StageBanner, FaultEOF},
		"a web page":         {"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", StageBanner, FaultForeign},
		"an endless line":    {strings.Repeat("A", 5000), StageBanner, FaultForeign},
		"a version alone":    {"SSH-2.0-OpenSSH_9.2\r\n", StageKex, FaultEOF},
		"rubbish after that": {"SSH-2.0-OpenSSH_9.2\r\n" + strings.Repeat("\xff", 100), StageKex, FaultAltered},
	} {
		near, far := pair(t)
		go func() {
			io.WriteString(far, c.says)
			far.CloseWrite()
			io.Copy(io.Discard, far)
		}()
		got := probeSFTP(t.Context(), near, newFar().exchange())
		near.Close()
		if got.Stage != c.stage || got.Fault != c.fault {
			t.Errorf("%s: stage %s, fault %s, %v", name, got.Stage, got.Fault, got.Err)
		}
		if got.Fault == FaultForeign && len(got.Sample) == 0 {
			t.Errorf("%s: no sample", name)
		}
	}
}

// A server that lets everybody in is not the reflector unless it answers.
func TestNearEndOfSFTPTellsAServerThatDoesNotKnowTheKey(t *testing.T) {
	key, err := hostKey()
	if err != nil {
		t.Fatal(err)
	}
	for name, config := range map[string]*ssh.ServerConfig{
		"lets all in":     {NoClientAuth: true},
		"says something":  {NoClientAuth: true, BannerCallback: func(ssh.ConnMetadata) string { return "welcome" }},
		"lets nobody in":  {PasswordCallback: func(ssh.ConnMetadata, []byte) (*ssh.Permissions, error) { return nil, io.EOF }},
		"greets and none": {PasswordCallback: func(ssh.ConnMetadata, []byte) (*ssh.Permissions, error) { return nil, io.EOF }, BannerCallback: func(ssh.ConnMetadata) string { return "x" }},
	} {
		config.AddHostKey(key)
		near, far := pair(t)
		go func() {
			if c, chans, reqs, err := ssh.NewServerConn(far, config); err == nil {
				go ssh.DiscardRequests(reqs)
				for nc := range chans {
					nc.Reject(ssh.Prohibited, "")
				}
				c.Close()
			}
		}()
		got := probeSFTP(t.Context(), near, newFar().exchange())
		near.Close()
		if got.Stage != StageLogin || got.Fault != FaultForeign {
			t.Errorf("%s: stage %s, fault %s, %v", name, got.Stage, got.Fault, got.Err)
		}
	}
}

// Somebody who ends SSH on both sides passes every byte on, and shows because
// the host key is another.
func TestInterceptedSSHShowsAsTwoHostKeys(t *testing.T) {
	f := newFar()
	x := f.exchange()
	x.Bytes = 5000
	near, a := pair(t)
	b, far := pair(t)
	done := make(chan []wire.Event, 1)
	go func() { e := serveSFTP(t.Context(), far, f); far.Close(); done <- e }()
	go interceptSSH(t, a, b)
	got := probeSFTP(t.Context(), near, x)
	near.Close()
	b.Close()
	events := <-done
	if len(events) != 1 || events[0].Said == nil || got.Said == nil {
		t.Fatalf("%+v, %+v", got, events)
	}
	sent, heard := events[0].Said.Sent, got.Said.Heard
	lines := 1 + len(sshOffers) + 3*2 + 1 // the version, the lists, three packets and the host key
	if len(sent) != lines || len(heard) != lines || sshMeans(sent[lines-1], heard[lines-1]) == "" || sent[lines-1] == heard[lines-1] {
		t.Errorf("sent %q, heard %q", sent, heard)
	}
}

// interceptSSH takes the user name and the answer from one side to the other.
func interceptSSH(t *testing.T, near, far net.Conn) {
	defer near.Close()
	private, err := newHostKey()
	if err != nil {
		t.Error(err)
		return
	}
	config := &ssh.ServerConfig{NoClientAuth: true, ServerVersion: sshServer}
	var pre ssh.ServerPreAuthConn
	config.PreAuthConnCallback = func(c ssh.ServerPreAuthConn) { pre = c }
	config.NoClientAuthCallback = func(c ssh.ConnMetadata) (*ssh.Permissions, error) {
		_, _, _, err := ssh.NewClientConn(far, "", &ssh.ClientConfig{User: c.User(), ClientVersion: sshClient,
			HostKeyCallback: ssh.InsecureIgnoreHostKey(), BannerCallback: pre.SendAuthBanner})
		return nil, err
	}
	config.AddHostKey(private)
	if c, _, _, err := ssh.NewServerConn(near, config); err == nil {
		c.Close()
	}
}

func TestSilenceOfSSHIsKeptForAsLongAsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := remembered(ftpNearAddr, ftpFarAddr)
		f := newFar()
		x := f.exchange()
		x.Idle = 50 * time.Minute
		var events []wire.Event
		var wg sync.WaitGroup
		wg.Go(func() { events = serveSFTP(t.Context(), far, f); far.Close() })
		got := probeSFTP(t.Context(), near, x)
		near.Close()
		wg.Wait()
		if got.Stage != StageDone || got.Took != x.Idle || len(events) != 1 || events[0].Stage != StageDone {
			t.Errorf("%+v, %+v", got, events)
		}
	})
}
