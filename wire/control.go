package wire

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"time"

	"github.com/wallprobe/wallprobe/scenarios"
)

// Control is a small HTTP API: a POST of JSON to ControlPath+call on any TCP
// port of the reflector, in TLS or not. Both ways carry a MAC in MACHeader, so
// it may pass through proxies that look into it.
const (
	ControlPath = "/wallprobe/1/"
	MACHeader   = "Wallprobe-Mac"

	CallHello  = "hello"  // HelloRequest -> HelloReply
	CallLedger = "ledger" // LedgerRequest -> Ledger
	CallInward = "inward" // InwardRequest -> InwardReply
	CallICE    = "ice"    // ICERequest -> ICEReply
	CallBye    = "bye"    // ByeRequest -> ByeReply; the session ends soon

	// MaxControlBody bounds a request; replies hold ledgers and are bounded by them.
	MaxControlBody = 64 << 10
	MaxReplyBody   = 32 << 20
)

// HelloRequest opens a session, or attaches control to one that began without.
type HelloRequest struct {
	Session SessionID     `json:"session"`
	Time    time.Time     `json:"time"`
	Age     time.Duration `json:"age,omitempty"` // nanoseconds since the client began: SYNs before that are not its own
	Program string        `json:"program"`       // the client's version, for the log
}

// HelloReply tells the client what it needs to plan.
type HelloReply struct {
	Nonce    Nonce             `json:"nonce"`
	Program  string            `json:"program"`
	Source   netip.AddrPort    `json:"source"` // where the call came from, as it arrived
	TCP      scenarios.PortSet `json:"tcp"`
	UDP      scenarios.PortSet `json:"udp"`
	Unserved []Unserved        `json:"unserved,omitempty"`
	Witness  string            `json:"witness"`
	Inward   bool              `json:"inward"` // whether the operator allows calls back
	Issuer   string            `json:"issuer"` // SHA-256 of the reflector's own CA certificate
}

// LedgerRequest asks for the session's ledger.
type LedgerRequest struct {
	Session SessionID `json:"session"`
	Time    time.Time `json:"time"`
}

// ByeRequest tells that the client has the ledger and needs the session no more.
type ByeRequest struct {
	Session SessionID `json:"session"`
	Time    time.Time `json:"time"`
}

// ByeReply says that the session ends soon. It has no ledger: that was fetched.
type ByeReply struct{}

// InwardRequest asks the reflector to probe ports of the client's own address.
type InwardRequest struct {
	Session   SessionID           `json:"session"`
	Time      time.Time           `json:"time"`
	Probe     uint32              `json:"probe"`
	Transport scenarios.Transport `json:"transport"`
	Ports     scenarios.PortSet   `json:"ports"`
	Attempts  int                 `json:"attempts"`
}

// InwardReply says what the reflector met on its way in.
type InwardReply struct {
	Sent  int               `json:"sent"`           // attempts for each port, at the most
	Made  []Caught          `json:"made,omitempty"` // attempts made, of which the first that is answered is the last
	Open  scenarios.PortSet `json:"open"`           // ports whose answer came back and verified
	Up    scenarios.PortSet `json:"up,omitempty"`   // TCP: others at which a connection came up
	Fault []InwardFault     `json:"fault,omitempty"`
}

// InwardFault groups ports that met the same fault.
type InwardFault struct {
	Ports scenarios.PortSet `json:"ports"`
	Fault string            `json:"fault"`
}

// ICERequest asks for an ICE agent at the reflector (RFC 8445), the controlled
// one, that waits for this client's checks.
type ICERequest struct {
	Session SessionID         `json:"session"`
	Time    time.Time         `json:"time"`
	Probe   uint32            `json:"probe"`
	Addr    netip.Addr        `json:"addr"`  // of the reflector, as the client aims at it
	Ports   scenarios.PortSet `json:"ports"` // of which the agent draws its own
	Wait    time.Duration     `json:"wait"`  // nanoseconds until it gives up
	Ufrag   string            `json:"ufrag"`
	Pwd     string            `json:"pwd"`
	// Candidates are the client's, as RFC 8839 section 5.1 writes them. Only
	// those at addresses that the session came from are used, and only where the
	// operator allows calls back; the others are learnt from their checks.
	Candidates []string `json:"candidates,omitempty"`
}

// ICEReply is where the agent waits, at the address that was aimed at.
type ICEReply struct {
	Port  uint16 `json:"port"`
	Ufrag string `json:"ufrag"`
	Pwd   string `json:"pwd"`
}

// ControlError is the JSON body of a refused call.
type ControlError struct {
	Wallprobe int    `json:"wallprobe"` // always 1: tells our refusal from a middlebox's page
	Code      string `json:"code"`      // "key", "session", "limit", "request", "forbidden"
	Message   string `json:"message"`
}

func (e *ControlError) Error() string { return e.Message }

// ErrNotReflector means that whoever answered a control call does not know the key.
var ErrNotReflector = errors.New("the answer is not from the reflector")

// RequestMAC proves a control call.
func RequestMAC(key Key, call string, body []byte) string {
	return controlMAC(key, "request", call, "", body)
}

// ReplyMAC proves the answer to the call that carried requestMAC.
func ReplyMAC(key Key, call, requestMAC string, body []byte) string {
	return controlMAC(key, "reply", call, requestMAC, body)
}

func controlMAC(key Key, dir, call, prior string, body []byte) string {
	h := hmac.New(sha256.New, controlKey(key))
	fmt.Fprintf(h, "%s\n%s\n%s\n", dir, call, prior)
	h.Write(body)
	return hex.EncodeToString(h.Sum(nil))
}

// NewControl makes the HTTP request of a control call to base, for example "https://host:443".
func NewControl(key Key, base, call string, body any) (*http.Request, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("control call %s: %w", call, err)
	}
	req, err := http.NewRequest(http.MethodPost, base+ControlPath+call, bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("control call %s: %w", call, err)
	}
	req.Header.Set(MACHeader, RequestMAC(key, call, b))
	req.Header.Set("Content-Type", "application/json")
	return req, nil
}

// ReadControl proves and reads the answer to req. A refusal by the reflector is
// a *ControlError; ErrNotReflector means somebody else answered.
func ReadControl(key Key, req *http.Request, call string, resp *http.Response, into any) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, MaxReplyBody+1))
	if err != nil {
		return fmt.Errorf("control call %s: %w", call, err)
	}
	if resp.StatusCode != http.StatusOK {
		var e ControlError
		if json.Unmarshal(b, &e) == nil && e.Wallprobe == 1 {
			return &e
		}
		return fmt.Errorf("control call %s: %w: HTTP status %s", call, ErrNotReflector, resp.Status)
	}
	want := ReplyMAC(key, call, req.Header.Get(MACHeader), b)
	if !hmac.Equal([]byte(want), []byte(resp.Header.Get(MACHeader))) {
		return fmt.Errorf("control call %s: %w: its MAC does not verify", call, ErrNotReflector)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("control call %s: %w", call, err)
	}
	return nil
}
