//go:build !linux

package protocol

import (
	"net"

	"github.com/wallprobe/wallprobe/wire"
)

// SentSYN tells of the SYN of an established connection as this end sent it,
// and of the answer as it arrived; nil when the system does not say. Linux only.
func SentSYN(net.Conn) *wire.TCPSeen { return nil }

// GotSYN tells of the SYN of an accepted connection as it arrived, and of the
// answer as it was sent; nil when the system does not say. Linux only.
func GotSYN(net.Conn) *wire.TCPSeen { return nil }
