package protocol

import (
	"errors"
	"io"
	"os"
	"testing"
	"time"
)

func TestTermsArePutOffWhileBytesMove(t *testing.T) {
	start := time.Unix(1000, 0)
	at := func(seconds float64) time.Time { return start.Add(time.Duration(seconds * float64(time.Second))) }
	fresh := term{at: at(10), since: start, wait: 10 * time.Second}
	looked := term{at: at(10), since: at(5), wait: 10 * time.Second, moved: 1 << 20}
	for name, c := range map[string]struct {
		d         term
		moved     uint64
		last, now time.Time
		want      time.Time // zero is that it has ended
	}{
		"nothing ever moved":                 {fresh, 0, time.Time{}, at(10), time.Time{}},
		"all moved before it":                {fresh, 1 << 20, at(-1), at(10), time.Time{}},
		"something moved":                    {fresh, 1 << 20, at(7), at(10), at(17)},
		"something moved, but it was long":   {fresh, 1 << 20, at(7), at(17.5), time.Time{}},
		"it goes on":                         {looked, 1<<20 + 6*minRate, at(9), at(10), at(19)},
		"it goes on, too slowly":             {looked, 1<<20 + 4*minRate, at(9), at(10), time.Time{}},
		"a deadline of the past":             {term{at: at(-5), since: start, wait: -5 * time.Second}, 1 << 20, at(0), at(0), time.Time{}},
		"set anew meanwhile":                 {term{at: at(30), since: at(9), wait: 21 * time.Second}, 0, time.Time{}, at(10), at(30)},
		"taken away meanwhile, so none left": {term{}, 0, time.Time{}, at(10), time.Time{}},
	} {
		next, ok := c.d.next(c.moved, c.last, c.now)
		if want := !c.want.IsZero() || c.d.at.IsZero(); ok != want || !next.at.Equal(c.want) {
			t.Errorf("%s: until %v, %v", name, next.at, ok)
		}
	}
}

// None of the slow steps is a stall, but all of them together would be.
const (
	slowStep  = 100 * time.Millisecond
	slowSteps = 25
	slowStall = 1500 * time.Millisecond
)

func TestSlowPeerIsNoStall(t *testing.T) {
	t.Run("of what comes", func(t *testing.T) {
		near, far := pair(t)
		go func() {
			for range slowSteps {
				far.Write(make([]byte, 1000))
				time.Sleep(slowStep) // the line is slow
			}
		}()
		c := Patient(near, true)
		c.SetReadDeadline(time.Now().Add(slowStall)) // once, as TLS leaves it for a whole record
		if n, err := io.ReadFull(c, make([]byte, slowSteps*1000)); err != nil {
			t.Errorf("after %d bytes: %v", n, err)
		}
		began := time.Now()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) > 10*time.Second {
			t.Errorf("%v, after %v of silence", err, time.Since(began))
		}
	})
	t.Run("of what goes", func(t *testing.T) {
		near, far := pair(t)
		far.SetReadBuffer(64 << 10)
		near.SetWriteBuffer(64 << 10)
		read := make(chan struct{})
		go func() {
			defer close(read)
			buf := make([]byte, 32<<10)
			for range slowSteps {
				io.ReadFull(far, buf)
				time.Sleep(slowStep)
			}
		}()
		c := Patient(near, false)
		c.SetWriteDeadline(time.Now().Add(slowStall))
		n, err := c.Write(make([]byte, 16<<20)) // more than is ever taken
		select {
		case <-read:
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error(err)
			}
		default:
			t.Errorf("after %d bytes, while they were taken: %v", n, err)
		}
		near.Close()
		<-read
	})
	t.Run("of strangers, who gain nothing by sending", func(t *testing.T) {
		near, far := pair(t)
		go func() {
			for range 10 * slowSteps {
				if _, err := far.Write(make([]byte, 1000)); err != nil {
					return
				}
				time.Sleep(slowStep)
			}
		}()
		c := Patient(near, false)
		c.SetReadDeadline(time.Now().Add(slowStall))
		if n, err := io.ReadFull(c, make([]byte, 10*slowSteps*1000)); err == nil {
			t.Errorf("%d bytes were read in spite of the deadline", n)
		}
	})
}

// What ends a connection at once is not put off.
func TestPastDeadlinesEndAtOnce(t *testing.T) {
	near, far := pair(t)
	go io.Copy(far, far)
	c := Patient(near, true)
	c.Write([]byte("x"))
	time.AfterFunc(slowStep, func() { c.SetDeadline(past) })
	began := time.Now()
	if n, err := io.Copy(io.Discard, c); !errors.Is(err, os.ErrDeadlineExceeded) || n != 1 || time.Since(began) > 10*time.Second {
		t.Errorf("%d bytes, %v after %v", n, err, time.Since(began))
	}
}
