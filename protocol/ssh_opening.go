package protocol

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"strings"

	"golang.org/x/crypto/ssh"
)

// maxOpening bounds what is kept of a direction's beginning, bytes; with all
// that OpenSSH offers it has less than 2 KiB.
const maxOpening = 4 << 10

// An sshOpening is what a direction of SSH begins with, all of it in clear: the
// version line and the packet that says what this end can (RFC 4253 sections
// 4.2, 6 and 7.1). What follows of the exchange of keys is signed over both.
type sshOpening struct {
	b    []byte
	told int // lines that were recorded
}

// take keeps the next bytes and records the lines that are whole with them.
func (o *sshOpening) take(b []byte, record func(string)) {
	room := maxOpening - len(o.b)
	if room == 0 || o.whole() {
		return
	}
	o.b = append(o.b, b[:min(len(b), room)]...)
	if !bytes.HasSuffix(o.line(), []byte("\n")) && len(o.b) < maxOpening {
		return
	}
	lines := o.said()
	for _, line := range lines[o.told:] {
		record(line)
	}
	o.told = len(lines)
}

// whole tells whether KEXINIT has come, and was understood.
func (o *sshOpening) whole() bool { return o.told > 1 }

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

// said gives the opening as lines of a dialogue: the first one as it is and,
// where KEXINIT came whole, each list of algorithms and a digest of all.
func (o *sshOpening) said() []string {
	line := o.line()
	if len(line) == 0 {
		return nil
	}
	list := []string{strings.TrimRight(string(line), "\r\n")}
	payload := kexInit(o.b[len(line):])
	if payload == nil || !isSSH(line) {
		return list
	}
	const cookie = 1 + 16 // bytes, with the message's number
	rest := payload[min(len(payload), cookie):]
	for _, name := range sshOffers {
		var value []byte
		var ok bool
		if value, rest, ok = nameList(rest); !ok {
			return list[:1]
		}
		list = append(list, name+": "+string(value))
	}
	sum := sha256.Sum256(payload)
	return append(list, "KEXINIT SHA256:"+base64.RawStdEncoding.EncodeToString(sum[:]))
}

// kexInit is the payload of a first packet that is a whole KEXINIT, else nil.
func kexInit(b []byte) []byte {
	const head, number = 5, 20 // the lengths of packet and padding; SSH_MSG_KEXINIT
	if len(b) < head+1 || b[head] != number {
		return nil
	}
	length, padding := int64(binary.BigEndian.Uint32(b)), int64(b[4])
	end := 4 + length - padding
	if end <= head || end > int64(len(b)) {
		return nil
	}
	return b[head:end]
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
