// Package wire holds what both ends agree on, byte for byte: the shared key and
// what is derived from it, the message that probes carry, the control calls and
// the ledger.
//
// Nothing secret is ever sent. Both ends know one key; a session's keys are
// derived from it and from both ends' nonces, and every message and control
// call carries a MAC. A person in the middle can break a probe but not forge
// one, so breaking it becomes a finding.
package wire

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// A Key is the secret that the reflector and its clients share.
type Key [32]byte

const keyPrefix = "wp1-"

// wholeKey is what to do about a text that is not a key.
const wholeKey = "; copy the whole line that the reflector printed"

var keyText = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// NewKey makes a random key.
func NewKey() Key {
	var k Key
	rand.Read(k[:]) // never fails (crypto/rand, Go 1.24)
	return k
}

// String is the key's one-line text: "wp1-", the key and a two-byte checksum in base32.
func (k Key) String() string {
	sum := sha256.Sum256(k[:])
	return keyPrefix + keyText.EncodeToString(append(k[:], sum[:2]...))
}

// ParseKey reads the text form. White space and letter case do not matter.
func ParseKey(s string) (Key, error) {
	var k Key
	text, ok := strings.CutPrefix(strings.ToLower(strings.Join(strings.Fields(s), "")), keyPrefix)
	if !ok {
		return k, errors.New("not a wallprobe key: a key begins with " + keyPrefix + wholeKey)
	}
	want := keyText.EncodedLen(len(k) + 2)
	if len(text) != want {
		return k, fmt.Errorf("not a wallprobe key: %d characters follow %s, there should be %d%s", len(text), keyPrefix, want, wholeKey)
	}
	b, err := keyText.DecodeString(text)
	if err != nil {
		return k, errors.New("not a wallprobe key: a key holds only a-z and 2-7" + wholeKey)
	}
	copy(k[:], b)
	if sum := sha256.Sum256(k[:]); !hmac.Equal(sum[:2], b[len(k):]) {
		return Key{}, errors.New("the key has a typing error: its checksum does not fit" + wholeKey)
	}
	return k, nil
}

// A SessionID names a session; it is the client's nonce.
type SessionID [16]byte

// NewSessionID makes a random one.
func NewSessionID() SessionID {
	var id SessionID
	rand.Read(id[:])
	return id
}

func (id SessionID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText is the hexadecimal form.
func (id SessionID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads the hexadecimal form.
func (id *SessionID) UnmarshalText(b []byte) error {
	if len(b) != 2*len(id) {
		return fmt.Errorf("session id %q: want %d hexadecimal digits", b, 2*len(id))
	}
	_, err := hex.Decode(id[:], b)
	return err
}

// A Nonce is the reflector's part of a session's keys. The zero nonce belongs
// to sessions that began without control: their probes flow before, or
// without, any answer of the reflector.
type Nonce [16]byte

// Keys are what one session's messages are proven with.
type Keys struct {
	ID      SessionID
	request *mac   // client to reflector
	reply   *mac   // reflector to client
	stream  []byte // seeds of the data phase
}

// Derive makes a session's keys.
func Derive(key Key, id SessionID, nonce Nonce) Keys {
	salt := append(id[:], nonce[:]...)
	part := func(info string) []byte {
		b, err := hkdf.Key(sha256.New, key[:], salt, "wallprobe 1 "+info, 32)
		if err != nil {
			panic(err) // only for lengths that HKDF cannot give
		}
		return b
	}
	return Keys{
		ID:      id,
		request: newMAC(part("request")),
		reply:   newMAC(part("reply")),
		stream:  part("stream"),
	}
}

// TURN gives a session's short-lived STUN and TURN credentials. The user name
// holds the time they were made, so that the reflector can let them expire;
// they hang on no nonce, so that a session can use them before control is there.
func TURN(key Key, id SessionID, made time.Time) (username, password string) {
	username = fmt.Sprintf("wp-%s-%x", id, made.Unix()/60)
	b, err := hkdf.Key(sha256.New, key[:], nil, "wallprobe 1 turn "+username, 18)
	if err != nil {
		panic(err) // only for lengths that HKDF cannot give
	}
	return username, base64.RawURLEncoding.EncodeToString(b)
}

// ParseTURN reads a user name of TURN; the time is exact to the minute.
func ParseTURN(username string) (id SessionID, made time.Time, ok bool) {
	parts := strings.Split(username, "-")
	if len(parts) != 3 || parts[0] != "wp" || id.UnmarshalText([]byte(parts[1])) != nil {
		return id, made, false
	}
	minutes, err := strconv.ParseUint(parts[2], 16, 32)
	return id, time.Unix(int64(minutes)*60, 0), err == nil
}

// controlKey proves control calls; it depends on the shared key alone, so that
// the first call can be proven too.
func controlKey(key Key) []byte {
	b, err := hkdf.Key(sha256.New, key[:], nil, "wallprobe 1 control", 32)
	if err != nil {
		panic(err)
	}
	return b
}

// MarshalText is the hexadecimal form.
func (n Nonce) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, n[:]), nil }

// UnmarshalText reads the hexadecimal form.
func (n *Nonce) UnmarshalText(b []byte) error {
	if len(b) != 2*len(n) {
		return fmt.Errorf("nonce %q: want %d hexadecimal digits", b, 2*len(n))
	}
	_, err := hex.Decode(n[:], b)
	return err
}
