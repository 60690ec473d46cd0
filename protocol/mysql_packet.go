package protocol

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/wallprobe/wallprobe/wire"
)

// MySQL's packets (dev.mysql.com/doc/dev/mysql-server, "Client/Server Protocol"):
// a length of three bytes, a sequence number, the payload. Numbers are
// little-endian.
const (
	mysqlSSLRequestSize = 32
	maxMySQL            = 4096 // bytes of a payload that is read

	mysqlOK     = 0x00
	mysqlEOF    = 0xfe // also AuthSwitchRequest
	mysqlERR    = 0xff
	mysqlQuit   = 0x01
	mysqlInitDB = 0x02
	mysqlQuery  = 0x03
	mysqlPing   = 0x0e
)

// Capabilities.
const (
	mysqlLongPassword = 1 << 0
	mysqlLongFlag     = 1 << 2
	mysqlWithDB       = 1 << 3
	mysqlProtocol41   = 1 << 9
	mysqlSSL          = 1 << 11
	mysqlTransactions = 1 << 13
	mysqlSecure       = 1 << 15
	mysqlPluginAuth   = 1 << 19

	mysqlOffered = mysqlLongPassword | mysqlLongFlag | mysqlWithDB | mysqlProtocol41 | mysqlSSL | mysqlTransactions | mysqlSecure | mysqlPluginAuth
)

const (
	mysqlVersion   = "8.0.36-wallprobe"
	mysqlNative    = "mysql_native_password"
	mysqlClear     = "mysql_clear_password"
	mysqlCharset   = 45 // utf8mb4_general_ci
	mysqlAuto      = 2  // SERVER_STATUS_AUTOCOMMIT
	mysqlSaltSize  = 20
	mysqlMaxPacket = 1 << 24
)

var errMySQL = errors.New("not a packet of MySQL")

// A mysqlConn reads and writes packets, and not a byte beyond them: TLS may
// follow any of them.
type mysqlConn struct {
	net.Conn
	seq   byte // of the next packet
	stall time.Duration
	said  wire.Transcript
}

func (c *mysqlConn) readPacket() ([]byte, error) {
	c.SetReadDeadline(time.Now().Add(c.stall))
	head := make([]byte, 4)
	if _, err := io.ReadFull(c, head); err != nil {
		return nil, err
	}
	size := int(head[0]) | int(head[1])<<8 | int(head[2])<<16
	switch {
	case size > maxMySQL || size == 0:
		return nil, fmt.Errorf("payload of %d bytes: %w", size, ErrForeign)
	case head[3] != c.seq:
		return nil, fmt.Errorf("packet %d where %d belongs: %w", head[3], c.seq, ErrForeign)
	}
	c.seq++
	p := make([]byte, size)
	_, err := io.ReadFull(c, p)
	return p, err
}

func (c *mysqlConn) writePacket(p []byte) error {
	c.SetWriteDeadline(time.Now().Add(c.stall))
	head := []byte{byte(len(p)), byte(len(p) >> 8), byte(len(p) >> 16), c.seq}
	c.seq++
	_, err := c.Write(append(head, p...))
	return err
}

// A mysqlGreeting is the server's Handshake V10.
type mysqlGreeting struct {
	Version string
	Thread  uint32
	Salt    [mysqlSaltSize]byte
	Caps    uint32
	Charset byte
	Status  uint16
	Plugin  string
}

// Append appends the payload.
func (g mysqlGreeting) Append(b []byte) []byte {
	b = append(append(append(b, 10), g.Version...), 0)
	b = binary.LittleEndian.AppendUint32(b, g.Thread)
	b = append(append(b, g.Salt[:8]...), 0)
	b = binary.LittleEndian.AppendUint16(b, uint16(g.Caps))
	b = append(b, g.Charset)
	b = binary.LittleEndian.AppendUint16(b, g.Status)
	b = binary.LittleEndian.AppendUint16(b, uint16(g.Caps>>16))
	b = append(b, mysqlSaltSize+1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = append(append(b, g.Salt[8:]...), 0)
	return append(append(b, g.Plugin...), 0)
}

// parseMySQLGreeting reads a greeting in the form that Append writes.
func parseMySQLGreeting(p []byte) (g mysqlGreeting, err error) {
	if len(p) == 0 || p[0] != 10 {
		return g, errMySQL
	}
	version, rest, ok := bytes.Cut(p[1:], []byte{0})
	const fixed = 4 + 8 + 1 + 2 + 1 + 2 + 2 + 1 + 10 + 12 + 1
	if !ok || len(rest) < fixed+1 || rest[len(rest)-1] != 0 {
		return g, errMySQL
	}
	g.Version, g.Plugin = string(version), string(rest[fixed:len(rest)-1])
	g.Thread = binary.LittleEndian.Uint32(rest)
	copy(g.Salt[:], rest[4:12])
	copy(g.Salt[8:], rest[31:43])
	g.Caps = uint32(binary.LittleEndian.Uint16(rest[13:])) | uint32(binary.LittleEndian.Uint16(rest[18:]))<<16
	g.Charset, g.Status = rest[15], binary.LittleEndian.Uint16(rest[16:])
	if !bytes.Equal(g.Append(nil), p) {
		return g, errMySQL
	}
	return g, nil
}

// String is the greeting as a line that tells all of it.
func (g mysqlGreeting) String() string {
	return fmt.Sprintf("greeting %s tls %v capabilities %08x charset %d status %d thread %d salt %x plugin %s",
		g.Version, g.Caps&mysqlSSL != 0, g.Caps, g.Charset, g.Status, g.Thread, g.Salt, g.Plugin)
}

// A mysqlLogin is HandshakeResponse41. Without User it is an SSLRequest.
type mysqlLogin struct {
	Caps      uint32
	MaxPacket uint32
	Charset   byte
	User      string
	Auth      []byte // 255 bytes at most
	Database  string // with mysqlWithDB
	Plugin    string // with mysqlPluginAuth
}

func (l mysqlLogin) request(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, l.Caps)
	b = binary.LittleEndian.AppendUint32(b, l.MaxPacket)
	return append(append(b, l.Charset), make([]byte, 23)...)
}

// Append appends the payload of the response.
func (l mysqlLogin) Append(b []byte) []byte {
	b = append(append(l.request(b), l.User...), 0)
	b = append(append(b, byte(len(l.Auth))), l.Auth...)
	if l.Caps&mysqlWithDB != 0 {
		b = append(append(b, l.Database...), 0)
	}
	if l.Caps&mysqlPluginAuth != 0 {
		b = append(append(b, l.Plugin...), 0)
	}
	return b
}

// parseMySQLLogin reads a response or an SSLRequest. What follows the plugin's
// name, connection attributes for one, is left alone.
func parseMySQLLogin(p []byte) (l mysqlLogin, tls bool, err error) {
	if len(p) < mysqlSSLRequestSize {
		return l, false, errMySQL
	}
	l.Caps, l.MaxPacket, l.Charset = binary.LittleEndian.Uint32(p), binary.LittleEndian.Uint32(p[4:]), p[8]
	if l.Caps&mysqlProtocol41 == 0 {
		return l, false, errMySQL
	}
	rest := p[mysqlSSLRequestSize:]
	if len(rest) == 0 {
		return l, l.Caps&mysqlSSL != 0, nil
	}
	text := func() (s string) {
		before, after, ok := bytes.Cut(rest, []byte{0})
		if !ok {
			err = errMySQL
		}
		rest = after
		return string(before)
	}
	l.User = text()
	if err != nil || len(rest) == 0 {
		return l, false, errMySQL
	}
	end := 1 + int(rest[0]) // as a byte, 255 and 1 would be 0
	if len(rest) < end {
		return l, false, errMySQL
	}
	l.Auth, rest = rest[1:end], rest[end:]
	if l.Caps&mysqlWithDB != 0 {
		l.Database = text()
	}
	if l.Caps&mysqlPluginAuth != 0 {
		l.Plugin = text()
	}
	return l, false, err
}

// mysqlRequest is an SSLRequest as a line that tells all of it.
func mysqlRequest(p []byte) string { return fmt.Sprintf("request for TLS %x", p) }

// mysqlFine is an OK packet with a text for people of at most 250 bytes, and
// mysqlRefusal an ERR packet. The text has its length before it: the protocol's
// description leaves that out, servers and clients do not.
func mysqlFine(info string) []byte {
	p := []byte{mysqlOK, 0, 0, mysqlAuto, 0, 0, 0}
	if info == "" {
		return p
	}
	return append(append(p, byte(len(info))), info...)
}

// mysqlInfo is the text in an OK packet.
func mysqlInfo(p []byte) string {
	if len(p) < 8 || int(p[7]) != len(p)-8 {
		return ""
	}
	return string(p[8:])
}

func mysqlRefusal(code uint16, state, text string) []byte {
	return append(binary.LittleEndian.AppendUint16([]byte{mysqlERR}, code), "#"+state+text...)
}

// mysqlRefused is the text of an ERR packet.
func mysqlRefused(p []byte) string {
	if len(p) < 3 || p[0] != mysqlERR {
		return fmt.Sprintf("packet %x", p[:min(len(p), 16)])
	}
	return fmt.Sprintf("error %d %s", binary.LittleEndian.Uint16(p[1:]), strings.TrimPrefix(string(p[3:]), "#"))
}

// mysqlResult is the packets of a result with one column and one row.
func mysqlResult(column, value string) [][]byte {
	definition := []byte("\x03def\x00\x00\x00")
	definition = append(append(definition, byte(len(column))), column...)
	definition = append(definition, 0, 12, mysqlCharset, 0)
	definition = binary.LittleEndian.AppendUint32(definition, uint32(4*len(value)))
	definition = append(definition, 0xfd, 1, 0, 0, 0, 0) // VAR_STRING, NOT_NULL, no decimals
	end := []byte{mysqlEOF, 0, 0, mysqlAuto, 0}
	return [][]byte{{1}, definition, end, append([]byte{byte(len(value))}, value...), end}
}
