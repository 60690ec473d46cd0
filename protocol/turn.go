package protocol

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/pion/stun"

	"github.com/wallprobe/wallprobe/wire"
)

// The stages of TURN after a Binding, in order. The reflector's events have the
// same names.
const (
	StageChallenge  = "turn challenge" // of the reflector's events alone: the answer to what is not signed
	StageAllocate   = "turn allocate"
	StagePermission = "turn permission"
	StageChannel    = "turn channel"
	StageRelayed    = "turn data"
	StageRefresh    = "turn refresh"
)

// EchoPort is the port of the peer that the reflector's TURN service has inside
// itself, at the relay's own address (RFC 862's port). It is reached through a
// relay alone and answers only the session's own messages.
const EchoPort = 7

// A TURNError is the refusal of a TURN server (RFC 8656 section 19).
type TURNError struct {
	Code   int
	Reason string
}

func (e *TURNError) Error() string {
	if e.Reason == "" {
		return fmt.Sprintf("the relay refuses with %d %s", e.Code, turnCodes[e.Code])
	}
	return fmt.Sprintf("the relay refuses with %d %s", e.Code, e.Reason)
}

// turnCodes are the reasons of servers that give none.
var turnCodes = map[int]string{
	400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 437: "Allocation Mismatch", 438: "Stale Nonce",
	440: "Address Family not Supported", 441: "Wrong Credentials", 442: "Unsupported Transport", 443: "Peer Address Family Mismatch",
	486: "Allocation Quota Reached", 508: "Insufficient Capacity",
}

// A Relay is the near end of TURN (RFC 8656) on one connection, to any server.
// It is for one goroutine; whoever wants it to end closes Conn.
type Relay struct {
	Conn               net.Conn // connected to the server, over UDP too
	Username, Password string   // long-term credentials
	// Ahead gives what is sent before a request that nothing was proven with: it
	// pays for the challenge, which is longer than the request. Nil sends nothing.
	Ahead func() ([]byte, error)
	Stall time.Duration // how long an answer may take

	r               *bufio.Reader // of a stream
	buf             [maxRelayed]byte
	realm           stun.Realm
	nonce           stun.Nonce
	key             stun.MessageIntegrity
	challenge, last talk           // the exchange that brought realm and nonce, the last one
	Mapped, Relayed netip.AddrPort // of the allocation
}

// talk is a request as it was sent and its answer as it arrived, nil while none has.
type talk struct{ asked, heard []byte }

// maxRelayed bounds a message of a TURN server in bytes.
const maxRelayed = 4096

var requestedUDP = stun.RawAttribute{Type: stun.AttrRequestedTransport, Value: []byte{17, 0, 0, 0}} // RFC 8656 section 18.7

// Bound asks any STUN server, without credentials, from which address it is
// asked (RFC 8489 section 2).
func (t *Relay) Bound() (netip.AddrPort, error) {
	m, err := t.exchange(stun.BindingRequest, nil)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return addressIn(m, stun.AttrXORMappedAddress)
}

// Allocate asks for a relayed address (RFC 8656 section 7) and keeps it in t.Relayed.
func (t *Relay) Allocate() error {
	m, err := t.ask(stun.MethodAllocate, requestedUDP)
	if err != nil {
		return err
	}
	if t.Relayed, err = addressIn(m, stun.AttrXORRelayedAddress); err != nil {
		return err
	}
	t.Mapped, err = addressIn(m, stun.AttrXORMappedAddress)
	return err
}

// Permit lets a peer's packets through (section 9).
func (t *Relay) Permit(peer netip.AddrPort) error {
	_, err := t.ask(stun.MethodCreatePermission, xorPeer(peer))
	return err
}

// Bind gives a peer a channel, 0x4000 to 0x4FFF (section 12).
func (t *Relay) Bind(channel uint16, peer netip.AddrPort) error {
	number := stun.RawAttribute{Type: stun.AttrChannelNumber, Value: binary.BigEndian.AppendUint32(nil, uint32(channel)<<16)}
	_, err := t.ask(stun.MethodChannelBind, number, xorPeer(peer))
	return err
}

// Refresh asks for another lifetime, in seconds; 0 ends the allocation (section 8).
func (t *Relay) Refresh(lifetime time.Duration) error {
	seconds := binary.BigEndian.AppendUint32(nil, uint32(lifetime/time.Second))
	_, err := t.ask(stun.MethodRefresh, stun.RawAttribute{Type: stun.AttrLifetime, Value: seconds})
	return err
}

// Indicate sends data to a peer in a Send indication (section 11).
func (t *Relay) Indicate(peer netip.AddrPort, data []byte) error {
	m, err := stun.Build(stun.TransactionID, stun.NewType(stun.MethodSend, stun.ClassIndication), xorPeer(peer),
		stun.RawAttribute{Type: stun.AttrData, Value: data})
	if err != nil {
		return err
	}
	return t.write(m.Raw)
}

// Send sends data through a channel (section 12.5).
func (t *Relay) Send(channel uint16, data []byte) error {
	b := append(channelHead(make([]byte, 0, 4+len(data)+3), channel, len(data)), data...)
	if t.stream() {
		b = append(b, make([]byte, -len(data)&3)...) // over a stream, padded to four bytes
	}
	return t.write(b)
}

// channelHead appends the head of ChannelData (RFC 8656 section 12.4).
func channelHead(b []byte, channel uint16, size int) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, channel), uint16(size))
}

// write sends one message, or several over a stream; what takes longer than t.Stall is stuck.
func (t *Relay) write(b []byte) error {
	t.Conn.SetWriteDeadline(time.Now().Add(t.Stall))
	_, err := t.Conn.Write(b)
	return err
}

// Receive gives the next data from a peer: through a channel or, when that is
// 0, in a Data indication. What is neither is passed over. The data is valid
// until the next call.
func (t *Relay) Receive(deadline time.Time) (channel uint16, data []byte, err error) {
	for range maxPassed {
		b, err := t.read(deadline)
		if err != nil {
			return 0, nil, err
		}
		if b[0]>>6 == 1 {
			size := int(binary.BigEndian.Uint16(b[2:]))
			if len(b) >= 4+size {
				return binary.BigEndian.Uint16(b), b[4 : 4+size], nil
			}
			continue
		}
		m := new(stun.Message)
		if stun.Decode(b, m) != nil || m.Type != stun.NewType(stun.MethodData, stun.ClassIndication) {
			continue
		}
		if data, err = m.Get(stun.AttrData); err == nil {
			return 0, data, nil
		}
	}
	return 0, nil, fmt.Errorf("%d messages that carry no data: %w", maxPassed, ErrForeign)
}

// maxPassed is how many messages that belong to something else are passed over.
const maxPassed = 256

func (t *Relay) stream() bool {
	_, packets := t.Conn.(net.PacketConn)
	return !packets
}

// ask makes one authenticated request. The first one is sent bare, to get the
// challenge that the others are signed with.
func (t *Relay) ask(method stun.Method, attrs ...stun.Setter) (*stun.Message, error) {
	for fresh := false; ; fresh = true { // at the most once again, signed with what the challenge said
		m, err := t.exchange(stun.NewType(method, stun.ClassRequest), attrs)
		if err != nil {
			return nil, err
		}
		if m.Type.Class == stun.ClassSuccessResponse {
			if t.key != nil && t.key.Check(m) != nil {
				return nil, fmt.Errorf("the relay's answer: %w", errAltered)
			}
			return m, nil
		}
		var code stun.ErrorCodeAttribute
		if err := code.GetFrom(m); err != nil {
			return nil, fmt.Errorf("the relay's refusal: %w", ErrForeign)
		}
		if code.Code < 300 || code.Code > 699 { // RFC 8489 section 14.8
			return nil, fmt.Errorf("the relay refuses with %d, which is no code: %w", code.Code, errAltered)
		}
		if fresh && code.Code == stun.CodeStaleNonce {
			return nil, fmt.Errorf("the relay does not know the nonce that it has just given: %w", errAltered)
		}
		again := code.Code == stun.CodeUnauthorized && t.key == nil || code.Code == stun.CodeStaleNonce // neither when fresh
		if !again || t.learn(m) != nil {
			return nil, &TURNError{int(code.Code), string(code.Reason)}
		}
		t.challenge = t.last
	}
}

// learn keeps what a challenge says.
func (t *Relay) learn(m *stun.Message) error {
	if err := t.realm.GetFrom(m); err != nil && t.realm == nil {
		return err
	}
	if err := t.nonce.GetFrom(m); err != nil {
		return err
	}
	t.key = stun.NewLongTermIntegrity(t.Username, string(t.realm), t.Password)
	return nil
}

// exchange sends a request and waits for its answer. Over UDP it is sent again
// twice, unchanged (RFC 8489 section 6.2.1).
func (t *Relay) exchange(typ stun.MessageType, attrs []stun.Setter) (*stun.Message, error) {
	set := append([]stun.Setter{stun.TransactionID, typ}, attrs...)
	if t.key != nil {
		set = append(set, stun.NewUsername(t.Username), t.realm, t.nonce, t.key)
	}
	req, err := stun.Build(append(set, stun.Fingerprint)...)
	if err != nil {
		return nil, fmt.Errorf("turn %s: %w", typ.Method, err)
	}
	t.last = talk{asked: req.Raw}
	end := time.Now().Add(t.Stall)
	sends := 1
	if !t.stream() {
		sends = 3
	}
	for n := range sends {
		if err := t.send(req.Raw); err != nil {
			return nil, err
		}
		until := end
		if n+1 < sends {
			until = time.Now().Add(t.Stall / 8)
		}
		m, err := t.answer(req.TransactionID, until)
		if err == nil || n+1 == sends || FaultOf(err) != FaultTimeout {
			return m, err
		}
	}
	panic("unreachable: the last send returns")
}

func (t *Relay) send(b []byte) error {
	if t.Ahead != nil && t.key == nil && !t.stream() {
		first, err := t.Ahead()
		if err != nil {
			return err
		}
		if err = t.write(first); err != nil {
			return err
		}
	}
	return t.write(b)
}

// answer waits for the answer to a transaction.
func (t *Relay) answer(id [stun.TransactionIDSize]byte, deadline time.Time) (*stun.Message, error) {
	for range maxPassed {
		b, err := t.read(deadline)
		if err != nil {
			return nil, err
		}
		m := new(stun.Message)
		if b[0] < 4 && stun.Decode(b, m) == nil && m.TransactionID == id {
			t.last.heard = bytes.Clone(b)
			if m.Contains(stun.AttrFingerprint) && stun.Fingerprint.Check(m) != nil {
				return nil, fmt.Errorf("the relay's answer: %w", errAltered)
			}
			return m, nil
		}
	}
	return nil, fmt.Errorf("%d messages that answer nothing: %w", maxPassed, ErrForeign)
}

// said is the record of the challenge and, where something went wrong, of the
// last exchange.
func (t *Relay) said(failed bool) *wire.Said {
	last := talk{}
	if failed && !bytes.Equal(t.last.asked, t.challenge.asked) {
		last = t.last
	}
	return STUNSaid([][]byte{t.challenge.asked, last.asked}, [][]byte{t.challenge.heard, last.heard})
}

var errRelayFrame = errors.New("neither STUN nor a channel's data")

// read gives the next whole message, STUN or ChannelData.
func (t *Relay) read(deadline time.Time) ([]byte, error) {
	t.Conn.SetReadDeadline(deadline)
	if !t.stream() {
		for range maxPassed {
			n, err := t.Conn.Read(t.buf[:])
			if err != nil {
				return nil, err
			}
			if n >= 4 {
				return t.buf[:n], nil
			}
		}
		return nil, errRelayFrame
	}
	if t.r == nil {
		t.r = bufio.NewReaderSize(t.Conn, 64<<10)
	}
	if _, err := io.ReadFull(t.r, t.buf[:4]); err != nil {
		return nil, err
	}
	size := int(binary.BigEndian.Uint16(t.buf[2:]))
	switch {
	case t.buf[0] < 4:
		size += 20
	case t.buf[0]>>6 == 1: // channels of RFC 5766 too, 0x4000 to 0x7FFF
		size = 4 + (size+3)&^3
	default:
		return nil, fmt.Errorf("%x: %w", t.buf[:4], errRelayFrame)
	}
	if size > len(t.buf) {
		return nil, fmt.Errorf("%d bytes in one message: %w", size, errRelayFrame)
	}
	if _, err := io.ReadFull(t.r, t.buf[4:size]); err != nil {
		return nil, err
	}
	return t.buf[:size], nil
}

// addressIn reads an XOR-ed address (RFC 8489 section 14.2).
func addressIn(m *stun.Message, attr stun.AttrType) (netip.AddrPort, error) {
	var a stun.XORMappedAddress
	if err := a.GetFromAs(m, attr); err != nil {
		return netip.AddrPort{}, fmt.Errorf("%s: %w", attr, err)
	}
	addr, ok := netip.AddrFromSlice(a.IP)
	if !ok || a.Port < 0 || a.Port > 65535 {
		return netip.AddrPort{}, fmt.Errorf("%s of wrong size", attr)
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(a.Port)), nil
}

// xorPeer is an XOR-PEER-ADDRESS (RFC 8656 section 18.3).
type xorPeer netip.AddrPort

// AddTo is stun.Setter.
func (p xorPeer) AddTo(m *stun.Message) error {
	a := net.UDPAddrFromAddrPort(netip.AddrPort(p))
	return stun.XORMappedAddress{IP: a.IP, Port: a.Port}.AddToAs(m, stun.AttrXORPeerAddress)
}

// Echo is the peer inside the TURN service: it answers a session's own request
// with a reply of the same length, and nothing else.
func Echo(p []byte, k *wire.Keys, from netip.AddrPort, now time.Time) []byte {
	m, err := wire.Parse(p, k)
	if err != nil || m.Kind != wire.Request {
		return nil
	}
	m.Kind, m.Seen, m.Time = wire.Reply, from, now
	return m.Append(nil, k)
}
