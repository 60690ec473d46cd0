package wire

import (
	"net/netip"
	"time"

	"github.com/wallprobe/wallprobe/scenarios"
)

// An Event is one arrival at the reflector and what became of it.
type Event struct {
	Time      time.Time           `json:"time"`
	Transport scenarios.Transport `json:"transport"`
	Remote    netip.AddrPort      `json:"remote"`           // where it came from, as it arrived
	Local     netip.AddrPort      `json:"local"`            // what it was aimed at, as it arrived
	Session   SessionID           `json:"session,omitzero"` // that the arrival claimed; proven when Answered
	Probe     uint32              `json:"probe,omitempty"`
	Attempt   uint16              `json:"attempt,omitempty"`
	Stage     string              `json:"stage"`            // how far it came: a stage of package protocol
	Fault     string              `json:"fault,omitempty"`  // what ended it early: "reset", "eof", "timeout", "altered", or an error's text
	Length    int                 `json:"length,omitempty"` // bytes of the datagram
	TTL       uint8               `json:"ttl,omitempty"`    // hop limit on arrival
	TOS       uint8               `json:"tos,omitempty"`    // traffic class on arrival, ECN bits included
	BytesIn   int64               `json:"bytesIn,omitempty"`
	BytesOut  int64               `json:"bytesOut,omitempty"`
	Pause     float64             `json:"pause,omitempty"`  // the longest in which none of BytesIn's data phase came, seconds
	Digest    string              `json:"digest,omitempty"` // SHA-256 of the bytes that could not be understood
	TCP       *TCPSeen            `json:"tcp,omitempty"`
	TLS       *TLSSeen            `json:"tls,omitempty"`
	Said      *Said               `json:"said,omitempty"`
	Answered  bool                `json:"answered,omitempty"`
	// Unfinished: the connection was still under way when this copy was made.
	Unfinished bool `json:"unfinished,omitempty"`
}

// TLSSeen is one end's view of a TLS handshake. Where the two ends' views
// differ, somebody in the middle spoke TLS to both.
type TLSSeen struct {
	ServerName  string   `json:"serverName,omitempty"`
	Version     string   `json:"version,omitempty"`
	ALPN        string   `json:"alpn,omitempty"`
	Certificate string   `json:"certificate,omitempty"` // SHA-256 of the leaf's DER
	Issuer      string   `json:"issuer,omitempty"`      // as the near end saw it
	HelloDigest string   `json:"helloDigest,omitempty"` // SHA-256 of the ClientHello record; QUIC's, which has none, is put into one
	Offered     []string `json:"offered,omitempty"`     // ALPN names in the ClientHello
	Versions    []string `json:"versions,omitempty"`    // of TLS in the ClientHello, best first
	// HelloName is the server name in the ClientHello as it went out or came in.
	HelloName string        `json:"helloName,omitempty"`
	Chain     []Certificate `json:"chain,omitempty"` // as sent or as seen, leaf first; at most MaxChain
}

// A Certificate is one of a chain.
type Certificate struct {
	Digest  string `json:"digest"` // SHA-256 of the DER
	Subject string `json:"subject,omitempty"`
	Issuer  string `json:"issuer,omitempty"`
}

// MaxChain bounds the certificates that are kept of a chain.
const MaxChain = 8

// Said is one end's record of a dialogue in text: the lines, in order, that it
// sent and that it heard, each without its line end. Where what one end sent is
// not what the other heard, somebody in the middle rewrote it. Both ends stop
// recording at MaxSaid lines of a direction and cut a line at MaxSaidLine bytes.
type Said struct {
	Sent  []string `json:"sent,omitempty"`
	Heard []string `json:"heard,omitempty"`
}

// The bounds of Said.
const (
	MaxSaid     = 32
	MaxSaidLine = 256
)

// A Count says that for each of Ports, Seen attempts arrived and Answered of
// them were answered.
type Count struct {
	Ports    scenarios.PortSet `json:"ports"`
	Seen     int               `json:"seen"`
	Answered int               `json:"answered"`
}

// Caught says that SYNs to Ports were witnessed below the sockets, N for each.
type Caught struct {
	Ports scenarios.PortSet `json:"ports"`
	N     int               `json:"n"`
}

// ProbeRecord is what the reflector has of one probe.
type ProbeRecord struct {
	Probe  uint32  `json:"probe"`
	Counts []Count `json:"counts,omitempty"` // datagrams by aimed-at port; for local-port probes by source port
	Events []Event `json:"events,omitempty"` // the first few, in order of arrival
	More   int     `json:"more,omitempty"`   // events beyond those
}

// A Ledger is what the reflector saw and did for one session.
type Ledger struct {
	Session  SessionID         `json:"session"`
	Started  time.Time         `json:"started"`
	Taken    time.Time         `json:"taken"` // when this copy was made
	Sources  []netip.Addr      `json:"sources,omitempty"`
	Probes   []ProbeRecord     `json:"probes,omitempty"`
	Strays   []Event           `json:"strays,omitempty"` // from the session's addresses, without a token that verifies
	SYNs     []Caught          `json:"syns,omitempty"`   // from the session's addresses
	Flows    []Flow            `json:"flows,omitempty"`  // of what may be QUIC, from the session's addresses
	Witness  string            `json:"witness"`          // "packet", "half-open", or "" when SYNs cannot be seen here
	Missed   uint64            `json:"missed,omitempty"` // SYNs that the witness lost
	TCP      scenarios.PortSet `json:"tcp"`              // ports served
	UDP      scenarios.PortSet `json:"udp"`
	Unserved []Unserved        `json:"unserved,omitempty"`
}

// Unserved names ports that were asked for but are not served, and why.
type Unserved struct {
	Transport scenarios.Transport `json:"transport"`
	Ports     scenarios.PortSet   `json:"ports"`
	Reason    string              `json:"reason"`
}

// A JournalLine is one line of a reflector's journal; one of its fields is set.
type JournalLine struct {
	Ledger    *Ledger    `json:"ledger,omitempty"`
	Unclaimed *Unclaimed `json:"unclaimed,omitempty"`
}

// Unclaimed is what a reflector saw without knowing whose it was.
type Unclaimed struct {
	Started  time.Time         `json:"started"` // when the reflector began to listen
	Taken    time.Time         `json:"taken"`
	Witness  string            `json:"witness"`
	Strays   []Event           `json:"strays,omitempty"`
	SYNs     []SourceSYNs      `json:"syns,omitempty"`
	TCP      scenarios.PortSet `json:"tcp"`
	UDP      scenarios.PortSet `json:"udp"`
	Unserved []Unserved        `json:"unserved,omitempty"`
}

// SourceSYNs are the SYNs of one address.
type SourceSYNs struct {
	Source netip.Addr `json:"source"`
	First  time.Time  `json:"first"`
	Last   time.Time  `json:"last"`
	SYNs   []Caught   `json:"syns"`
}
