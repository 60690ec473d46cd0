package main

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/report"
)

func TestWhatTakesLongIsShownEverySecondUntilItEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		l := long{bytes: 1 << 30, silences: []time.Duration{time.Second, time.Minute}}
		w, stop := watching(&report.ProgressLine{W: &b, Width: 120}, "stateful", l.hint())
		time.Sleep(2500 * time.Millisecond) // of the test's own clock
		w.show("3 of 4 ports")
		stop()
		n := b.Len()
		time.Sleep(5 * time.Second)
		want := []string{"stateful; 1s gone: 1 GiB each way, silences of up to 1m0s and more", "stateful; 2s gone: ", "3 of 4 ports; 2s gone: "}
		for _, s := range want {
			if !strings.Contains(b.String(), "\r"+s) {
				t.Errorf("%q lacks %q", b.String(), s)
			}
		}
		if b.Len() != n {
			t.Errorf("shown after its end: %q", b.String()[n:])
		}
	})
}

func TestWhatSaysNothingOfItselfIsShownEverySecondAsWell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		w, stop := watching(&report.ProgressLine{W: &b, Width: 120}, "behind stateful", long{}.hint())
		w.show("3 of 4 ports")
		time.Sleep(1500 * time.Millisecond) // of the test's own clock
		stop()
		if b.String() != "\r3 of 4 ports\r3 of 4 ports; 1s gone" {
			t.Errorf("%q", b.String())
		}
	})
}

func TestProgressOfTheLabNamesOneFirewallOrCountsSeveral(t *testing.T) {
	one, two := lab.Firewall{Name: "stateful"}, lab.Firewall{Name: "open"}
	for want, got := range map[string]string{
		"measuring behind stateful":   labProgress([]lab.Firewall{one}, 0, ""),
		"0 of 2 firewalls":            labProgress([]lab.Firewall{one, two}, 0, ""),
		"1 of 2 firewalls, open done": labProgress([]lab.Firewall{one, two}, 1, "open"),
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
