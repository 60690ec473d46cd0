package wire

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// testKey is 00 01 02 … 1f.
func testKey() Key {
	var k Key
	for i := range k {
		k[i] = byte(i)
	}
	return k
}

const testKeyText = "wp1-aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dypwgdi"

func testSession() SessionID {
	return SessionID{0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf}
}

func TestKeyTextDoesNotChange(t *testing.T) {
	if diff := cmp.Diff(testKeyText, testKey().String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestKeysSurviveTheirText(t *testing.T) {
	for range 100 {
		k := NewKey()
		for _, text := range []string{k.String(), strings.ToUpper(k.String()), " " + k.String()[:9] + "\r\n\t" + k.String()[9:] + "\n"} {
			if got, err := ParseKey(text); got != k || err != nil {
				t.Fatalf("%q: %v, %v; want %v", text, got, err, k)
			}
		}
	}
}

func TestNewKeysAreNeverAlike(t *testing.T) {
	seen := make(map[Key]bool)
	for range 1000 {
		seen[NewKey()] = true
	}
	if len(seen) != 1000 || seen[Key{}] {
		t.Errorf("%d different keys of 1000", len(seen))
	}
}

func TestUnreadableKeysAreExplained(t *testing.T) {
	for text, want := range map[string]string{
		"":                               "not a wallprobe key: a key begins with wp1-; copy the whole line that the reflector printed",
		"secret":                         "not a wallprobe key: a key begins with wp1-; copy the whole line that the reflector printed",
		"wp2-" + testKeyText[4:]:         "not a wallprobe key: a key begins with wp1-; copy the whole line that the reflector printed",
		"wp1-":                           "not a wallprobe key: 0 characters follow wp1-, there should be 55; copy the whole line that the reflector printed",
		testKeyText[:len(testKeyText)-1]: "not a wallprobe key: 54 characters follow wp1-, there should be 55; copy the whole line that the reflector printed",
		testKeyText + "a":                "not a wallprobe key: 56 characters follow wp1-, there should be 55; copy the whole line that the reflector printed",
		testKeyText[:20] + "0" + testKeyText[21:]: "not a wallprobe key: a key holds only a-z and 2-7; copy the whole line that the reflector printed",
		testKeyText[:20] + "-" + testKeyText[21:]: "not a wallprobe key: a key holds only a-z and 2-7; copy the whole line that the reflector printed",
		testKeyText[:20] + "z" + testKeyText[21:]: "the key has a typing error: its checksum does not fit; copy the whole line that the reflector printed",
	} {
		k, err := ParseKey(text)
		if err == nil || k != (Key{}) {
			t.Errorf("%q: %v, %v; want an error and no key", text, k, err)
			continue
		}
		if diff := cmp.Diff(want, err.Error()); diff != "" {
			t.Errorf("%q (-want +got):\n%s", text, diff)
		}
	}
}

// The last character carries two bits of the key text and three of nothing.
func TestEveryTypingErrorIsFound(t *testing.T) {
	const alphabet = "abcdefghijklmnopqrstuvwxyz234567"
	last := len(testKeyText) - 1
	for i := len(keyPrefix); i <= last; i++ {
		for _, c := range []byte(alphabet) {
			if c == testKeyText[i] {
				continue
			}
			b := []byte(testKeyText)
			b[i] = c
			if k, err := ParseKey(string(b)); err == nil && (i != last || k != testKey()) {
				t.Errorf("%q at %d is taken for %v", c, i, k)
			}
		}
		if i < last && testKeyText[i] != testKeyText[i+1] {
			b := []byte(testKeyText)
			b[i], b[i+1] = b[i+1], b[i]
			if _, err := ParseKey(string(b)); err == nil {
				t.Errorf("characters %d and %d may change places unseen", i, i+1)
			}
		}
	}
}

func TestIdentifiersSurviveTheirText(t *testing.T) {
	type both struct {
		Session SessionID
		Nonce   Nonce
	}
	want := both{testSession(), Nonce{1, 2, 15: 0xff}}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	text := `{"Session":"a0a1a2a3a4a5a6a7a8a9aaabacadaeaf","Nonce":"010200000000000000000000000000ff"}`
	if diff := cmp.Diff(text, string(b)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	var got both
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestUnreadableIdentifiersAreExplained(t *testing.T) {
	var id SessionID
	var n Nonce
	for _, c := range []struct {
		read func([]byte) error
		text string
		want string
	}{
		{id.UnmarshalText, "", `session id "": want 32 hexadecimal digits`},
		{id.UnmarshalText, "a0", `session id "a0": want 32 hexadecimal digits`},
		{id.UnmarshalText, strings.Repeat("zz", 16), "encoding/hex: invalid byte: U+007A 'z'"},
		{n.UnmarshalText, "a0", `nonce "a0": want 32 hexadecimal digits`},
		{n.UnmarshalText, strings.Repeat("a0", 15) + "a-", "encoding/hex: invalid byte: U+002D '-'"},
	} {
		err := c.read([]byte(c.text))
		if err == nil {
			t.Errorf("%q is read", c.text)
			continue
		}
		if diff := cmp.Diff(c.want, err.Error()); diff != "" {
			t.Errorf("%q (-want +got):\n%s", c.text, diff)
		}
	}
}

func TestSessionKeysHangOnKeySessionAndNonce(t *testing.T) {
	seen := make(map[string]string)
	other := testKey()
	other[31] ^= 1
	for name, k := range map[string]Keys{
		"this":            Derive(testKey(), testSession(), Nonce{}),
		"another key":     Derive(other, testSession(), Nonce{}),
		"another session": Derive(testKey(), SessionID{1}, Nonce{}),
		"another nonce":   Derive(testKey(), testSession(), Nonce{1}),
	} {
		for part, b := range map[string][]byte{"request": k.request.key, "reply": k.reply.key, "stream": k.stream} {
			if was, ok := seen[string(b)]; ok {
				t.Errorf("%s of %s is that of %s", part, name, was)
			}
			seen[string(b)] = part + " of " + name
		}
	}
	again := Derive(testKey(), testSession(), Nonce{})
	if _, ok := seen[string(again.request.key)]; !ok || !bytes.Equal(again.ID[:], []byte("\xa0\xa1\xa2\xa3\xa4\xa5\xa6\xa7\xa8\xa9\xaa\xab\xac\xad\xae\xaf")) {
		t.Error("both ends derive different keys")
	}
}

func TestTURNCredentialsAreDerivedAlikeAtBothEnds(t *testing.T) {
	made := time.Date(2026, 3, 14, 15, 9, 26, 535, time.UTC)
	user, pass := TURN(testKey(), testSession(), made)
	id, minute, ok := ParseTURN(user)
	want := []any{testSession(), made.Truncate(time.Minute).Unix(), true}
	if diff := cmp.Diff(want, []any{id, minute.Unix(), ok}); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
	if user2, pass2 := TURN(testKey(), id, minute); user2 != user || pass2 != pass || len(pass) != 24 {
		t.Errorf("%s %s at one end, %s %s at the other", user, pass, user2, pass2)
	}
	other := testKey()
	other[0] ^= 1
	for name, give := range map[string]func() (string, string){
		"another key":     func() (string, string) { return TURN(other, testSession(), made) },
		"another session": func() (string, string) { return TURN(testKey(), SessionID{}, made) },
		"another minute":  func() (string, string) { return TURN(testKey(), testSession(), made.Add(time.Minute)) },
	} {
		if _, p := give(); p == pass {
			t.Errorf("%s has the same password", name)
		}
	}
}

func TestTURNUserNamesFitTheirField(t *testing.T) {
	user, _ := TURN(testKey(), testSession(), time.Unix(1<<37, 0))
	if n := len(user + ":4294967295"); n > 508 || strings.ContainsAny(user, ": ") { // RFC 8489 section 14.3: under 509 bytes
		t.Errorf("%q with a label has %d bytes", user, n)
	}
}

func TestForeignTURNUserNamesAreNoSessions(t *testing.T) {
	good := "wp-" + testSession().String() + "-1b9a2c3"
	if _, _, ok := ParseTURN(good); !ok {
		t.Fatalf("%q must be good", good)
	}
	for _, name := range []string{
		"", "-", "--", "wp", "wp--", "wp-" + testSession().String(), good + "-", "xx" + good[2:], "WP" + good[2:],
		"wp-" + testSession().String()[1:] + "-1", "wp-" + strings.Repeat("g", 32) + "-1", "wp-" + testSession().String() + "-",
		"wp-" + testSession().String() + "-x", "wp-" + testSession().String() + "-+1", "wp-" + testSession().String() + "-1_0",
		"wp-" + testSession().String() + "-100000000", "wp-" + testSession().String() + "-ffffffffffffffff", "1700000000:user",
	} {
		if id, made, ok := ParseTURN(name); ok {
			t.Errorf("%q is session %s of %s", name, id, made)
		}
	}
}
