package main

import (
	"testing"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/protocol"
)

func TestSizesAreRead(t *testing.T) {
	for text, want := range map[string]int64{
		"1": 1, "1048576": 1 << 20, "64MiB": 64 << 20, "1GiB": 1 << 30, "500MB": 500e6, "1.5Ki": 1536, "2kB": 2000, "10G": 0,
		"": 0, "GiB": 0, "1TiB": 0, "-1": 0, "0": 0, "0.5": 0, "1 GiB": 0, "NaN": 0, "4294967295": 1<<32 - 1, "4GiB": 0,
	} {
		got, err := parseSize(text)
		if got != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"1", "64MiB", "1.5Ki", "4GiB", "inf", "NaN", "0x1p3", "1e-9", "1_0", "-0", "iB", "1e999G"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := parseSize(text)
		if err == nil && (n < 1 || n > protocol.MaxBytes) || err != nil && n != 0 {
			t.Errorf("%q: %d, %v", text, n, err)
		}
	})
}

// Whatever --idle is given, it is refused or a short list of sensible times.
func FuzzIdleFlag(f *testing.F) {
	for _, s := range []string{"50s", "50s,5m,30m", "", ",", "1ns", "-5s", "9999999h", "1s,1s", "5m, 1h", "1e9s"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		list, err := parseSilences(text)
		if err != nil {
			return
		}
		for _, d := range list {
			if d <= 0 || d > protocol.MaxIdle {
				t.Errorf("%q: %v", text, list)
			}
		}
		if len(list) == 0 || len(list) > client.MaxSilences {
			t.Errorf("%q: %d times", text, len(list))
		}
	})
}
