package steer

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/scenarios"
)

func TestModesAreReadAsTheyAreWritten(t *testing.T) {
	for m := Auto; m <= Sockets; m++ {
		if got, err := ParseMode(m.String()); got != m || err != nil {
			t.Errorf("%s: %v, %v", m, got, err)
		}
	}
	_, err := ParseMode("magic")
	if want := `steering mode "magic" does not exist: choose one of auto, bpf, tproxy, sockets`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestListenAddressesAreCheckedAndNotRepeated(t *testing.T) {
	for given, want := range map[string]string{
		"":                       "0.0.0.0 ::",
		"10.0.0.1 ::1 10.0.0.1":  "10.0.0.1 ::1",
		"10.0.0.1 0.0.0.0 ::1":   "0.0.0.0 ::1",
		"::ffff:10.0.0.1 fd00::": "10.0.0.1 fd00::",
		"::1 :: 10.0.0.1":        ":: 10.0.0.1",
		"224.0.0.1":              "listen address 224.0.0.1: not an address to listen on",
	} {
		var addrs []netip.Addr
		for a := range strings.FieldsSeq(given) {
			addrs = append(addrs, netip.MustParseAddr(a))
		}
		out, err := listenAddrs(addrs)
		var got []string
		for _, a := range out {
			got = append(got, a.String())
		}
		if err != nil {
			got = []string{err.Error()}
		}
		if diff := cmp.Diff(want, strings.Join(got, " ")); diff != "" {
			t.Errorf("%q (-want +got):\n%s", given, diff)
		}
	}
}

func TestShortRangesComeFirstWhenDescriptorsAreFew(t *testing.T) {
	parse := func(s string) scenarios.PortSet {
		set, err := scenarios.ParsePortSet(s)
		if err != nil {
			t.Fatal(err)
		}
		return set
	}
	var failed failures
	keys := fit(Ports{parse("100-200,443"), parse("53,65530-65535")}, Ports{}, 2, 19, &failed)
	served := map[scenarios.Transport]*portMap{scenarios.TCP: {}, scenarios.UDP: {}}
	for _, k := range keys {
		served[k.transport].set(k.port)
	}
	got := []string{served[scenarios.TCP].ports().String(), served[scenarios.UDP].ports().String()}
	for _, u := range failed.unbound() {
		got = append(got, string(u.Transport)+" "+u.Ports.String()+" "+u.Err.Error())
	}
	want := []string{"100,443", "53,65530-65535", "tcp 101-200 " + ErrDescriptors.Error()}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if len(failed.fatal()) > 0 {
		t.Error("too few descriptors must not stop the start")
	}
}

func TestNamedPortsComeFirstWhenDescriptorsAreFew(t *testing.T) {
	udp := scenarios.PortSet{{First: 1, Last: 65535}}
	first := scenarios.PortSet{{First: 53, Last: 53}, {First: 3478, Last: 3479}}
	var failed failures
	var got scenarios.PortSet
	for _, k := range fit(Ports{UDP: udp}, Ports{UDP: first}, 1, 5, &failed) {
		got = scenarios.Union(got, scenarios.PortSet{{First: k.port, Last: k.port}})
	}
	if want := "1-2,53,3478-3479"; got.String() != want {
		t.Errorf("bound %s, want %s", got, want)
	}
}

func TestTakenPortIsNamedAndNothingIsLeft(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := uint16(l.Addr().(*net.TCPAddr).Port)
	free, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	other := uint16(free.Addr().(*net.TCPAddr).Port)
	free.Close()
	set := scenarios.Union(scenarios.PortSet{{First: taken, Last: taken}}, scenarios.PortSet{{First: other, Last: other}})
	_, err = Listen(Config{Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, TCP: set})
	bind, ok := errors.AsType[*BindError](err)
	if !ok || len(bind.Unbound) != 1 || bind.Unbound[0].Ports.String() != (scenarios.PortSet{{First: taken, Last: taken}}).String() || !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("port %d taken: %v", taken, err)
	}
	again, err := net.Listen("tcp4", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), other).String())
	if err != nil {
		t.Fatalf("port %d was left bound: %v", other, err)
	}
	again.Close()
}
