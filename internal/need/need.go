// Package need is for tests that need something of the machine which not every
// machine has: network namespaces, another program, an address.
package need

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Force in a test's environment forbids it to skip: what checks nothing must not
// look like a check that passed. make test sets it.
const Force = "WALLPROBE_FORCE_LAB=1"

// Forced tells whether tests may not skip.
func Forced() bool {
	name, value, _ := strings.Cut(Force, "=")
	return os.Getenv(name) == value
}

// Missing ends a test for want of something, which why tells: it skips the test,
// or fails it where tests may not skip.
func Missing(t testing.TB, why ...any) {
	t.Helper()
	if Forced() {
		t.Fatal(why...)
	}
	t.Skip(why...)
}

// Program finds one of some programs that nobody here wrote, the first that is
// installed.
func Program(t testing.TB, names ...string) string {
	t.Helper()
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	Missing(t, strings.Join(names, " or ")+" is not installed; make test installs it")
	return ""
}

// Programs finds all of some programs.
func Programs(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		Program(t, name)
	}
}
