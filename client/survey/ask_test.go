package survey

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/scenarios"
)

// An asked is what Answered was told.
type asked struct {
	Text string
	Err  string
}

// TestEveryEndOfAQuestionIsTold asks far ends that answer, at once, before they
// are asked or in pieces, that hang up, reset or stay silent.
func TestEveryEndOfAQuestionIsTold(t *testing.T) {
	done := make(chan struct{})
	defer close(done)
	ends := []struct {
		serve func(c net.Conn)
		want  asked
	}{
		{func(c net.Conn) { hears(c); io.WriteString(c, "answer") }, asked{Text: "answer"}},
		{func(c net.Conn) { io.WriteString(c, "before, and more"); hears(c) }, asked{Text: "before"}},
		{func(c net.Conn) { hears(c); io.WriteString(c, "pie"); hears(c); io.WriteString(c, "ces") }, asked{Err: "timeout", Text: "pie"}},
		{func(c net.Conn) { hears(c); c.Write([]byte("in")); c.Write([]byte("tw")); c.Write([]byte("o.")) }, asked{Text: "intwo."}},
		{func(c net.Conn) { hears(c) }, asked{Err: "EOF"}},
		{func(c net.Conn) { hears(c); io.WriteString(c, "cut") }, asked{Text: "cut", Err: "unexpected EOF"}},
		{func(c net.Conn) { hears(c); c.(*net.TCPConn).SetLinger(0) }, asked{Err: "reset"}},
		{func(c net.Conn) { hears(c); <-done }, asked{Err: "timeout"}},
	}
	want := make(map[uint16]asked)
	var ports scenarios.PortSet
	var list []uint16
	for _, end := range ends {
		ln := listenTCP(t, "127.0.0.1")
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go func() { defer c.Close(); end.serve(c) }()
			}
		}()
		want[portOf(ln)] = end.want
		list = append(list, portOf(ln))
	}
	slices.Sort(list)
	for _, p := range list {
		ports = append(ports, scenarios.PortRange{First: p, Last: p})
	}
	for name, run := range tcpEngines {
		got := make(chan map[uint16]asked, 1)
		got <- make(map[uint16]asked)
		tcp, err := TCP{Target: netip.MustParseAddr("127.0.0.1"), Ports: ports, Limit: 500 * time.Millisecond, Reply: 6,
			Ask: func(b []byte, port uint16) []byte { return append(b, "ask?"...) },
			Answered: func(port uint16, b []byte, err error, took time.Duration) error {
				m := <-got
				m[port] = asked{string(b), ending(err)}
				got <- m
				return err
			}}.complete()
		must(t, err)
		answers, err := run(tcp, t.Context())
		must(t, err)
		if diff := cmp.Diff(want, <-got); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
		for _, a := range answers {
			if a.Answered != 1 || ending(a.ExchangeErr) != want[a.Port].Err || a.Exchanged <= 0 {
				t.Errorf("%s: %+v", name, a)
			}
		}
	}
}

// hears reads one question.
func hears(c net.Conn) { io.ReadFull(c, make([]byte, 4)) }

func ending(err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "timeout"
	case isReset(err):
		return "reset"
	}
	return err.Error()
}

func isReset(err error) bool { return faultOf(err) == Reset }

func TestCancellingEndsQuestions(t *testing.T) {
	ln := listenTCP(t, "127.0.0.1")
	port := portOf(ln)
	stop := errors.New("enough")
	for name, run := range tcpEngines {
		ctx, cancel := context.WithCancelCause(t.Context())
		told := ""
		tcp, err := TCP{Target: netip.MustParseAddr("127.0.0.1"), Ports: scenarios.PortSet{{First: port, Last: port}}, Limit: time.Hour, Reply: 1,
			Ask: func(b []byte, _ uint16) []byte { cancel(stop); return append(b, 1) },
			Answered: func(_ uint16, b []byte, err error, _ time.Duration) error {
				told = fmt.Sprint(len(b), " ", ending(err))
				return err
			}}.complete()
		must(t, err)
		got, err := run(tcp, ctx)
		if !errors.Is(err, stop) || told != "0 timeout" || len(got) != 1 || ending(got[0].ExchangeErr) != "timeout" {
			t.Errorf("%s: %v, told %q, %+v", name, err, told, got)
		}
	}
}
