package reflector

import "syscall"

// shared lets a connection leave from a port that something listens on, which
// needs nothing on this system.
func shared(_, _ string, _ syscall.RawConn) error { return nil }
