package steer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// wakeIndex marks the event that ends a loop.
const wakeIndex = -1

// poll makes an epoll instance of the UDP sockets.
func (s *Set) poll() (int, error) {
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
		if sock.listener == nil {
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
	ctx, s.end = context.WithCancel(ctx)
	defer s.end()
	s.busy = true
	s.serving.Add(1)
	s.mu.Unlock()
	defer s.serving.Done()
	s.conns.reopen()
	s.listeners(func(l *net.TCPListener) { l.SetDeadline(time.Time{}) })

	giveUp := whenDone(ctx, func() {
		s.wake.wake()
		s.listeners(func(l *net.TCPListener) { l.SetDeadline(time.Unix(1, 0)) })
	})
	var loops errgroup.Group
	loop := func(run func() error) {
		loops.Go(func() error {
			defer s.end() // one loop's end is the others'
			return run()
		})
	}
	for _, sock := range s.socks {
		if sock.listener != nil {
			loop(func() error { return s.conns.accept(ctx, sock.listener, s.wants(sock), &s.count, h) })
		}
	}
	loop(func() error { return s.readLoop(h) })
	err := loops.Wait()
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

// listeners does something with all that accept connections.
func (s *Set) listeners(do func(*net.TCPListener)) {
	for _, sock := range s.socks {
		if sock.listener != nil {
			do(sock.listener)
		}
	}
}

// wants tells which connections are a listener's own: somebody on this host may
// find the socket that ports are steered to.
func (s *Set) wants(sock *socket) func(net.Conn) bool {
	return func(c net.Conn) bool {
		local, ok := c.LocalAddr().(*net.TCPAddr)
		return !sock.steered || ok && s.tcpMap.has(uint16(local.Port))
	}
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

func (s *Set) readLoop(h Handler) error {
	events := make([]unix.EpollEvent, batchSize)
	in, out := newReadBatch(), &answerer{set: s}
	for {
		ready, more, err := s.wait(s.epoll, events)
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
