package report

import (
	"io"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/scenarios"
)

func HTML(w io.Writer, results []*client.Result, known []*scenarios.Scenario) error { return nil }
