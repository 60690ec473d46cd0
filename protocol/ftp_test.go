package protocol

import (
	"slices"
	"testing"

	"github.com/wallprobe/wallprobe/wire"
)

func TestAddressesOfDataConnectionsAreReadStrictly(t *testing.T) {
	for line, want := range map[string]string{
		"PORT 10,77,1,2,160,1":                                "10.77.1.2:40961",
		"227 Entering Passive Mode (198,51,100,10,0,20)":      "198.51.100.10:20",
		"227 =(198,51,100,10,255,255).":                       "198.51.100.10:65535",
		"EPRT |1|10.77.1.2|40961|":                            "10.77.1.2:40961",
		"EPRT |2|2001:db8::1|1|":                              "[2001:db8::1]:1",
		"EPRT !2!2001:db8::1!1!":                              "[2001:db8::1]:1",
		"229 Entering Extended Passive Mode (|||65535|)":      "invalid AddrPort",
		"PORT 10,77,1,256,160,1":                              "",
		"PORT 10,77,1,2,160":                                  "",
		"PORT 10,77,1,2,160,1,1":                              "",
		"PORT 10,77,1,+2,160,1":                               "",
		"PORT 10, 77,1,2,160,1":                               "",
		"PORT ":                                               "",
		"EPRT |2|10.77.1.2|40961|":                            "",
		"EPRT |1|2001:db8::1|40961|":                          "",
		"EPRT |2|fe80::1%eth0|40961|":                         "",
		"EPRT |1|10.77.1.2|65536|":                            "",
		"EPRT |1|10.77.1.2|40961":                             "",
		"EPRT |1|10.77.1.2|-1|":                               "",
		"EPRT \x01\x01\x01\x01\x01":                           "",
		"227 Entering Passive Mode 198,51,100,10,0,20":        "",
		"227 Entering Passive Mode )198,51,100,10,0,20(":      "",
		"229 Entering Extended Passive Mode (198,51,100,1,1)": "",
		"200 PORT 10,77,1,2,160,1":                            "",
		"":                                                    "",
	} {
		_, a, _, err := splitAddress(line)
		if got := a.String(); err == nil && want == "" || err != nil && want != "" || err == nil && got != want {
			t.Errorf("%q: %v, %v, want %q", line, a, err, want)
		}
	}
}

func TestHelpersMayChangeAddressesAlone(t *testing.T) {
	for _, c := range []struct {
		sent, heard string
		want        bool
	}{
		{"PORT 10,77,1,2,160,1", "PORT 198,51,100,1,4,1", true},
		{"EPRT |1|10.77.1.2|40961|", "EPRT |1|198.51.100.1|1025|", true},
		{"227 Entering Passive Mode (10,0,0,1,4,1)", "227 Entering Passive Mode (198,51,100,1,4,1)", true},
		{"229 Entering Extended Passive Mode (|||1025|)", "229 Entering Extended Passive Mode (|||1026|)", true},
		{"PORT 10,77,1,2,160,1", "EPRT |1|10.77.1.2|40961|", false},
		{"227 Entering Passive Mode (10,0,0,1,4,1)", "227 Passive Mode (10,0,0,1,4,1)", false},
		{"227 Entering Passive Mode (10,0,0,1,4,1)", "227 Entering Passive Mode (10,0,0,1,4,1). Bye", false},
		{"PORT 10,77,1,2,160,1", "PORT nowhere", false},
		{"PORT 10,77,1,2,160,1", "NOOP", false},
		{"STOR 5.bin", "STOR 6.bin", false},
		{"EPSV", "XPSV", false},
		{"220 here", "220 ****", false},
	} {
		if got := ftpHelped(c.sent, c.heard); got != c.want {
			t.Errorf("%q as %q: %v", c.sent, c.heard, got)
		}
	}
}

func TestFilesAreKnownByTheirNames(t *testing.T) {
	for name, want := range map[string]int64{
		"1024.bin": 1024, "/1024.bin": 1024, "./0.bin": 0, "4294967295.bin": MaxBytes,
		"4294967296.bin": -1, "-1.bin": -1, "+1.bin": -1, ".bin": -1, "1024": -1, "a/1.bin": -1, "../1.bin": -1, "1e3.bin": -1, "": -1,
	} {
		got := int64(-1)
		if n, ok := fileSize(name); ok {
			got = int64(n)
		}
		if got != want {
			t.Errorf("%q has %d bytes, want %d", name, got, want)
		}
	}
}

func FuzzFTPAddress(f *testing.F) {
	for _, s := range []string{
		"PORT 10,77,1,2,160,1", "EPRT |1|10.77.1.2|40961|", "EPRT |2|2001:db8::1|1|", "227 Entering Passive Mode (1,2,3,4,5,6)",
		"229 Entering Extended Passive Mode (|||65535|)", "EPRT", "PORT ,,,,,", "227 (", "229 )(", "EPRT |2|::ffff:1.2.3.4|9|",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		head, a, tail, err := splitAddress(line)
		if err != nil {
			return
		}
		text := formatExtended(a)
		if head[0] == 'P' || head[:3] == "227" {
			text = formatHostPort(a)
		}
		again, b, end, err := splitAddress(head + text + tail)
		if err != nil || again != head || end != tail || b != a {
			t.Errorf("%q: %v as %q: %q, %v, %q, %v", line, a, text, again, b, end, err)
		}
		if !ftpHelped(line, head+text+tail) {
			t.Errorf("%q and %q differ in their addresses alone", line, head+text+tail)
		}
	})
}

// Whatever is said, an unproven peer is told to log in and nothing else, and
// what it says reaches nobody as part of an answer's code.
func FuzzFTPCommand(f *testing.F) {
	for _, s := range []string{"USER", "USER x", "\xff\xf4\xff\xf2ABOR", "quit", "PORT 1,2,3,4,5,6", "\x00", "  ", "RETR 1.bin", "FEAT", "PASV", "AUTH TLS", "AUTH TLS\r\nPROT P", "PBSZ 0", "AUTH x"} {
		f.Add(s)
	}
	far := newFar()
	f.Fuzz(func(t *testing.T, line string) {
		var events []wire.Event
		atOnce(t, func(t *testing.T) {
			c := said(t, []byte(line+"\r\nQUIT\r\n"))
			events = serveFTP(t.Context(), c, far)
			c.Close()
		})
		if len(events) != 1 || events[0].Answered || events[0].Stage == StageDone || events[0].Fault == "" {
			t.Errorf("%q: %+v", line, events)
		}
		for i, said := range events[0].Said.Sent {
			if want := i == 0 && said == ftpGreeting || slices.Contains([]string{"530 ", "421 ", "503 ", "504 "}, said[:4]) ||
				said == "221 goodbye" || said == "234 go on in TLS" || slices.Contains(ftpFeatures, said); !want {
				t.Errorf("%q was answered %q", line, said)
			}
		}
	})
}
