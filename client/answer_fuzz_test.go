package client

import (
	"testing"

	"github.com/pion/stun"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/wire"
)

// Whatever reaches a port that the reflector is asked to call, nothing but its
// proven call is answered, by no more bytes than came.
func FuzzAnswerToCall(f *testing.F) {
	session := wire.SessionID{1}
	keys := wire.Derive(wire.Key{1}, session, wire.Nonce{2})
	m := wire.Message{Kind: wire.Call, Port: 7, Session: session, Probe: 3, Size: wire.MessageSize}
	f.Add(m.Append(nil, &keys))
	m.Kind = wire.Reply
	f.Add(m.Append(nil, &keys))
	f.Add([]byte("no message"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var d doors
		reply := d.answer(b, 7, &keys)
		call, err := wire.Parse(b, &keys)
		if proven := err == nil && call.Kind == wire.Call; proven != (reply != nil) || proven != (d.arrived(call.Probe, 7) == 1) || len(reply) > len(b) {
			t.Errorf("%x: answered %x, %v arrived; %v", b, reply, d.calls, err)
		}
		if reply == nil {
			return
		}
		if got, err := wire.Parse(reply, &keys); err != nil || got.Kind != wire.Request || got.Probe != call.Probe || got.Port != call.Port {
			t.Errorf("%+v was answered %+v, %v", call, got, err)
		}
	})
}

// No answer to a Binding is believed without the session's password and the
// transaction of a request.
func FuzzBindingAnswer(f *testing.F) {
	const password = "secret"
	id := [12]byte{1, 2, 3}
	b := &binder{"user", password, "1", map[[12]byte]int{id: 2}}
	answer := func(password string, class stun.MessageClass) []byte {
		return stun.MustBuild(stun.NewTransactionIDSetter(id), stun.NewType(stun.MethodBinding, class),
			&stun.XORMappedAddress{IP: []byte{192, 0, 2, 7}, Port: 9}, stun.NewShortTermIntegrity(password), stun.Fingerprint).Raw
	}
	good := answer(password, stun.ClassSuccessResponse)
	f.Add(good)
	f.Add(answer("another", stun.ClassSuccessResponse))
	f.Add(answer(password, stun.ClassErrorResponse))
	f.Add(good[:40])
	f.Fuzz(func(t *testing.T, msg []byte) {
		attempt, mapped, ok := b.check(msg)
		if !ok {
			return
		}
		m := new(stun.Message)
		if err := stun.Decode(msg, m); err != nil || m.TransactionID != id || attempt != 2 || !mapped.IsValid() || m.Type != stun.BindingSuccess {
			t.Fatalf("%x is believed: attempt %d, %v, %v", msg, attempt, mapped, err)
		}
		if err := stun.NewShortTermIntegrity(password).Check(m); err != nil {
			t.Errorf("%x is believed: %v", msg, err)
		}
		if again, err := protocol.ParseBinding(msg, password+"x", id); err == nil {
			t.Errorf("%x is believed by another: %v", msg, again)
		}
	})
}
