package main

import "testing"

func TestTransferSaysWhereItIsSmallerThanTheDocuments(t *testing.T) {
	for _, c := range []struct {
		carried, named int64
		want           string
	}{
		{usualBytes, 1 << 30, "tried with 64 MiB, which is not the 1 GiB of the document: --large carries all of it"},
		{1 << 30, 1 << 30, "tried with 1 GiB"},
	} {
		if got := transfer(c.carried, c.named); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}
