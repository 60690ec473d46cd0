package steer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wallprobe/wallprobe/internal/plaintcp"
	"github.com/wallprobe/wallprobe/scenarios"
)

// wakeIndex marks the event that ends a loop.
const wakeIndex = -1

// acceptPause is how long accepting rests when descriptors or memory ran out.
const acceptPause = 20 * time.Millisecond

// acceptBurst bounds how many connections one listener may bring in a row.
const acceptBurst = 64

// poll makes an epoll instance of the sockets of one transport.
func (s *Set) poll(t scenarios.Transport) (int, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("epoll: %w", err)
	}
	add := func(fd, index int) {
		if err == nil {
			err = unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(index)})
		}
	}
	add(int(s.wake), wakeIndex)
	for i, sock := range s.socks {
		if sock.transport == t {
			add(sock.fd, i)
		}
	}
	if err != nil {
		unix.Close(ep)
		return -1, fmt.Errorf("epoll: %w", err)
	}
	return ep, nil
}

// Serve runs until ctx ends, the Set is closed or a loop fails, closes the
// connections that are left, and returns when everything it started has
// returned. The error is nil unless a loop failed. It cannot run twice at once.
func (s *Set) Serve(ctx context.Context, h Handler) error {
	s.mu.Lock()
	if s.closed || s.busy {
		s.mu.Unlock()
		return fmt.Errorf("serve: %w", net.ErrClosed)
	}
	s.busy = true
	s.serving.Add(1)
	s.mu.Unlock()
	defer s.serving.Done()
	s.conns.reopen()

	ended := make(chan error, 2)
	giveUp := s.wake.whenDone(ctx)
	go func() { ended <- s.acceptLoop(h) }()
	go func() { ended <- s.readLoop(h) }()
	err := <-ended
	s.wake.wake() // one loop's end is the other's
	err = errors.Join(err, <-ended)
	s.conns.shutdown()

	giveUp()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy = false
	if !s.closed {
		s.wake.drain()
	}
	return err
}

// wait returns the sockets that are ready, or false when the loop must end.
func (s *Set) wait(ep int, events []unix.EpollEvent) ([]unix.EpollEvent, bool, error) {
	for {
		n, err := unix.EpollWait(ep, events, -1)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, false, fmt.Errorf("epoll: %w", err)
		}
		for _, e := range events[:n] {
			if e.Fd == wakeIndex {
				return nil, false, nil
			}
		}
		return events[:n], true, nil
	}
}

// reopen lets the table be used by another Serve.
func (t *connTable) reopen() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.shut = false
}

func (s *Set) acceptLoop(h Handler) error {
	events := make([]unix.EpollEvent, batchSize)
	for {
		ready, more, err := s.wait(s.polls[0], events)
		if err != nil || !more {
			return err
		}
		for _, e := range ready {
			if err := s.acceptSome(s.socks[e.Fd], h); err != nil {
				return err
			}
		}
	}
}

// acceptSome accepts what waits at one listener. Only an error that can never
// pass is returned; accept(2) lists the network errors that mean "try again".
func (s *Set) acceptSome(sock *socket, h Handler) error {
	for range acceptBurst {
		// Without SOCK_NONBLOCK: net.FileConn sets it, on a duplicate.
		fd, peer, err := unix.Accept4(sock.fd, unix.SOCK_CLOEXEC)
		switch err {
		case nil:
			s.accepted(fd, peer, sock, h)
		case unix.EAGAIN:
			return nil
		case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
			s.count.accepts.Add(1)
			s.pause(acceptPause)
			return nil
		case unix.EBADF, unix.EINVAL, unix.ENOTSOCK, unix.EFAULT:
			return fmt.Errorf("accept on %s: %w", sock.local, err)
		case unix.EINTR, unix.ECONNABORTED:
		default:
			s.count.accepts.Add(1)
		}
	}
	return nil
}

// pause waits for d or the end of the loop.
func (s *Set) pause(d time.Duration) {
	fds := []unix.PollFd{{Fd: int32(s.wake), Events: unix.POLLIN}}
	_, _ = unix.Poll(fds, int(d.Milliseconds()))
}

// A deadConn was reset before it was looked at: the kernel has forgotten whose
// it was, but accept(2) told.
type deadConn struct {
	net.Conn
	peer net.Addr
}

// RemoteAddr is never nil.
func (c deadConn) RemoteAddr() net.Addr { return c.peer }

// peerAddr is the address of accept(2) in Go's form.
func peerAddr(sa unix.Sockaddr) net.Addr {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return &net.TCPAddr{IP: sa.Addr[:], Port: sa.Port}
	case *unix.SockaddrInet6:
		return &net.TCPAddr{IP: sa.Addr[:], Port: sa.Port}
	}
	return &net.TCPAddr{}
}

func (s *Set) accepted(fd int, peer unix.Sockaddr, sock *socket, h Handler) {
	f := os.NewFile(uintptr(fd), "tcp")
	defer f.Close()
	if s.conns.full() {
		s.count.refused.Add(1)
		return
	}
	c, err := plaintcp.FileConn(f)
	if err != nil {
		s.count.accepts.Add(1)
		return
	}
	if local, ok := c.LocalAddr().(*net.TCPAddr); sock.steered && (!ok || !s.tcpMap.has(uint16(local.Port))) {
		c.Close() // somebody on this host found the socket that ports are steered to
		return
	}
	if c.RemoteAddr() == nil {
		c = deadConn{c, peerAddr(peer)}
	}
	s.count.conns.Add(1)
	s.conns.serve(c, h)
}

func (s *Set) readLoop(h Handler) error {
	events := make([]unix.EpollEvent, batchSize)
	in, out := newReadBatch(), &answerer{set: s}
	for {
		ready, more, err := s.wait(s.polls[1], events)
		if err != nil || !more {
			return err
		}
		for _, e := range ready {
			if err := s.readSome(s.socks[e.Fd], in, out, h); err != nil {
				return err
			}
		}
	}
}

// readSome hands over what one socket has received.
func (s *Set) readSome(sock *socket, in *readBatch, out *answerer, h Handler) error {
	n, err := in.recv(sock.fd)
	switch {
	case errors.Is(err, unix.EBADF), errors.Is(err, unix.ENOTSOCK), errors.Is(err, unix.EFAULT), errors.Is(err, unix.EINVAL):
		return fmt.Errorf("read on %s: %w", sock.local, err)
	case err != nil:
		return nil // nothing there, or a network error that reading has cleared
	}
	batch := in.grams[:0]
	for i := range n {
		d, ok, drops := in.datagram(i, sock)
		if drops != sock.drops {
			s.count.dropped.Add(uint64(drops - sock.drops))
			sock.drops = drops
		}
		if ok && (!sock.steered || s.udpMap.has(d.Local.Port())) {
			batch = append(batch, d)
		}
	}
	if len(batch) == 0 {
		return nil
	}
	s.count.received.Add(uint64(len(batch)))
	h.Datagrams(batch, out.send)
	return nil
}
