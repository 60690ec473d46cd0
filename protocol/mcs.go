package protocol

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/wallprobe/wallprobe/wire"
)

// mcs is Google's push channel, mobile client services, as Chromium's
// google_apis/gcm speaks it: TLS, the version byte 41 once in each direction,
// then messages of a tag, a length as varint, and a protobuf.
var mcs = &Protocol{
	Secure:   true,
	Nameless: true,
	Doc:      "Google's push channel inside TLS for mtalk.google.com: LoginRequest with the token as auth_token, LoginResponse, a heartbeat, then wallprobe's data",
	Claims: func(peek Peek, inTLS bool) bool {
		return inTLS && bytes.Equal(peek(2), []byte{mcsVersion, mcsLoginRequest})
	},
	TCP: &Ends{Probe: probeMCS, Serve: serveMCS},
}

// Tags of messages and numbers of fields (mcs.proto).
const (
	mcsVersion       = 41
	mcsHeartbeatPing = 0
	mcsHeartbeatAck  = 1
	mcsLoginRequest  = 2
	mcsLoginResponse = 3

	fieldID        = 1
	fieldDomain    = 2
	fieldUser      = 3
	fieldResource  = 4
	fieldAuthToken = 5
	fieldDevice    = 6
	fieldRMQ2      = 14
	fieldService   = 16
	fieldJID       = 2
	fieldTimestamp = 8
)

// mcsName is the server's name where the path has none, and maxMCS the longest
// message that is read.
const (
	mcsName = "mtalk.google.com"
	maxMCS  = 4096
)

var errProtobuf = errors.New("not a protobuf")

// probeMCS is the near end.
func probeMCS(ctx context.Context, c net.Conn, x Exchange) Result {
	x.ServerName = cmp.Or(x.ServerName, mcsName)
	return insideTLS(probeMCSInside)(ctx, c, x)
}

func probeMCSInside(ctx context.Context, c net.Conn, x Exchange) (r Result) {
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	step := r.steps()
	if step(StageLogin, x.loginMCS(c, &r)) && step(StageToken, x.pingMCS(c)) {
		x.carry(c, &r, step)
	}
	return r
}

func (x Exchange) loginMCS(c net.Conn, r *Result) error {
	sent := time.Now()
	c.SetDeadline(sent.Add(x.Stall))
	p := appendText(nil, fieldID, "chrome-63.0.3234.0")
	p = appendText(p, fieldDomain, "mcs.android.com")
	p = appendText(p, fieldUser, fmt.Sprint(x.Probe))
	p = appendText(p, fieldResource, fmt.Sprint(x.Probe))
	p = appendText(p, fieldAuthToken, x.Token())
	p = appendText(p, fieldDevice, "android-1")
	p = appendNumber(p, fieldRMQ2, 1)
	p = appendNumber(p, fieldService, 2) // ANDROID_ID
	if _, err := c.Write(appendMCS([]byte{mcsVersion}, mcsLoginRequest, p)); err != nil {
		return err
	}
	version := make([]byte, 1)
	if _, err := io.ReadFull(c, version); err != nil {
		return err
	}
	tag, p, err := readMCS(c)
	if err != nil {
		return err
	}
	if version[0] != mcsVersion || tag != mcsLoginResponse {
		r.Sample = append(version, tag)
		return fmt.Errorf("version %d, tag %d where a login response belongs: %w", version[0], tag, ErrForeign)
	}
	jid, err := textField(p, fieldJID)
	if err != nil {
		return err
	}
	r.RTT = time.Since(sent)
	return x.CheckToken(jid, r)
}

// pingMCS is one heartbeat.
func (x Exchange) pingMCS(c net.Conn) error {
	c.SetDeadline(time.Now().Add(x.Stall))
	if _, err := c.Write(appendMCS(nil, mcsHeartbeatPing, nil)); err != nil {
		return err
	}
	tag, _, err := readMCS(c)
	if err == nil && tag != mcsHeartbeatAck {
		err = fmt.Errorf("tag %d where the answer to a heartbeat belongs: %w", tag, ErrForeign)
	}
	return err
}

// serveMCS is the far end, inside TLS.
func serveMCS(ctx context.Context, c net.Conn, far Far) []wire.Event {
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	e := Arrived(c, far.Now())
	e.Stage = StageLogin
	c.SetDeadline(time.Now().Add(farStall))
	m, keys, err := hearLoginMCS(c, far)
	e.Session, e.Probe, e.Attempt = m.Session, m.Probe, m.Attempt
	if err != nil {
		return failed(e, err)
	}
	reply := replyTo(m, c.RemoteAddr(), far.Now())
	p := appendText(nil, fieldID, "chrome-63.0.3234.0")
	p = appendText(p, fieldJID, textOf(&reply, keys))
	p = appendNumber(p, fieldTimestamp, uint64(far.Now().UnixMilli()))
	if _, err := c.Write(appendMCS([]byte{mcsVersion}, mcsLoginResponse, p)); err != nil {
		return failed(e, err)
	}
	e.Stage = StageToken
	tag, _, err := readMCS(c)
	if err == nil && tag != mcsHeartbeatPing {
		err = fmt.Errorf("tag %d where a heartbeat belongs: %w", tag, ErrForeign)
	}
	if err == nil {
		_, err = c.Write(appendMCS(nil, mcsHeartbeatAck, nil))
	}
	if err != nil {
		e.Answered = true
		return failed(e, err)
	}
	serveCarry(c, keys, reply, &e)
	return []wire.Event{e}
}

func hearLoginMCS(c net.Conn, far Far) (wire.Message, *wire.Keys, error) {
	version := make([]byte, 1)
	if _, err := io.ReadFull(c, version); err != nil {
		return wire.Message{}, nil, err
	}
	tag, p, err := readMCS(c)
	if err != nil {
		return wire.Message{}, nil, err
	}
	if version[0] != mcsVersion || tag != mcsLoginRequest {
		return wire.Message{}, nil, fmt.Errorf("version %d, tag %d where a login request belongs: %w", version[0], tag, ErrForeign)
	}
	token, err := textField(p, fieldAuthToken)
	if err != nil {
		return wire.Message{}, nil, err
	}
	return ProveToken(token, c.RemoteAddr(), far)
}

// appendMCS appends a message: tag, length, protobuf.
func appendMCS(b []byte, tag byte, p []byte) []byte {
	b = binary.AppendUvarint(append(b, tag), uint64(len(p)))
	return append(b, p...)
}

// readMCS reads a message and nothing after it.
func readMCS(r io.Reader) (tag byte, p []byte, err error) {
	one := make([]byte, 1)
	if _, err := io.ReadFull(r, one); err != nil {
		return 0, nil, err
	}
	tag = one[0]
	var size uint64
	for shift := 0; ; shift += 7 {
		if _, err := io.ReadFull(r, one); err != nil {
			return tag, nil, err
		}
		size |= uint64(one[0]&0x7f) << shift
		if size > maxMCS || shift > 14 {
			return tag, nil, fmt.Errorf("message with tag %d of more than %d bytes: %w", tag, maxMCS, ErrForeign)
		}
		if one[0] < 0x80 {
			break
		}
	}
	p = make([]byte, size)
	_, err = io.ReadFull(r, p)
	return tag, p, err
}

// Fields of a protobuf: a varint of number and type, then a varint (type 0) or a
// length and bytes (type 2); see protobuf.dev/programming-guides/encoding.
func appendText(b []byte, number uint64, text string) []byte {
	b = binary.AppendUvarint(b, number<<3|2)
	b = binary.AppendUvarint(b, uint64(len(text)))
	return append(b, text...)
}

func appendNumber(b []byte, number, value uint64) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(b, number<<3), value)
}

// textField finds the last field of a number, as protobuf wants it; empty when
// there is none.
func textField(p []byte, number uint64) (text string, err error) {
	for len(p) > 0 {
		key, n := binary.Uvarint(p)
		if n <= 0 || key>>3 == 0 {
			return "", fmt.Errorf("field %d: %w", key>>3, errProtobuf)
		}
		size := 0
		switch p = p[n:]; key & 7 {
		case 0:
			_, size = binary.Uvarint(p)
			if size <= 0 {
				size = len(p) + 1
			}
		case 1:
			size = 8
		case 5:
			size = 4
		case 2:
			length, n := binary.Uvarint(p)
			if n <= 0 || length > uint64(len(p)-n) {
				return "", fmt.Errorf("field %d: %w", key>>3, errProtobuf)
			}
			p, size = p[n:], int(length)
			if key>>3 == number {
				text = string(p[:size])
			}
		default:
			size = len(p) + 1 // groups, which nobody uses any more
		}
		if size > len(p) {
			return "", fmt.Errorf("field %d: %w", key>>3, errProtobuf)
		}
		p = p[size:]
	}
	return text, nil
}
