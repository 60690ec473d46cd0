package lab_test

import (
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/internal/need"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/lab/middlebox"
)

// An ftpFault is what somebody on the way does to one mode of data connections
// while the others pass.
type ftpFault struct {
	name  string
	mode  string
	boxes func(*scene)
	told  string // of the mode: its verdict and reason, as in fact.Ways
	works bool   // for curl in that mode
}

// ftpWords are the lines that name a data connection, by mode: how they begin.
var ftpWords = map[string]string{pasv: "227", epsv: "229", port: "PORT", eprt: "EPRT"}

// onFTP puts a box into the way of FTP's control connections, whose addresses
// stay as they are: what FTP names is what the other end sees.
func onFTP(box middlebox.TCP) func(*scene) {
	box.Ports, box.AsClient = "21", true
	return func(s *scene) { s.serve(box.Open(s.firewall())) }
}

// translatedPorts puts other ports into the lines that name a data connection of one
// mode; forwarded sends connections to those on to the right ones.
func translatedPorts(mode string, forwarded bool) func(*scene) {
	return func(s *scene) {
		gateway := &middlebox.FTPGateway{Verbs: []string{ftpWords[mode]}}
		onFTP(middlebox.TCP{Between: gateway.Between})(s)
		data := middlebox.TCP{Ports: "1024-65535", AsClient: true, To: gateway.To}
		if mode == port || mode == eprt { // the server calls, from port 20
			data.From, data.Ports = "wan0", "1024-65535 tcp sport 20 ct direction original"
		}
		if forwarded {
			s.serve(data.Open(s.firewall()))
		}
	}
}

// crossedOut writes over a command, as old inspection does with what it does
// not know. The server is left to say that it does not either.
func crossedOut(command string) func(*scene) {
	return onFTP(middlebox.TCP{Between: middlebox.Lines(func(from middlebox.Side, line string) (on, back string) {
		if from == middlebox.Client && strings.HasPrefix(line, command) {
			line = strings.Repeat("X", len(command)) + line[len(command):]
		}
		return line, ""
	})})
}

// answeredFor answers a command in the server's place.
func answeredFor(command, answer string) func(*scene) {
	return onFTP(middlebox.TCP{Between: middlebox.Lines(func(from middlebox.Side, line string) (on, back string) {
		if from == middlebox.Client && strings.HasPrefix(line, command) {
			return "", answer + "\r\n"
		}
		return line, ""
	})})
}

// rewrittenAnswer changes what the server says.
func rewrittenAnswer(old, new string) func(*scene) {
	return onFTP(middlebox.TCP{Rewrites: []middlebox.Rewrite{{From: middlebox.Server, Old: old, New: new}}})
}

func ftpFaults() []ftpFault {
	const (
		helper = `rewritten by a helper on the way: "%s…" was sent, "%[1]s…" arrived %s`
		refuse = `cut: before the first byte of data: `
	)
	var list []ftpFault
	commands := map[string]string{pasv: "PASV", epsv: "EPSV", port: "PORT", eprt: "EPRT"}
	for _, mode := range slices.Sorted(maps.Keys(commands)) {
		verb, command, where, broken := ftpWords[mode], commands[mode], "here", `refused (`+commands[mode]+`, connecting to …); at the reflector, stage data: the connection was closed; `
		if mode == port || mode == eprt {
			where, broken = "at the reflector", `answered "425 call …from port 20: …refused" (`+command+` …, waiting for the call); …`
		}
		helped := fmt.Sprintf(helper, verb, where)
		list = append(list,
			ftpFault{"port translated, " + mode, mode, translatedPorts(mode, true), "open: " + helped, true},
			ftpFault{"port translated to nobody's, " + mode, mode, translatedPorts(mode, false), refuse + broken + helped, false},
			ftpFault{"command crossed out, " + mode, mode, crossedOut(command), fmt.Sprintf(`altered: "%s…" was sent, "XXXX…" arrived at the reflector`, command), false},
			ftpFault{"command answered on the way, " + mode, mode, answeredFor(command, "500 command not understood"),
				`altered: "500 command not understood" was put in before it arrived here`, false},
		)
	}
	return append(list,
		ftpFault{"address translated, passive", pasv, rewrittenAnswer("Passive Mode (198,51,100,10,", "Passive Mode (10,77,1,1,"), "open: " + fmt.Sprintf(helper, "227", "here"), true},
		ftpFault{"answer made unreadable, passive", pasv, rewrittenAnswer("Mode (198,51,100,10,", "Mode ("),
			`altered: "227 Entering Passive Mode (198,51,100,10,…" was sent, "227 Entering Passive Mode (…" arrived here`, false},
		ftpFault{"answer made unreadable, extended passive", epsv, rewrittenAnswer("Mode (|||", "Mode (||"),
			`altered: "229 Entering Extended Passive Mode (|||…" was sent, "229 Entering Extended Passive Mode (||…" arrived here`, false},
	)
}

// row is what must be told of every mode: one is at fault, the others pass.
func (f ftpFault) row(family string) row {
	var ways []string
	for _, mode := range []string{port, eprt, epsv, pasv} { // in the order of the alphabet
		if family == "ipv6" && (mode == pasv || mode == port) {
			continue
		}
		told := "open: …"
		if mode == f.mode {
			told = f.told
		}
		ways = append(ways, mode+": "+told)
	}
	slices.Sort(ways)
	verdict := client.Partial
	if strings.HasPrefix(f.told, "open: ") {
		verdict = client.Open
	}
	return row{name: f.name, scenario: "files", family: family, rules: firewall(""), boxes: f.boxes,
		want: map[string]fact{"FTP": {Verdict: verdict, Ways: strings.Join(ways, "\n")}}}
}

func (f ftpFault) families() []string {
	if f.mode == pasv || f.mode == port {
		return []string{"ipv4"}
	}
	return []string{"ipv4", "ipv6"}
}

func TestWhatHelpersDoToFTPIsNamedByMode(t *testing.T) {
	lab.NeedLab(t)
	program := programFor(t)
	for _, f := range ftpFaults() {
		for _, family := range f.families() {
			r := f.row(family)
			r.holds(t, program)
			t.Run("without "+r.name+"/"+family, func(t *testing.T) {
				t.Parallel()
				clean := r
				clean.boxes = nil
				res := clean.play(t, program, family)
				if diff := gocmp.Diff([]string{"FTP"}, r.wrong(res)); diff != "" {
					t.Errorf("paths that the row is wrong about (-want +got):\n%s", diff)
					r.explain(t, res)
				}
			})
		}
	}
}

// curl in the mode at fault fares as the finding says. Where EPSV alone fails,
// curl goes on with PASV, so it is tried over IPv6, which has none.
func TestRealClientMeetsWhatHelpersDoToFTP(t *testing.T) {
	lab.NeedLab(t)
	need.Program(t, "curl")
	program := programFor(t)
	flags := map[string][]string{pasv: {"--disable-epsv"}, epsv: nil, port: {"--ftp-port", "-", "--disable-eprt"}, eprt: {"--ftp-port", "-"}}
	for _, f := range ftpFaults() {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			family := f.families()[len(f.families())-1]
			b := benchFor(t, program, firewall(""), family == "ipv6")
			f.boxes(&scene{t, b.world})
			dir := t.TempDir()
			argv := slices.Concat([]string{"curl", "-sS", "--connect-timeout", "2", "--max-time", "5"}, flags[f.mode],
				[]string{"--user", b.token() + ":x", "-o", "got.bin", "ftp://" + net.JoinHostPort(b.server.String(), "21") + "/300001.bin"})
			text, err := b.run(dir, argv)
			data, _ := os.ReadFile(filepath.Join(dir, "got.bin"))
			if ok := err == nil && len(data) == 300_001; ok != f.works {
				t.Errorf("%q: %v, %d bytes, want it to work: %v\n%s", argv, err, len(data), f.works, text)
			}
		})
	}
}
