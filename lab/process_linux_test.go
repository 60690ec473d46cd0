package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/wallprobe/wallprobe/internal/need"
)

// helperMark makes the test program a lab that waits to be killed.
const helperMark = "WALLPROBE_TEST_HELPER"

// helper builds a world with programs on it and waits for its end.
func helper() error {
	w, err := Build(context.Background(), Config{})
	if err != nil {
		return err
	}
	cmd := w.Host("host").Command(context.Background(), "sh", "-c", "setsid sleep 1000 & sleep 1000")
	cmd.Stdout = os.Stdout
	p, err := w.Host("host").Start(cmd)
	if err != nil {
		return err
	}
	fmt.Println("up")
	return p.Wait()
}

func TestEverythingDiesWithTheLab(t *testing.T) {
	needLab(t)
	for _, s := range []syscall.Signal{unix.SIGKILL, unix.SIGINT, unix.SIGTERM} {
		t.Run(s.String(), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, "/proc/self/exe")
			cmd.Env = append(os.Environ(), helperMark+"=1")
			cmd.Stderr = t.Output()
			// Every process of that lab holds the other end of this pipe.
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			r := bufio.NewReader(out)
			if line, err := r.ReadString('\n'); line != "up\n" {
				t.Fatalf("the lab says %q, %v", line, err)
			}
			if err := cmd.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, r); err != nil {
				t.Errorf("somebody lives on: %v", err)
			}
			if err := cmd.Wait(); err == nil || ctx.Err() != nil {
				t.Errorf("the lab ended with %v, %v", err, ctx.Err())
			}
		})
	}
}

func TestNothingSurvivesClose(t *testing.T) {
	needLab(t)
	before := descriptors(t)
	w, err := Build(t.Context(), Config{Hosts: []string{"lan2", "other"}})
	if err != nil {
		t.Fatal(err)
	}
	// A link to a namespace ends with the namespace: that is how its end is seen.
	gone := make(chan netlink.LinkUpdate, 64)
	done := make(chan struct{})
	defer close(done)
	if err := netlink.LinkSubscribe(gone, done); err != nil {
		t.Fatal(err)
	}
	watched := map[string]bool{}
	namespaces := []*namespace{w.wires}
	for _, h := range w.hosts {
		namespaces = append(namespaces, h.ns)
	}
	for i, n := range namespaces {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = fmt.Sprintf("watch%d", i)
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "watched", PeerNamespace: netlink.NsFd(n.file.Fd())}
		if err := netlink.LinkAdd(veth); err != nil {
			t.Fatal(err)
		}
		watched[attrs.Name] = true
	}
	cmd := w.Host("server").Command(t.Context(), "sh", "-c", "setsid sleep 1000 & echo started; sleep 1000")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := w.Host("server").Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err == nil {
		t.Error("the program on the server ended by itself")
	}
	deadline := time.After(20 * time.Second)
	for len(watched) > 0 {
		select {
		case u := <-gone:
			if u.Header.Type == unix.RTM_DELLINK {
				delete(watched, u.Attrs().Name)
			}
		case <-deadline:
			t.Fatalf("namespaces live on: %v", watched)
		}
	}
	for sleepers(t) > 0 {
		select {
		case <-deadline:
			t.Fatalf("%d programs live on", sleepers(t))
		default:
		}
	}
	// One more is the subscription's socket.
	if after := descriptors(t); after > before+1 {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	if _, err := w.Host("server").Start(w.Host("server").Command(t.Context(), "true")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a closed world starts programs: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

// sleepers counts the processes, dead ones that nobody waited for included.
func sleepers(t *testing.T) (n int) {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range names {
		if name, err := os.ReadFile(c); err == nil && string(name) == "sleep\n" {
			n++
		}
	}
	return n
}

func descriptors(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// An ordinary user has a world like root's: the same tests pass. Run by an
// ordinary user, this program is in that world already.
func TestOrdinaryUserHasTheSameLab(t *testing.T) {
	needLab(t)
	ids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	if f := strings.Fields(string(ids)); len(f) == 3 && f[2] == "1" {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.v", "-test.count=1", "-test.run",
		"^(TestHostsReachEachOther|TestEachFirewall|TestProgramsFindNames|TestServerOwns|TestNothingSurvives|TestNoWayOut|TestEverythingDies)")
	cmd.Env = append(os.Environ(), need.Force)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(out), "\n--- PASS") != 7 {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestExecReturnsTheProgramsStatus(t *testing.T) {
	w := build(t, Config{})
	cases := []struct {
		argv []string
		want int
	}{
		{[]string{"true"}, 0},
		{[]string{"sh", "-c", "exit 7"}, 7},
		{[]string{"sh", "-c", "kill -TERM $$"}, 128 + 15},
	}
	for _, c := range cases {
		if got, err := w.Exec(t.Context(), "host", c.argv); got != c.want || err != nil {
			t.Errorf("%q: %d, %v; want %d", c.argv, got, err, c.want)
		}
	}
	for host, argv := range map[string][]string{"host": {"/no/such/program"}, "lan2": {"true"}, "server": nil} {
		if _, err := w.Exec(t.Context(), host, argv); err == nil {
			t.Errorf("%s on %s ran", argv, host)
		}
	}
}
