package main

import "testing"

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
