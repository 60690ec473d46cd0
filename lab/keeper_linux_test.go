package lab_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/expect"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/report"
)

// keepAll starts a keeper for every part of a lab, each in a network of its own,
// as an engine for containers would, and returns the folder of their sockets.
func keepAll(t *testing.T, program string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range lab.KeeperNames() {
		ctx, cancel := context.WithCancel(context.Background()) // the test's own ends before its cleanup
		cmd := exec.CommandContext(ctx, program, "lab", "keep", name)
		cmd.Env = append(os.Environ(), "WALLPROBE_HOSTS="+dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
		var complaints bytes.Buffer
		cmd.Stderr = &complaints
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Signal(unix.SIGTERM)
			timer := time.AfterFunc(10*time.Second, cancel)
			if err := cmd.Wait(); err != nil || complaints.Len() > 0 {
				t.Errorf("keeper of %s: %v\n%s", name, err, complaints.String())
			}
			timer.Stop()
			cancel()
		})
	}
	return dir
}

// measured are the results of a whole command line.
func measured(t *testing.T, program string, env []string, args ...string) []*client.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, append([]string{"lab"}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	err := cmd.Run()
	list, readErr := report.ReadJSON(&out)
	if readErr != nil || len(list) == 0 {
		t.Fatalf("%v: %v, %v\n%s", args, err, readErr, complaints.String())
	}
	return list
}

func TestKeptHostsSayWhatTheLabSays(t *testing.T) {
	lab.NeedLab(t)
	program := programFor(t)
	scenario, err := filepath.Abs("../testdata/script/own.yaml")
	if err != nil {
		t.Fatal(err)
	}
	kept := []string{"WALLPROBE_HOSTS=" + keepAll(t, program)}
	rules := filepath.Join(t.TempDir(), "own.nft")
	for _, c := range []struct{ name, rules string }{
		{"a range cut in two", `iifname "lan0" udp dport 28445 drop`},
		{"control rejected", `iifname "lan0" tcp dport 28443 reject`},
		{"the rules of the first no more", `iifname "wan0" accept`},
		{"an interface that is a bridge", `iifname "br-lan" udp dport 28444 drop`},
		{"an interface known by its number", `iif "dmz7" drop; iifname "lan0" udp dport 28444 reject`},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := "table inet own {\n\tchain forward {\n\t\ttype filter hook forward priority filter; policy accept;\n\t\t" + c.rules + "\n\t}\n}\n"
			if err := os.WriteFile(rules, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			args := []string{scenario, "--firewall", rules, "--timeout", "3s", "--json", "-"}
			diff, err := expect.Compare(measured(t, program, nil, args...), measured(t, program, kept, args...), expect.Options{})
			if err != nil || len(diff.Pairs) != 1 || diff.Pairs[0].Paths != 2 {
				t.Fatalf("%+v, %v", diff, err)
			}
			if p := diff.Pairs[0]; len(p.Changes)+len(p.Outcomes)+len(p.Doubts) > 0 {
				t.Errorf("%+v", p)
			}
		})
	}
}

func TestKeepersRunProgramsAsIfTheyWereHere(t *testing.T) {
	lab.NeedLab(t)
	program := programFor(t)
	dir := keepAll(t, program)
	run := func(stdin string, args ...string) (string, int) {
		cmd := exec.CommandContext(t.Context(), program, append([]string{"lab", "exec", "--bare"}, args...)...)
		cmd.Env = append(os.Environ(), "WALLPROBE_HOSTS="+dir)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	if out, status := run("across\n", "--host", "server", "--", "sh", "-c", "cat; exit 7"); out != "across\n" || status != 7 {
		t.Errorf("exit status %d: %s", status, out)
	}
	if out, status := run("", "--host", "lan2", "--", "sh", "-c", "kill -TERM $$"); status != 128+15 {
		t.Errorf("exit status %d: %s", status, out)
	}
	if out, status := run("", "--host", "firewall2", "--", "true"); status != 2 {
		t.Errorf("exit status %d of a host that is not there: %s", status, out)
	}
}

// A keeper takes a network over, so it refuses one that is in use.
func TestKeepRefusesANetworkThatIsInUse(t *testing.T) {
	lab.NeedLab(t)
	w, err := lab.Build(t.Context(), lab.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	h := w.Host("host")
	cmd := h.Command(t.Context(), programFor(t), "lab", "keep", "host")
	dir := t.TempDir()
	cmd.Env = append(os.Environ(), "WALLPROBE_HOSTS="+dir)
	var said bytes.Buffer
	cmd.Stderr = &said
	err = h.Run(cmd)
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 2 || !strings.Contains(said.String(), "with the link eth0; start it in a container") {
		t.Errorf("%v: %s", err, said.String())
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("it left %v, %v", left, err)
	}
}
