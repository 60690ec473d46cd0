package protocol

import "github.com/wallprobe/wallprobe/scenarios"

// elsewhere are the words for what has its ends in the client and in package
// relay. A test holds it to what For gives.
var elsewhere = map[string]*Protocol{
	Datagram:      {Doc: "wallprobe's own message in datagrams, small ones and one of the size that the application sends, answered by one no longer"},
	STUN:          {Doc: "STUN Binding (RFC 8489) with a session's short-lived credentials; the probe is in USERNAME"},
	TURN:          {Doc: "TURN (RFC 8656) with a session's short-lived credentials, after a Binding that names the probe"},
	TURNS:         {Doc: "TLS handshake, then TURN (RFC 8656) inside, after a Binding that names the probe"},
	"ice-session": {Doc: "an ICE session (RFC 8445) with the reflector's agent; the pair of candidates that won is named"},
}

// How real what goes over the wire is.
const (
	Real      = "real"      // the documented protocol itself
	Imitated  = "imitation" // the documented protocol as far as it is known
	StoodFor  = "stand-in"  // another protocol in its place
	Undefined = "own"       // wallprobe's own message: no protocol is documented
)

// A Wire is what goes over the wire for a scenario's protocol.
type Wire struct {
	Spoken string // name of what is spoken
	Kind   string // Real, Imitated, StoodFor or Undefined
	*Protocol
}

// Spoken tells what goes over the wire for a scenario's protocol name, which
// may be empty. bare tells that its ports are a range, which is surveyed with
// bare messages whatever the protocol is.
func Spoken(name string, t scenarios.Transport, bare bool) Wire {
	spoken, own := For(name, t)
	if bare {
		spoken, _ = For("", t)
		own = name == ""
	}
	w := Wire{Spoken: spoken, Protocol: Named(spoken)}
	if w.Protocol == nil {
		w.Protocol = elsewhere[spoken]
	}
	switch {
	case name == "":
		w.Kind = Undefined
	case !own:
		w.Kind = StoodFor
	case w.Imitation != "":
		w.Kind = Imitated
	default:
		w.Kind = Real
	}
	return w
}
