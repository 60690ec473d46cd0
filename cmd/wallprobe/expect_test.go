package main

import (
	"strings"
	"testing"

	"github.com/wallprobe/wallprobe/expect"
	"github.com/wallprobe/wallprobe/scenarios"
)

// The example in the help is a file that works.
func TestExampleOfExpectationsFits(t *testing.T) {
	known, err := scenarios.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	f, err := expect.Parse("help", []byte(exampleExpectations))
	if err == nil {
		err = f.Fit(known)
	}
	if err != nil {
		t.Error(err)
	}
	if !strings.Contains(expectCommand().Description, exampleExpectations) {
		t.Error("the example is not in the help")
	}
}
