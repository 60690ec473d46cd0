//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/wallprobe/wallprobe/internal/need"
)

var unitFolder = filepath.Join("..", "..", "contrib", "systemd")

// units are the files of contrib/systemd, with the name under which each is
// checked and the exposure that it must stay below, in tenths, as
// systemd-analyze security counts it: 2.2 is 22.
var units = []struct{ file, as, exposure string }{
	{"wallprobe-reflector.service", "wallprobe-reflector.service", "22"},
	{"wallprobe-watch@.service", "wallprobe-watch@chrome-remote-desktop.service", "15"},
}

// command runs a program of the system, in its own folder.
func command(t testing.TB, dir, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.WaitDelay = dir, time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestUnitsAreSoundAndHardened(t *testing.T) {
	need.Programs(t, "systemd-analyze")
	files, err := filepath.Glob(filepath.Join(unitFolder, "*.service"))
	if err != nil || len(files) != len(units) {
		t.Fatalf("%v: %v, but %d are tested", err, files, len(units))
	}
	program, err := exec.LookPath("wallprobe")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, u := range units {
		text, err := os.ReadFile(filepath.Join(unitFolder, u.file))
		if err != nil {
			t.Fatal(err)
		}
		// What a unit starts must be there.
		text = bytes.ReplaceAll(text, []byte("/usr/local/bin/wallprobe"), []byte(program))
		if err := os.WriteFile(filepath.Join(dir, u.as), text, 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := command(t, dir, "systemd-analyze", "verify", "--man=no", "--recursive-errors=no", "./"+u.as); err != nil || out != "" {
			t.Errorf("%s: %v\n%s", u.file, err, out)
		}
		if out, err := command(t, dir, "systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold="+u.exposure, "./"+u.as); err != nil {
			t.Errorf("%s: %v\n%s", u.file, err, out)
		}
	}
}

// settings gives the values of a setting of a unit, in their order.
func settings(t testing.TB, file, name string) (values []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(unitFolder, file))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), name+"="); ok {
			values = append(values, v)
		}
	}
	if len(values) == 0 {
		t.Fatalf("%s has no %s", file, name)
	}
	return values
}

// allowed are the system calls that a unit lets through.
func allowed(t testing.TB, file string) map[string]bool {
	t.Helper()
	calls := make(map[string]bool)
	for _, v := range settings(t, file, "SystemCallFilter") {
		names, not := strings.CutPrefix(v, "~")
		for _, n := range strings.Fields(names) {
			for _, call := range expand(t, n) {
				calls[call] = !not
			}
		}
	}
	return calls
}

// expand gives the calls of a set of systemd's, whose sets hold sets.
func expand(t testing.TB, name string) (calls []string) {
	t.Helper()
	if name[0] != '@' {
		return []string{name}
	}
	out, err := command(t, "", "systemd-analyze", "--no-pager", "syscall-filter", name)
	if err != nil {
		t.Fatalf("%s: %v %s", name, err, out)
	}
	for line := range strings.Lines(out) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' && line != name {
			calls = append(calls, expand(t, line)...)
		}
	}
	return calls
}

// A service is the program as a unit of contrib/systemd would have it.
type service struct {
	calls string // file with the system calls that it made
	cmd   *exec.Cmd
}

// manyUsers tells whether this user namespace has more users than one.
func manyUsers(t testing.TB) bool {
	t.Helper()
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(b))
	return len(fields) > 3 || fields[2] != "1"
}

// asService makes the program ready that has the capabilities of a unit and
// cannot get more, the unit's descriptors, no other user's rights where there is
// another user, and strace to watch it from aside (-D), so that signals reach it.
func asService(t testing.TB, file, dir string, args ...string) *service {
	t.Helper()
	need.Programs(t, "setpriv", "prlimit", "strace")
	caps := "-all"
	for _, c := range strings.Fields(strings.Join(settings(t, file, "CapabilityBoundingSet"), " ")) {
		caps += ",+" + strings.TrimPrefix(strings.ToLower(c), "cap_")
	}
	line := []string{"setpriv", "--no-new-privs", "--bounding-set=" + caps, "--inh-caps=" + caps, "--ambient-caps=" + caps}
	if manyUsers(t) {
		line = append(line, "--reuid=65534", "--regid=65534", "--clear-groups")
		if err := os.Chown(dir, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	if strings.HasPrefix(file, "wallprobe-reflector") {
		line = append(line, "prlimit", "--nofile="+settings(t, file, "LimitNOFILE")[0])
	}
	program, err := exec.LookPath("wallprobe")
	if err != nil {
		t.Fatal(err)
	}
	for _, above := range []string{filepath.Dir(program), filepath.Dir(filepath.Dir(program))} {
		if err := os.Chmod(above, 0o755); err != nil { // another user must come to it
			t.Fatal(err)
		}
	}
	s := &service{calls: filepath.Join(dir, "calls")}
	line = append(line, "strace", "-D", "-f", "-c", "-o", s.calls, program)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	s.cmd = exec.CommandContext(ctx, line[0], append(line[1:], args...)...)
	s.cmd.Dir, s.cmd.WaitDelay, s.cmd.Env = dir, time.Second, append(os.Environ(), "HOME="+dir)
	return s
}

// summary are the lines in which strace counts calls.
var summary = regexp.MustCompile(`(?m)^ *[0-9.]+ +[0-9.]+ +[0-9]+ +[0-9]+ +(?:[0-9]+ +)?([a-z][a-z0-9_]*)$`)

// made are the system calls that it made, which strace writes a little after
// the program's end.
func (s *service) made(t testing.TB) (calls []string) {
	t.Helper()
	var b []byte
	for range int(patience / (10 * time.Millisecond)) {
		if b, _ = os.ReadFile(s.calls); bytes.HasSuffix(b, []byte(" total\n")) {
			break
		}
		time.Sleep(10 * time.Millisecond) // strace writes it after the service has ended
	}
	for _, m := range summary.FindAllStringSubmatch(string(b), -1) {
		if m[1] != "total" {
			calls = append(calls, m[1])
		}
	}
	if !slices.Contains(calls, "futex") {
		t.Fatalf("no calls of a Go program in:\n%s", b)
	}
	return calls
}

// commonFolder is one that every user can enter.
func commonFolder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "wallprobe")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// start starts it and waits for a line of its output.
func (s *service) start(t testing.TB, ready string) *bufio.Scanner {
	t.Helper()
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaints bytes.Buffer
	s.cmd.Stderr = &complaints
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.cmd.Process.Kill() })
	lines := bufio.NewScanner(out)
	var said []string
	for lines.Scan() {
		said = append(said, lines.Text())
		if strings.Contains(lines.Text(), ready) {
			t.Log(strings.Join(said, "\n"))
			return lines
		}
	}
	s.cmd.Wait()
	t.Fatalf("%s never came:\n%s\n%s", ready, strings.Join(said, "\n"), complaints.String())
	return nil
}

// stop ends it as systemd does and gives what it printed after start.
func (s *service) stop(t testing.TB, lines *bufio.Scanner) (said string) {
	t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() {
		said += lines.Text() + "\n"
	}
	s.cmd.Wait() // the status is another test's
	return said
}

func TestServicesWorkWithinTheLimitsOfTheirUnits(t *testing.T) {
	if enterErr != nil {
		need.Missing(t, enterErr)
	}
	need.Programs(t, "systemd-analyze", "nft")
	far, near := commonFolder(t), commonFolder(t)
	own, err := os.ReadFile(filepath.Join("..", "..", "testdata", "script", "own.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{far, near} {
		// Enough ports that they must be steered, and one below 1024.
		text := strings.Replace(string(own), "ports: 28444-28445", `ports: "81,5000-9000"`, 1)
		if err := os.WriteFile(filepath.Join(dir, "own.yaml"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, steering := range []string{"auto", "tproxy"} {
		r := asService(t, units[0].file, far, "reflector", "--key-file", filepath.Join(far, "key"), "--listen", "127.0.99.1", "--scenario", "own.yaml", "--steering", steering)
		var steered string
		lines := r.start(t, " ports on ")
		steered = lines.Text()
		for lines.Scan() && lines.Text() != "ready" {
			steered += "\n" + lines.Text()
		}
		for _, want := range []string{map[bool]string{true: "BPF sk_lookup", false: "TPROXY by nft"}[steering == "auto" && manyUsers(t)], "SYNs are witnessed"} {
			if !strings.Contains(steered, want) {
				t.Errorf("%s: no %s in:\n%s", steering, want, steered)
			}
		}
		key, err := os.ReadFile(filepath.Join(far, "key"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(near, "key"), key, 0o644); err != nil {
			t.Fatal(err)
		}
		w := asService(t, units[1].file, near, "run", "own.yaml", "--reflector", "127.0.99.1", "--key-file", filepath.Join(near, "key"),
			"--watch", "5m", "--metrics", "127.0.99.2:9719", "--json", filepath.Join(near, "last.json"))
		watching := w.start(t, "2 paths: 2 open. 2 of 2 outcomes work.")
		if said := w.stop(t, watching); !strings.Contains(said, "control over 28443/tcp") {
			t.Errorf("no report at the end:\n%s", said)
		}
		if st, err := os.Stat(filepath.Join(near, "last.json")); err != nil || st.Size() < 1000 {
			t.Error(st, err)
		}
		r.stop(t, lines)
		for _, s := range []struct {
			file string
			*service
		}{{units[0].file, r}, {units[1].file, w}} {
			may := allowed(t, s.file)
			for _, call := range s.made(t) {
				// A library asks at the start whether there is BPF; "no" is an answer.
				if !may[call] && !(call == "bpf" && s.service == w) {
					t.Errorf("%s, steering %s: its SystemCallFilter has no %s", s.file, steering, call)
				}
			}
		}
	}
}
