package main

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/report"
	"github.com/wallprobe/wallprobe/scenarios"
)

// longFlags are of what takes its time and is off unless asked for, and of how
// to confine it.
func longFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "path", Usage: "measure only the path with this `ID`; may be repeated"},
		&cli.StringFlag{Name: "bytes", Usage: "carry `SIZE` each way over the paths that move files (FTP, SFTP, HTTP, HTTPS), such as 1GiB: rate, pauses and the byte at which a path is cut; takes SIZE over the line's rate, for each of them"},
		&cli.StringFlag{Name: "idle", Usage: "find out after how much silence flows die, beginning with `TIMES` such as 50s,5m,30m: takes the longest of them, and up to three times the shortest that is not survived"},
	}
}

// confined gives the scenarios with the named paths alone; those that have none
// of them are left out.
func confined(list []*scenarios.Scenario, paths []string) ([]*scenarios.Scenario, error) {
	if len(paths) == 0 {
		return list, nil
	}
	var out []*scenarios.Scenario
	known := make(map[string]bool)
	for _, s := range list {
		only := s.Only(paths)
		for _, p := range only.Paths {
			known[p.ID] = true
		}
		if len(only.Paths) > 0 {
			out = append(out, only)
		}
	}
	for _, id := range paths {
		if !known[id] {
			hint := ""
			if near := scenarios.Nearest(strings.ToUpper(id), pathIDs(list)); near != "" {
				hint = fmt.Sprintf("; did you mean %s?", near)
			}
			return nil, usage("--path %s: no such path; wallprobe scenario show NAME lists them%s", id, hint)
		}
	}
	return out, nil
}

func pathIDs(list []*scenarios.Scenario) (ids []string) {
	for _, s := range list {
		for _, p := range s.Paths {
			ids = append(ids, p.ID)
		}
	}
	return ids
}

// long is what longFlags ask for.
type long struct {
	bytes    int64
	silences []time.Duration
}

// hint says what of it takes long.
func (l long) hint() string {
	var said []string
	if l.bytes > 0 {
		said = append(said, report.Bytes(l.bytes)+" each way")
	}
	if len(l.silences) > 0 {
		said = append(said, fmt.Sprintf("silences of up to %v and more", slices.Max(l.silences)))
	}
	return strings.Join(said, ", ")
}

func longConfig(c *cli.Context) (l long, err error) {
	if text := c.String("bytes"); text != "" {
		if l.bytes, err = parseSize(text); err != nil {
			return l, usage("--bytes %s: %v", text, err)
		}
	}
	if text := c.String("idle"); text != "" {
		if l.silences, err = parseSilences(text); err != nil {
			return l, usage("--idle %s: %v", text, err)
		}
	}
	return l, nil
}

// parseSilences reads a list of times: 50s,5m,30m.
func parseSilences(text string) (list []time.Duration, err error) {
	for part := range strings.SplitSeq(text, ",") {
		d, err := time.ParseDuration(strings.TrimSpace(part))
		if err != nil {
			return nil, fmt.Errorf("%q is not a time; write 50s, 5m or 1h", part)
		}
		list = append(list, d)
	}
	return list, client.CheckSilences(list)
}

// parseSize reads a number of bytes: 1048576, 64MiB, 1GiB, 500MB.
func parseSize(text string) (int64, error) {
	number := strings.TrimRight(text, "KMGiBk")
	unit := strings.TrimSuffix(text[len(number):], "B")
	factors := map[string]float64{"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
	n, err := strconv.ParseFloat(number, 64)
	factor, ok := factors[unit]
	switch {
	case err != nil || !ok || math.IsNaN(n):
		return 0, fmt.Errorf("not a size; write 64MiB or 1GiB")
	case n*factor < 1 || n*factor > protocol.MaxBytes:
		return 0, fmt.Errorf("from 1 byte to %d", int64(protocol.MaxBytes))
	}
	return int64(n * factor), nil
}
