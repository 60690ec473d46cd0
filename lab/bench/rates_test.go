//go:build linux

package main

import (
	"math"
	"testing"
)

func TestRateOfIperfIsWhatArrived(t *testing.T) {
	for text, want := range map[string]float64{
		`{"end":{"sum_sent":{"bits_per_second":900},"sum_received":{"bits_per_second":800}}}`: 100,
		`{"end":{"sum":{"bits_per_second":800,"lost_percent":25}}}`:                           75,
		`{"end":{"sum":{"bits_per_second":800,"lost_percent":100}}}`:                          0,
		`{"end":{}}`: 0,
		`{"end":{"sum_received":{"bits_per_second":800}},"error":"unable to connect"}`: 0,
		`iperf3: command not found`: 0,
		``:                          0,
	} {
		got, err := parseIperf([]byte(text), "udp")
		if got != want || (err == nil) != (want > 0) {
			t.Errorf("%s: %v, %v, want %v", text, got, err, want)
		}
	}
}

// Whatever the program prints, a rate is one that can be compared with others.
func FuzzParseIperf(f *testing.F) {
	f.Add([]byte(`{"end":{"sum_sent":{"bits_per_second":9},"sum_received":{"bits_per_second":8e9}}}`), true)
	f.Add([]byte(`{"end":{"sum":{"bits_per_second":8e9,"lost_percent":12.5}}}`), false)
	f.Add([]byte(`{"end":{"sum":{"bits_per_second":1e308,"lost_percent":-1e10}}}`), false)
	f.Add([]byte(`{"error":"no route"}`), true)
	f.Add([]byte("iperf3: error"), false)
	f.Fuzz(func(t *testing.T, out []byte, tcp bool) {
		transport := "udp"
		if tcp {
			transport = "tcp"
		}
		rate, err := parseIperf(out, transport)
		if err == nil && !(rate > 0 && rate <= math.MaxFloat64/8) || err != nil && rate != 0 {
			t.Errorf("%s: %v, %v", out, rate, err)
		}
	})
}
