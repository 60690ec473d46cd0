package protocol

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/wallprobe/wallprobe/wire"
)

// maxOpening bounds what is kept of a direction's beginning, bytes; with all
// that OpenSSH offers, it is in clear for less than half of that.
const maxOpening = 8 << 10

// An sshOpening is what a direction of SSH begins with, all of it in clear: the
// version line, then packets up to the one that says that keys are taken into
// use (RFC 4253 sections 4.2, 6 and 7). What they say is signed in the end, but
// not how they are padded.
type sshOpening struct {
	b     []byte
	told  int  // lines that were recorded
	whole bool // the last packet came
}

// The numbers of packets (RFC 4250 section 4.1.2).
const (
	sshKexInit = 20
	sshNewKeys = 21
)

// take keeps the next bytes and records the lines that are known with them.
func (o *sshOpening) take(b []byte, record func(string)) {
	room := maxOpening - len(o.b)
	if room == 0 || o.whole {
		return
	}
	o.b = append(o.b, b[:min(len(b), room)]...)
	if !bytes.HasSuffix(o.line(), []byte("\n")) && len(o.b) < maxOpening {
		return // the first line may become longer
	}
	var lines []string
	lines, o.whole = o.said()
	for _, line := range lines[o.told:] {
		record(line)
	}
	o.told = len(lines)
}

// line is the first one with its end, as far as it came.
func (o *sshOpening) line() []byte {
	if i := bytes.IndexByte(o.b, '\n'); i >= 0 {
		return o.b[:i+1]
	}
	return o.b
}

// sshOffers are the name-lists of KEXINIT in their order; those of languages,
// which follow, nobody fills in.
var sshOffers = []string{
	"key exchange", "host keys", "ciphers to the server", "ciphers to the client", "MACs to the server", "MACs to the client",
	"compression to the server", "compression to the client",
}

// said gives the opening as lines of a dialogue, in an order in which half an
// opening gives the first of them: the version, and of each packet its number
// and length, the algorithms that it lists, and its digest. whole tells whether
// the last packet came.
func (o *sshOpening) said() (lines []string, whole bool) {
	line := o.line()
	if len(line) == 0 {
		return nil, false
	}
	lines = append(lines, asHeard(string(line)))
	if !isSSH(line) {
		return lines, false
	}
	const head = 6 // bytes: the lengths of packet and padding, and the number
	for rest := o.b[len(line):]; len(rest) >= head && len(lines) < wire.MaxSaid; {
		length, number := binary.BigEndian.Uint32(rest), rest[head-1]
		lines = append(lines, fmt.Sprintf("packet %d of %d bytes", number, length))
		end := 4 + int64(length)
		if end > int64(len(rest)) {
			return lines, false
		}
		if number == sshKexInit {
			lines = append(lines, sshLists(rest[4:end])...)
		}
		sum := sha256.Sum256(rest[:end])
		lines = append(lines, fmt.Sprintf("packet %d SHA256:%s", number, base64.RawStdEncoding.EncodeToString(sum[:])))
		if number == sshNewKeys {
			return lines, true
		}
		rest = rest[end:]
	}
	return lines, false
}

// sshLists are the lists of algorithms of KEXINIT, from the length of its
// padding on, or none where they are not what they should be.
func sshLists(b []byte) (lines []string) {
	const before = 1 + 1 + 16 // bytes: the length of the padding, the number and the cookie
	if len(b) < before {
		return nil
	}
	rest := b[before:]
	for _, name := range sshOffers {
		value, more, ok := nameList(rest)
		if !ok {
			return nil
		}
		lines, rest = append(lines, name+": "+string(value)), more
	}
	return lines
}

// nameList takes a list of names (RFC 4251 section 5).
func nameList(b []byte) (value, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n := binary.BigEndian.Uint32(b)
	if b = b[4:]; int64(n) > int64(len(b)) {
		return nil, nil, false
	}
	return b[:n], b[n:], true
}

const hostKeyWord = "host key "

// sshHostKey is how both ends record the key, as a line of their dialogue.
func sshHostKey(k ssh.PublicKey) string { return hostKeyWord + ssh.FingerprintSHA256(k) }

// sshMeans says what it means that the ends do not see the same key.
func sshMeans(sent, heard string) string {
	if strings.HasPrefix(sent, hostKeyWord) && strings.HasPrefix(heard, hostKeyWord) {
		return "somebody between ends the encryption, and reads and may change all that passes"
	}
	return ""
}
