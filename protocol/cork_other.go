//go:build !linux

package protocol

import "net"

func cork(net.Conn) {}
