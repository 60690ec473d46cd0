package survey

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// An epoll watches many sockets from one goroutine.
type epoll struct {
	fd     int
	events [256]unix.EpollEvent
}

func newEpoll() (*epoll, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	return &epoll{fd: fd}, nil
}

func (e *epoll) add(fd int, events uint32) error {
	return unix.EpollCtl(e.fd, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
}

func (e *epoll) remove(fd int) error {
	return unix.EpollCtl(e.fd, unix.EPOLL_CTL_DEL, fd, nil)
}

// wait returns what happened. It never waits long, so that its callers see
// their context end.
func (e *epoll) wait(d time.Duration) ([]unix.EpollEvent, error) {
	d = min(max(d, 0), 20*time.Millisecond)
	n, err := unix.EpollWait(e.fd, e.events[:], int((d+time.Millisecond-1)/time.Millisecond))
	if err != nil && err != unix.EINTR {
		return nil, os.NewSyscallError("epoll_wait", err)
	}
	return e.events[:max(n, 0)], nil
}

// A timer is a point in time of item i. The generation tells a stale one.
type timer struct {
	i, generation int
	at            time.Duration
}

// timers are in order of time, because each kind has one constant delay.
type timers struct {
	list []timer
	head int
}

func (q *timers) push(t timer) {
	if q.head > 1024 && q.head > len(q.list)/2 {
		q.list = q.list[:copy(q.list, q.list[q.head:])]
		q.head = 0
	}
	q.list = append(q.list, t)
}

func (q *timers) peek() (timer, bool) {
	if q.head == len(q.list) {
		return timer{}, false
	}
	return q.list[q.head], true
}

func (q *timers) pop() { q.head++ }
