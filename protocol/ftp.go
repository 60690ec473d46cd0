package protocol

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// FTP (RFC 959, RFC 2428) with the token as user name:
//
//	near                              far
//	                              <-  220 greeting
//	USER token                    ->
//	                              <-  230 answer
//	PASV, EPSV, PORT or EPRT      ->
//	                              <-  227, 229 or 200
//	RETR n.bin, then STOR n.bin   ->      each over a data connection of its own
//	                              <-  150, 226
//	              idle of silence
//	                              <-  211 late message                  if idle > 0
//	QUIT                          ->
//	                              <-  221
//
// Where no bytes are asked for, NLST takes the place of the transfers, so that
// the data connection is tried all the same.
var ftp = &Protocol{
	Doc:      "FTP with the token as user name; a file each way over data connections of the variant's mode, the control connection idle meanwhile",
	Variants: []string{ftpPassive, ftpExtendedPassive, ftpActive, ftpExtendedActive},
	Bulk:     true,
	Greets:   true,
	Patience: strangersTime,
	Harmless: ftpHelped,
	Needs: func(variant string) Need {
		return Need{
			IPv4:   variant == ftpPassive || variant == ftpActive,
			Inward: variant == ftpActive || variant == ftpExtendedActive,
		}
	},
	TCP: &Ends{Probe: probeFTP, Serve: serveFTP},
}

// The modes of data connections: who connects, and in what words.
const (
	ftpPassive         = "passive"          // PASV
	ftpExtendedPassive = "extended passive" // EPSV
	ftpActive          = "active"           // PORT
	ftpExtendedActive  = "extended active"  // EPRT
)

// ftpData is port 20 as a table of ports lists it when it calls it outbound.
var ftpData = &Protocol{
	Doc:       "a connection to port 20 with wallprobe's own message, as a table reads that lists the port as outbound",
	Imitation: "no mode of FTP connects to port 20, which is where active transfers come from: the plain exchange stands there",
	Claims:    func(Peek, bool) bool { return false }, // its first bytes are the plain exchange's
	TCP:       &Ends{Probe: probePlain, Serve: servePlain},
}

// dataPort is where a server of active transfers calls from (RFC 959 section 8).
const dataPort = 20

var errAddress = errors.New("not an address of a data connection")

// parseHostPort reads h1,h2,h3,h4,p1,p2 (RFC 959 section 4.1.2).
func parseHostPort(s string) (netip.AddrPort, error) {
	parts := strings.Split(s, ",")
	if len(parts) != 6 {
		return netip.AddrPort{}, fmt.Errorf("%q: %w", s, errAddress)
	}
	var b [6]byte
	for i, p := range parts {
		n, err := number(p, 8)
		if err != nil {
			return netip.AddrPort{}, fmt.Errorf("%q: %w", s, errAddress)
		}
		b[i] = byte(n)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[:4])), uint16(b[4])<<8|uint16(b[5])), nil
}

// number reads decimal digits alone, where strconv would take a sign.
func number(s string, bits int) (uint64, error) {
	if s == "" || s[0] < '0' || s[0] > '9' {
		return 0, errAddress
	}
	return strconv.ParseUint(s, 10, bits)
}

// formatHostPort is the inverse of parseHostPort; the address must be IPv4.
func formatHostPort(a netip.AddrPort) string {
	b := a.Addr().As4()
	return fmt.Sprintf("%d,%d,%d,%d,%d,%d", b[0], b[1], b[2], b[3], a.Port()>>8, a.Port()&0xff)
}

// parseExtended reads |1|h|p| or |2|h|p| with any delimiter, and |||p|, which
// has no address (RFC 2428 sections 2 and 3).
func parseExtended(s string) (netip.AddrPort, error) {
	bad := fmt.Errorf("%q: %w", s, errAddress)
	if s == "" || s[0] < 33 || s[0] > 126 {
		return netip.AddrPort{}, bad
	}
	parts := strings.Split(s, s[:1])
	if len(parts) != 5 || parts[0] != "" || parts[4] != "" {
		return netip.AddrPort{}, bad
	}
	port, err := number(parts[3], 16)
	if err != nil {
		return netip.AddrPort{}, bad
	}
	if parts[1] == "" && parts[2] == "" {
		return netip.AddrPortFrom(netip.Addr{}, uint16(port)), nil
	}
	a, err := netip.ParseAddr(parts[2])
	if err != nil || a.Zone() != "" || parts[1] != family(a) {
		return netip.AddrPort{}, bad
	}
	return netip.AddrPortFrom(a, uint16(port)), nil
}

// family is the number that RFC 2428 section 2 has for an address.
func family(a netip.Addr) string {
	if a.Is4() {
		return "1"
	}
	return "2"
}

// formatExtended is the inverse of parseExtended.
func formatExtended(a netip.AddrPort) string {
	if !a.Addr().IsValid() {
		return fmt.Sprintf("|||%d|", a.Port())
	}
	return fmt.Sprintf("|%s|%s|%d|", family(a.Addr()), a.Addr().WithZone(""), a.Port())
}

// splitAddress finds the address in one of the four lines that have one. head
// and tail are what stands around it.
func splitAddress(line string) (head string, a netip.AddrPort, tail string, err error) {
	verb, arg, _ := strings.Cut(line, " ")
	parse := parseHostPort
	switch verb {
	case "EPRT", "229":
		parse = parseExtended
	case "PORT", "227":
	default:
		return "", a, "", errAddress
	}
	head = verb + " "
	if verb == "227" || verb == "229" {
		from, to := strings.IndexByte(arg, '('), strings.LastIndexByte(arg, ')')
		if from < 0 || to < from {
			return "", a, "", fmt.Errorf("%q: %w", line, errAddress)
		}
		head, arg, tail = head+arg[:from+1], arg[from+1:to], arg[to:]
	}
	a, err = parse(arg)
	return head, a, tail, err
}

// ftpHelped tells whether a line differs in nothing but the address of a data
// connection, which helpers in firewalls and translators are there to change.
func ftpHelped(sent, heard string) bool {
	h1, _, t1, err1 := splitAddress(sent)
	h2, _, t2, err2 := splitAddress(heard)
	return err1 == nil && err2 == nil && h1 == h2 && t1 == t2
}

// The files of both FTP and SFTP are made of a session's keyed stream as they
// are read: N.bin has N bytes, at most MaxBytes. listed are those that a listing
// shows; all others are there as well.
var listed = []uint32{1 << 10, 1 << 20, 1 << 30}

const suffix = ".bin"

func fileName(n uint32) string { return strconv.FormatUint(uint64(n), 10) + suffix }

// fileSize gives the length of a file by its name, with or without the root in front.
func fileSize(name string) (uint32, bool) {
	digits, ok := strings.CutSuffix(strings.TrimPrefix(strings.TrimPrefix(name, "."), "/"), suffix)
	n, err := number(digits, 32)
	return uint32(n), ok && err == nil
}

// listing is what NLST tells.
func listing() string {
	var b strings.Builder
	for _, n := range listed {
		b.WriteString(fileName(n) + "\r\n")
	}
	return b.String()
}
