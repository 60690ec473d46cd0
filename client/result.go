// Package client is the near end: it plans probes from a scenario, sends them
// side by side, joins what both ends saw, and judges.
//
// The way of the data is plan (pure) -> probe (network) -> judge (pure) ->
// outcomes (pure). A blocked path is data, not an error.
package client

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// ResultSchema names the JSON form of a Result. It only ever grows.
const ResultSchema = "wallprobe/result/1"

// A Verdict is one of a closed list; see the constants for what each proves.
type Verdict string

// The verdicts.
const (
	Open        Verdict = "open"         // the exchange completed, unaltered, with our reflector
	Partial     Verdict = "partial"      // parts of it differ; the finding lists them
	RequestLost Verdict = "request-lost" // nothing came back and the reflector saw nothing
	ReplyLost   Verdict = "reply-lost"   // the reflector saw it and answered; the answer did not arrive
	Refused     Verdict = "refused"      // the reflector's own host refused: nothing listens there
	Rejected    Verdict = "rejected"     // a reset or ICMP error that the reflector never sent
	Cut         Verdict = "cut"          // it began and was then broken off or stalled
	Altered     Verdict = "altered"      // it arrived changed
	Impostor    Verdict = "impostor"     // somebody answered who is not the reflector
	Degraded    Verdict = "degraded"     // open, but worse than the scenario allows
	Silent      Verdict = "silent"       // nothing came back and no ledger could be had
	Unmeasured  Verdict = "unmeasured"   // could not be tried here; the finding says why
)

// Verdicts lists them all, best first.
var Verdicts = []Verdict{Open, Degraded, Partial, Cut, Altered, ReplyLost, RequestLost, Rejected, Refused, Impostor, Silent, Unmeasured}

// Passes tells whether an application could use the path.
func (v Verdict) Passes() bool { return v == Open || v == Degraded }

// A Result is one scenario measured from one near end.
type Result struct {
	Schema    string         `json:"schema"`
	Program   string         `json:"program,omitempty"`
	Scenario  string         `json:"scenario"`
	Version   int            `json:"version"` // of the scenario
	Role      string         `json:"role"`    // near end
	Family    string         `json:"family"`  // "ipv4" or "ipv6"
	Reflector netip.Addr     `json:"reflector"`
	Session   wire.SessionID `json:"session"`
	Offline   bool           `json:"offline,omitempty"` // probes were made before control was there
	Started   time.Time      `json:"started"`
	Seconds   float64        `json:"seconds"`
	Complete  bool           `json:"complete"`      // false while probing, and for ever after a kill
	Why       string         `json:"why,omitempty"` // why it is not complete
	Control   Control        `json:"control"`
	Firewall  *Firewall      `json:"firewall,omitempty"`
	Findings  []Finding      `json:"findings"`
	Outcomes  []Outcome      `json:"outcomes"`
	// Expectations are what files demanded of this result; see package expect.
	Expectations []Expectation `json:"expectations,omitempty"`
	// Ledgers are the far ends' evidence, whole.
	Ledgers map[Where]*wire.Ledger `json:"ledgers,omitempty"`
}

// Control tells how the two ends spoke with each other.
type Control struct {
	Via   string  `json:"via,omitempty"` // "443/tcp"; empty when no port let it through
	Tried []Tried `json:"tried,omitempty"`
	Proxy string  `json:"proxy,omitempty"` // URL of the proxy that it went through, without a password

	// Hellos are digests of the ClientHellos that control was tried with: a port
	// that it did not need in the end may be one of the paths.
	Hellos []string `json:"hellos,omitempty"`
	// Spares are the ports of connections that control began and heard nothing on,
	// mostly since it needed them no more.
	Spares []uint16 `json:"spares,omitempty"`
}

// Tried is one port that control was tried on.
type Tried struct {
	Port  uint16 `json:"port"`
	Error string `json:"error,omitempty"`
	// Proxy is what the proxy did; empty where control failed without it or behind it.
	Proxy ProxyFault `json:"proxy,omitempty"`
}

// Firewall is what stood in between, where the program made it itself.
type Firewall struct {
	Name  string   `json:"name"`
	Notes []string `json:"notes,omitempty"` // what a person has to know of the rules beside what they decided
	Rules []Rule   `json:"rules,omitempty"`
}

// Rule is one rule of the firewall.
type Rule struct {
	Family  string `json:"family,omitempty"` // "inet", "ip", "ip6", …
	Table   string `json:"table,omitempty"`
	Chain   string `json:"chain"`
	Index   int    `json:"index"`          // of the rule in its chain, from 1; 0 is the chain's policy
	File    string `json:"file,omitempty"` // where it stands in the user's rules; empty when that is not certain
	Line    int    `json:"line,omitempty"` // in File, from 1
	Text    string `json:"text"`
	Verdict string `json:"verdict,omitempty"` // "drop", "reject", "accept"
	Packets uint64 `json:"packets"`           // that it counted during the run
	Bytes   uint64 `json:"bytes"`
}

// A Decision is the rule by which packets like those of a finding go on or go
// no further, as a packet sent afterwards met it.
type Decision struct {
	Ports scenarios.PortSet `json:"ports,omitempty"` // for which it decides, where others decide for the rest
	Back  bool              `json:"back,omitempty"`  // the answers, not the requests
	Rule
}

// A Finding is the verdict on one path and transport, with both ends' evidence.
type Finding struct {
	Path       string              `json:"path"`
	Title      string              `json:"title"`
	Need       scenarios.Need      `json:"need"`
	Direction  scenarios.Direction `json:"direction"`
	Transport  scenarios.Transport `json:"transport,omitempty"`
	Ports      scenarios.PortSet   `json:"ports,omitempty"`
	LocalPorts scenarios.PortSet   `json:"localPorts,omitempty"`
	Protocol   string              `json:"protocol,omitempty"`
	Spoken     string              `json:"spoken,omitempty"`    // what was sent in the protocol's stead
	Imitation  string              `json:"imitation,omitempty"` // what of the protocol is not the real thing
	Verdict    Verdict             `json:"verdict"`
	Attempts   *Attempts           `json:"attempts,omitempty"`
	RTT        float64             `json:"rtt_ms,omitempty"`
	Why        string              `json:"why,omitempty"`   // the evidence in one line
	Pick       scenarios.Pick      `json:"pick,omitempty"`  // how the application uses a range
	Share      *float64            `json:"share,omitempty"` // of a range that passes, 0 to 1
	MaxLoss    float64             `json:"maxLoss,omitempty"`
	Parts      []Part              `json:"parts,omitempty"`
	DecidedBy  []Decision          `json:"decidedBy,omitempty"` // behind the lab's firewall; those of parts stand there
	// Unexplained: it is not open, and packets like its own pass the lab's firewall,
	// none of whose rules can have stopped others of it. Of parts it stands there.
	Unexplained bool `json:"unexplained,omitempty"`
	// Round is that of the measurement, from 0, where the lab measured it again
	// because it was unexplained; see Finding.Where.
	Round    int       `json:"round,omitempty"`
	Passage  []Passage `json:"passage,omitempty"` // header fields as they were sent and as they arrived
	Note     string    `json:"note,omitempty"`    // what this measurement cannot show
	Evidence Evidence  `json:"evidence"`
}

// Attempts counts what was tried, summed over all ports.
type Attempts struct {
	Sent     int `json:"sent"`
	Seen     int `json:"seen"` // by the reflector
	Answered int `json:"answered"`
}

// A Part is a run of ports, or one destination of several, that fared alike.
type Part struct {
	Ports     scenarios.PortSet `json:"ports"`
	Target    string            `json:"target,omitempty"` // name or address, where a path has several
	Verdict   Verdict           `json:"verdict"`
	Why       string            `json:"why,omitempty"`
	Attempts  *Attempts         `json:"attempts,omitempty"`
	DecidedBy []Decision        `json:"decidedBy,omitempty"`

	Unexplained bool `json:"unexplained,omitempty"` // as of a Finding
}

// Evidence is what the near end saw. The far end's is in Result.Ledger.
type Evidence struct {
	Near []Observation `json:"near,omitempty"`
}

// An Observation is what the near end saw of one port, or of a run of ports
// that fared alike. Numbers are per port. When Probed is set, only those ports
// were tried and the others of the run are inferred to fare like them.
type Observation struct {
	Probe    uint32            `json:"probe"`
	Target   string            `json:"target"` // address, or name and address
	Addr     netip.Addr        `json:"addr"`
	Ports    scenarios.PortSet `json:"ports"` // own ports when ByLocal
	Probed   scenarios.PortSet `json:"probed,omitempty"`
	ByLocal  bool              `json:"byLocal,omitempty"` // the probe varied its own port
	Aimed    uint16            `json:"aimed,omitempty"`   // with ByLocal: the port aimed at
	Sent     int               `json:"sent"`
	Answered int               `json:"answered"`
	Invalid  int               `json:"invalid,omitempty"` // answers that did not verify
	Strays   int               `json:"strays,omitempty"`  // datagrams that answer none of what was sent: anybody may have sent them
	Stage    string            `json:"stage,omitempty"`   // last stage begun, of package protocol
	Fault    string            `json:"fault,omitempty"`   // what ended it: of package protocol, "icmp", "unroutable", "interrupted" or an errno's text
	ICMP     *ICMP             `json:"icmp,omitempty"`
	Up       int64             `json:"up,omitempty"`      // bytes sent in the failing stage
	Down     int64             `json:"down,omitempty"`    // bytes received in it
	Seconds  float64           `json:"seconds,omitempty"` // until the fault
	RTT      float64           `json:"rtt_ms,omitempty"`
	TLS      *wire.TLSSeen     `json:"tls,omitempty"`
	Said     *wire.Said        `json:"said,omitempty"`    // the dialogue, where there is one in text
	Rate     float64           `json:"rate,omitempty"`    // of the data phase, bytes per second in the slower direction
	Pause    float64           `json:"pause,omitempty"`   // the longest in which no byte of it came here, seconds; the far end's events have the other direction's
	Silence  *Silence          `json:"silence,omitempty"` // how much of it a flow survives, where a run asked for that
	Media    []wire.Media      `json:"media,omitempty"`   // of media over UDP, each flow
	Flow     *wire.Flow        `json:"flow,omitempty"`    // of QUIC that failed
	Sample   string            `json:"sample,omitempty"`  // hexadecimal, of an answer that is not ours
	Step     string            `json:"step,omitempty"`    // what was being done in the stage that failed, where it has several
	Detail   string            `json:"detail,omitempty"`  // an error's text, a relayed address
	Seen     netip.AddrPort    `json:"seen,omitzero"`     // own address as the reflector saw it
	Local    netip.Addr        `json:"local,omitzero"`    // own address
	Inward   bool              `json:"inward,omitempty"`  // the reflector called, this end answered
	Arrived  int               `json:"arrived,omitempty"` // with Inward: calls that arrived here
	SYNs     int               `json:"syns,omitempty"`    // with Inward: calls whose SYN arrived here
	Blind    string            `json:"blind,omitempty"`   // with Inward, over TCP: why a SYN may have arrived here unseen

	Routed   bool           `json:"routed,omitempty"` // there is a router on the way
	From     netip.AddrPort `json:"from,omitzero"`    // own end of the connection
	TCP      *wire.TCPSeen  `json:"tcp,omitempty"`
	Mark     *Mark          `json:"mark,omitempty"`
	Controls []Comparison   `json:"controls,omitempty"` // after a failed handshake: the same with one thing changed
	ICE      *ICE           `json:"ice,omitempty"`      // the session, where the probe was one
}

// ICMP is an ICMP or ICMPv6 error.
type ICMP struct {
	Type uint8      `json:"type"`
	Code uint8      `json:"code"`
	From netip.Addr `json:"from"`
	Name string     `json:"name,omitempty"` // in nft words, "icmp admin-prohibited"
}

// An Outcome says whether something a person wants to work does.
type Outcome struct {
	ID       string `json:"id"`
	Title    string `json:"title"`
	Works    bool   `json:"works"`
	Optional bool   `json:"optional,omitempty"`
	Unknown  bool   `json:"unknown,omitempty"` // too little was measured to say
	Via      string `json:"via,omitempty"`     // the way that won
	Why      string `json:"why,omitempty"`     // what stops the ways that come before, or all of them
	Ways     []Way  `json:"ways"`
}

// A Way is one way of an outcome.
type Way struct {
	Title   string   `json:"title"`
	Works   bool     `json:"works"`
	Unknown bool     `json:"unknown,omitempty"`
	Stopped []string `json:"stopped,omitempty"` // paths that do not survive
}

// A State says what came of an expectation.
type State string

// The states.
const (
	Holds  State = "holds"
	Fails  State = "fails"
	Untold State = "untold" // too little was measured to say
)

// An Expectation is what a file demanded of a path or of an outcome, and what
// came of it.
type Expectation struct {
	File      string              `json:"file"`
	Line      int                 `json:"line"`
	Path      string              `json:"path,omitempty"`
	Outcome   string              `json:"outcome,omitempty"` // an id, where no path is meant
	Title     string              `json:"title"`
	Transport scenarios.Transport `json:"transport,omitempty"`
	Ports     scenarios.PortSet   `json:"ports,omitempty"`
	Own       bool                `json:"own,omitempty"` // they are the near end's own ports
	Expected  []string            `json:"expected"`      // verdicts; of an outcome "works", "works by way 2" (or one before), "fails"
	State     State               `json:"state"`
	Measured  string              `json:"measured,omitempty"` // of an outcome: "works by way 2"
	Why       string              `json:"why,omitempty"`
	Misses    []Part              `json:"misses,omitempty"` // exactly those ports that fared otherwise
}

// Sentence is the finding's verdict in words, with the exact ranges of a
// partial one: "open 40000, request-lost 40001-65535".
func (f *Finding) Sentence() string {
	if len(f.Parts) == 0 {
		return string(f.Verdict)
	}
	var said []string
	for _, p := range f.Parts {
		said = append(said, strings.Join(strings.Fields(fmt.Sprintf("%s %s %s", p.Verdict, p.Target, p.Ports)), " "))
	}
	return strings.Join(said, ", ")
}
