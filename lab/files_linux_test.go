package lab_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/internal/need"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/lab/middlebox"
	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/report"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// The modes of FTP's data connections.
const (
	pasv = "passive"
	epsv = "extended passive"
	port = "active"
	eprt = "extended active"
)

// A fileScene is a firewall and what must come of every way to move a file.
type fileScene struct {
	name   string
	rules  string
	family string            // "ipv4" alone, or "" for each
	want   map[string]string // by mode, and "sftp": how our client tells it; "open" lets real clients pass too
	note   string            // in the reason of what passes
	ftp    client.Verdict
}

// rules around FTP.
const (
	forwardOnly = "table inet firewall {\n%s\tchain forward {\n\t\ttype filter hook forward priority filter; policy accept;\n\t\tct state established,related accept\n%s\t}\n}\n"
	ftpHelper   = "\tct helper ftp {\n\t\ttype \"ftp\" protocol tcp\n\t}\n\tchain prerouting {\n\t\ttype filter hook prerouting priority filter; policy accept;\n\t\ttcp dport 21 ct helper set \"ftp\"\n\t}\n"
	highDropped = "\t\tiifname \"lan0\" tcp dport 1024-65535 counter drop comment \"high ports\"\n"
	inDropped   = "\t\tiifname \"wan0\" counter drop comment \"in\"\n"
)

func rulesOf(helper, forward string) string { return fmt.Sprintf(forwardOnly, helper, forward) }

// outcome gives each pair of modes its own.
func outcomes(passive, active string) map[string]string {
	return map[string]string{pasv: passive, epsv: passive, port: active, eprt: active, "sftp": "open"}
}

const (
	noConnection = "nothing more came (?, connecting to"
	noCall       = "nothing more came (?, waiting for the call)"
)

func fileScenes(t *testing.T) []fileScene {
	notYours := outcomes("open", "")
	notYours[port] = `answered "500 10.77.1.2:`
	notYours[eprt] = notYours[port]
	return []fileScene{
		{name: "no firewall", rules: firewall(""), want: outcomes("open", "open"), ftp: client.Open},
		{name: "the table read literally", rules: builtinFirewall(t, "timesensor-table"), want: outcomes(noConnection, noCall), ftp: client.Cut},
		{name: "the table with a helper", rules: builtinFirewall(t, "timesensor-table-ftp-helper"), want: outcomes("open", "open"), ftp: client.Open},
		{name: "high ports closed, in from anywhere", rules: rulesOf("", highDropped), want: outcomes(noConnection, "open"), ftp: client.Partial},
		{name: "all out, nothing in", rules: builtinFirewall(t, "stateful"), want: outcomes("open", noCall), ftp: client.Partial},
		{name: "data refused", rules: rulesOf("", strings.ReplaceAll(highDropped, "drop", "reject with tcp reset")), want: outcomes("refused (?, connecting to", "open"), ftp: client.Partial},
		{name: "translated, with a helper", rules: rulesOf(ftpHelper, inDropped) + translator, family: "ipv4",
			want: outcomes("open", "open"), note: "rewritten by a helper on the way: ", ftp: client.Open},
		{name: "translated, without a helper", rules: rulesOf("", inDropped) + translator, family: "ipv4", want: notYours, ftp: client.Partial},
	}
}

// A fileBench is a world with a reflector and its key.
type fileBench struct {
	*testing.T
	world   *lab.World
	program string
	keyFile string
	key     wire.Key
	server  netip.Addr
	session byte
}

const filesScenario = "../testdata/truth/files.yaml"

// benchFor builds a world and starts the real reflector on its server.
func benchFor(t *testing.T, program, rules string, v6 bool, flags ...string) *fileBench {
	t.Helper()
	path, err := filepath.Abs(filesScenario)
	if err != nil {
		t.Fatal(err)
	}
	s, err := scenarios.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	c := lab.ConfigFor([]*scenarios.Scenario{s})
	c.Firewall = lab.Firewall{Name: "files", Text: []byte(rules)}
	b := &fileBench{T: t, world: lab.Stand(t, c), program: program, keyFile: filepath.Join(t.TempDir(), "key"), key: wire.NewKey()}
	if err := os.WriteFile(b.keyFile, []byte(b.key.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	server := b.world.Host("server")
	if b.server, _ = server.Addrs(); v6 {
		_, b.server = server.Addrs()
	}
	cmd := server.Command(context.WithoutCancel(t.Context()), program, append([]string{"reflector", "--key-file", b.keyFile, "--inward", "--scenario", path}, flags...)...)
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := server.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "ready" {
	}
	var drained sync.WaitGroup
	drained.Go(func() {
		for lines.Scan() {
		}
	})
	t.Cleanup(func() {
		p.Signal(syscall.SIGTERM)
		drained.Wait()
		if err := p.Stop(10 * time.Second); err != nil || complaints.Len() > 0 {
			t.Errorf("reflector: %v %s", err, &complaints)
		}
	})
	return b
}

// measure runs our own client.
func (b *fileBench) measure(flags ...string) *client.Result {
	b.Helper()
	path, _ := filepath.Abs(filesScenario)
	host := b.world.Host("host")
	cmd := host.Command(b.Context(), b.program, append([]string{"run", path, "--as", "near", "--reflector", b.server.String(),
		"--key-file", b.keyFile, "--timeout", truthTimeout.String(), "--rtt", "100us", "--json", "-"}, flags...)...)
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	_ = host.Run(cmd) // what is closed is no error here
	results, err := report.ReadJSON(&out)
	if err != nil || len(results) != 1 {
		b.Fatalf("%d results, %v: %s", len(results), err, &complaints)
	}
	return results[0]
}

func (b *fileBench) token() string { _, token := b.offline(); return token }

// offline gives the keys and the token of a session without control.
func (b *fileBench) offline() (*wire.Keys, string) {
	id := wire.SessionID{0xf1, 15: b.session}
	b.session++
	keys := wire.Derive(b.key, id, wire.Nonce{})
	return &keys, protocol.Exchange{Keys: &keys, Offline: true, Probe: 1, Port: 21, Now: time.Now}.Token()
}

// parts are the ways that a finding tells of, each with verdict and reason.
func parts(f *client.Finding) map[string]client.Part {
	m := make(map[string]client.Part)
	for _, p := range f.Parts {
		m[p.Target] = p
	}
	return m
}

func finding(t testing.TB, res *client.Result, path string) *client.Finding {
	t.Helper()
	for i := range res.Findings {
		if res.Findings[i].Path == path {
			return &res.Findings[i]
		}
	}
	t.Fatalf("no finding of %s", path)
	return nil
}

// words are what names the mode in a reason.
var words = map[string]string{pasv: "PASV", epsv: "EPSV", port: "PORT ", eprt: "EPRT "}

func TestEveryWayToMoveAFileIsToldAsRealClientsFindIt(t *testing.T) {
	lab.NeedLab(t)
	program := programFor(t)
	t.Run("scenes", func(t *testing.T) {
		for _, s := range fileScenes(t) {
			for _, family := range []string{"ipv4", "ipv6"} {
				if s.family != "" && s.family != family {
					continue
				}
				t.Run(s.name+"/"+family, func(t *testing.T) {
					t.Parallel()
					b := benchFor(t, program, s.rules, family == "ipv6")
					b.ours(s, family)
					b.theirs(s, family)
				})
			}
		}
	})
}

// ours demands what our own client tells.
func (b *fileBench) ours(s fileScene, family string) {
	b.Helper()
	res := b.measure()
	for path, want := range map[string]client.Verdict{"FTP": s.ftp, "SFTP": client.Open, "FTP-DATA": client.Open} {
		if f := finding(b, res, path); f.Verdict != want {
			b.Errorf("%s is %s (%s), want %s: %+v", path, f.Verdict, f.Why, want, f.Parts)
		}
	}
	ftp := finding(b, res, "FTP")
	told := parts(ftp)
	for _, o := range ftp.Evidence.Near {
		if strings.Contains(o.Detail, "instead of") {
			b.Errorf("%s: %s", o.Target, o.Detail)
		}
	}
	for _, mode := range []string{pasv, epsv, port, eprt} {
		if family == "ipv6" && (mode == pasv || mode == port) {
			if !strings.Contains(ftp.Note, mode+": not tried, ") {
				b.Errorf("%s over IPv6: note %q", mode, ftp.Note)
			}
			continue
		}
		want := s.want[mode]
		p, apart := told[mode]
		if !apart && s.ftp == client.Open && s.note == "" {
			continue // all alike
		}
		if want == "open" {
			note := s.note != "" && (mode == port || mode == eprt)
			if p.Verdict != client.Open || note != strings.HasPrefix(p.Why, "rewritten") || note && !strings.Contains(p.Why, s.note+`"`+words[mode]) {
				b.Errorf("%s: %s, %q", mode, p.Verdict, p.Why)
			}
			continue
		}
		for part := range strings.SplitSeq(want, "?") {
			if p.Verdict != client.Cut || !strings.Contains(p.Why, part) || !strings.Contains(p.Why, words[mode]) {
				b.Errorf("%s: %s, %q, want %q", mode, p.Verdict, p.Why, want)
			}
		}
	}
}

// theirs demands that programs nobody here wrote fare alike.
func (b *fileBench) theirs(s fileScene, family string) {
	b.Helper()
	b.needPrograms("curl", "lftp", "sftp")
	url := "ftp://" + netip.AddrPortFrom(b.server, 21).String()
	curl := []string{"curl", "-sS", "--connect-timeout", "2", "--max-time", "3"}
	lftp := "set ftp:ssl-allow no; set net:timeout 1; set net:max-retries 1; set net:reconnect-interval-base 1; set ftp:prefer-epsv %t; set ftp:passive-mode %t; set xfer:clobber on; "
	var wg sync.WaitGroup
	try := func(mode string, argv []string) {
		want := s.want[mode] == "open"
		dir := b.TempDir()
		wg.Go(func() {
			text, err := b.run(dir, argv)
			data, _ := os.ReadFile(filepath.Join(dir, "got.bin"))
			if ok := err == nil && len(data) == 300_001; ok != want {
				b.Errorf("%s, %s: %v, %d bytes, want it to work: %v\n%s", mode, strings.Join(argv, " "), err, len(data), want, text)
			}
		})
	}
	for mode, flags := range map[string][]string{
		pasv: {"--disable-epsv"}, epsv: nil, port: {"--ftp-port", "-", "--disable-eprt"}, eprt: {"--ftp-port", "-"},
	} {
		if family == "ipv6" && (mode == pasv || mode == port) {
			continue
		}
		try(mode, append(append(curl, flags...), "--user", b.token()+":x", "-o", "got.bin", url+"/300001.bin"))
		if family == "ipv4" && mode == eprt {
			continue // lftp has it for IPv6 alone
		}
		setup := fmt.Sprintf(lftp, mode == epsv, mode == pasv || mode == epsv)
		try(mode, []string{"lftp", "-c", setup + fmt.Sprintf("open -u %s,x %s; get 300001.bin -o got.bin", b.token(), url)})
	}
	try("sftp", append([]string{"sftp", "-q", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=3"},
		fmt.Sprintf("%s@[%s]:300001.bin", b.token(), b.server), "got.bin"))
	wg.Wait()
}

// needPrograms finds all of them.
func (b *fileBench) needPrograms(names ...string) {
	b.Helper()
	for _, name := range names {
		need.Program(b.T, name)
	}
}

// run runs a program on the host behind the firewall.
func (b *fileBench) run(dir string, argv []string) (string, error) {
	ctx, cancel := context.WithTimeout(b.Context(), 10*time.Second)
	defer cancel()
	host := b.world.Host("host")
	cmd := host.Command(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HOME="+dir)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := host.Run(cmd)
	return out.String(), err
}

// desk is a directory with files to send; fetched is what 70000.bin holds.
func (b *fileBench) desk() (token, dir string, fetched []byte) {
	b.Helper()
	keys, token := b.offline()
	sent := make([]byte, 70_000)
	keys.NewStream(wire.Request, 1, 0).Read(sent)
	fetched = make([]byte, 70_000)
	keys.NewStream(wire.Reply, 1, 0).Read(fetched)
	dir = b.TempDir()
	for name, data := range map[string][]byte{"70000.bin": sent, "69999.bin": sent[1:], "letter.txt": []byte("dear reader")} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	return token, dir, fetched
}

// What people do with a file server beside fetching one file.
func TestRealClientsListStoreAndFetch(t *testing.T) {
	lab.NeedLab(t)
	b := benchFor(t, programFor(t), firewall(""), false)
	b.needPrograms("curl", "lftp", "sftp", "openssl")
	url := "ftp://" + netip.AddrPortFrom(b.server, 21).String()
	token, dir, fetched := b.desk()
	list := "1024.bin\n1048576.bin\n1073741824.bin\n"
	curl := func(args ...string) []string {
		return append([]string{"curl", "-sS", "--max-time", "5", "--user", token + ":x"}, args...)
	}
	lftp := func(commands string) []string {
		return []string{"lftp", "-c", "set ftp:ssl-allow no; set net:max-retries 1; set net:timeout 3; set xfer:clobber on; open -u " + token + ",x " + url + "; " + commands}
	}
	const secure = "set ftp:ssl-allow yes; set ftp:ssl-force yes; set ftp:ssl-protect-data yes; set ssl:verify-certificate no; "
	sftp := func(batch string) []string {
		return []string{"sh", "-c", "printf '" + batch + "' | sftp -q -b - -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null " + token + "@" + b.server.String()}
	}
	for _, c := range []struct {
		argv []string
		ok   bool
		said string // part of what is said
		file string // fetched whole
	}{
		{curl("--list-only", url), true, list, ""},
		{curl(url + "/"), true, "-rw-r--r-- 1 wallprobe", ""},
		{curl("--head", url+"/123.bin"), true, "Content-Length: 123", ""},
		{curl("-T", "70000.bin", url+"/"), true, "", ""},
		{curl("-T", "letter.txt", url+"/"), true, "", ""},
		{curl("-T", "69999.bin", url+"/"), false, "", ""},
		{curl("-P", "-", "-T", "70000.bin", url+"/"), true, "", ""},
		{curl("-o", "curl.got", url+"/70000.bin"), true, "", "curl.got"},
		{curl("-r", "69000-", "-o", "tail.got", url+"/70000.bin"), true, "", ""},
		{curl(url + "/etc/passwd"), false, "", ""},
		{[]string{"curl", "-sS", "--user", "anonymous:x", url}, false, "530", ""},
		{[]string{"curl", "-sS", url + "/1024.bin"}, false, "", ""},
		{lftp("cls -1; cd /; pwd"), true, "1048576.bin", ""},
		{lftp("nlist"), true, list, ""},
		{lftp("put 70000.bin; put letter.txt"), true, "", ""},
		{lftp("put 69999.bin"), false, "550 byte 0: ", ""},
		{lftp("set ftp:passive-mode off; get 70000.bin -o lftp.got"), true, "", "lftp.got"},
		{lftp("pget -n 3 70000.bin -o pget.got"), true, "", "pget.got"},
		{curl("--ssl-reqd", "--insecure", "-o", "curls.got", url+"/70000.bin"), true, "", "curls.got"},
		{curl("--ssl-reqd", "--insecure", "-T", "70000.bin", url+"/"), true, "", ""},
		{curl("--ssl-reqd", "--insecure", "-T", "69999.bin", url+"/"), false, "", ""},
		{curl("--ssl-reqd", "--insecure", "--ftp-ssl-control", "-o", "curlc.got", url+"/70000.bin"), true, "", "curlc.got"},
		{curl("--ssl-reqd", url), false, "certificate", ""},
		{lftp(secure + "cls -1"), true, "1048576.bin", ""},
		{lftp(secure + "get 70000.bin -o lftps.got"), true, "", "lftps.got"},
		{lftp(secure + "set ftp:passive-mode off; get 70000.bin -o lftpa.got"), true, "", "lftpa.got"},
		{lftp(secure + "put 70000.bin"), true, "", ""},
		{[]string{"sh", "-c", "printf 'USER %s\\r\\nPBSZ 0\\r\\nQUIT\\r\\n' " + token + " | openssl s_client -quiet -starttls ftp -servername ftp.example -connect " + netip.AddrPortFrom(b.server, 21).String()},
			true, "230 logged in, ", ""},
		{sftp("ls\npwd\nput 70000.bin\nput letter.txt\nget 70000.bin sftp.got\n"), true, "1073741824.bin", "sftp.got"},
		{sftp("put 69999.bin\n"), false, "", ""},
		{sftp("rm 1024.bin\n"), false, "", ""},
		{sftp("get etc/passwd\n"), false, "not found", ""},
	} {
		text, err := b.run(dir, c.argv)
		if (err == nil) != c.ok || !strings.Contains(text, c.said) {
			t.Errorf("%q: %v, %q, want %q and to work: %v", c.argv, err, text, c.said, c.ok)
		}
		if got, err := os.ReadFile(filepath.Join(dir, c.file)); c.file != "" && !bytes.Equal(got, fetched) {
			t.Errorf("%q: %d bytes that are others, %v", c.argv, len(got), err)
		}
	}
}

// Active data connections leave from port 20, whatever serves that port.
func TestFilesMoveUnderEveryWayOfSteering(t *testing.T) {
	lab.NeedLab(t)
	program := programFor(t)
	t.Run("modes", func(t *testing.T) {
		for _, steering := range []string{"bpf", "tproxy", "sockets"} {
			for _, family := range []string{"ipv4", "ipv6"} {
				t.Run(steering+"/"+family, func(t *testing.T) {
					t.Parallel()
					s := fileScene{rules: firewall(""), want: outcomes("open", "open"), ftp: client.Open}
					b := benchFor(t, program, s.rules, family == "ipv6", "--steering", steering)
					b.ours(s, family)
					b.theirs(s, family)
				})
			}
		}
	})
}

// OpenSSH goes through an interceptor when it is told to believe whoever is
// there, and else names the key that the box shows.
func TestRealClientSeesTheInterceptorsHostKey(t *testing.T) {
	lab.NeedLab(t)
	b := benchFor(t, programFor(t), firewall(""), false)
	b.needPrograms("sftp")
	token, dir, fetched := b.desk()
	sftp := func(checking, known string) (text string, data []byte, err error) {
		text, err = b.run(dir, []string{"sftp", "-o", "StrictHostKeyChecking=" + checking, "-o", "UserKnownHostsFile=" + known, token + "@" + b.server.String() + ":70000.bin", "got.bin"})
		data, _ = os.ReadFile(filepath.Join(dir, "got.bin"))
		_ = os.Remove(filepath.Join(dir, "got.bin"))
		return text, data, err
	}
	known := filepath.Join(dir, "known")
	if text, data, err := sftp("accept-new", known); err != nil || !bytes.Equal(data, fetched) {
		t.Fatalf("before: %v, %d bytes\n%s", err, len(data), text)
	}
	box := new(middlebox.SSHInterceptor)
	seen, err := box.Fingerprint()
	if err != nil {
		t.Fatal(err)
	}
	onPorts("22", middlebox.TCP{Between: box.Between})(&scene{t, b.world})
	if text, data, err := sftp("yes", known); err == nil || len(data) > 0 || !strings.Contains(text, "REMOTE HOST IDENTIFICATION HAS CHANGED") || !strings.Contains(text, seen) {
		t.Errorf("who checks the key: %v, %d bytes, want %s named\n%s", err, len(data), seen, text)
	}
	if text, data, err := sftp("no", "/dev/null"); err != nil || !bytes.Equal(data, fetched) {
		t.Errorf("who believes any key: %v, %d bytes\n%s", err, len(data), text)
	}
}
