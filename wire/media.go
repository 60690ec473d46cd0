package wire

import (
	"fmt"
	"strings"
)

// Media is what one flow of media showed. Loss by direction needs both ends:
// Seen comes from the ledger, and LossUp and LossDown are empty without it.
// Jitter is RFC 3550's, in milliseconds.
type Media struct {
	Flow          string   `json:"flow"` // "audio" or "video"
	Sent          int      `json:"sent"`
	Seen          int      `json:"seen,omitempty"` // by the reflector
	Heard         int      `json:"heard"`
	LossUp        *float64 `json:"lossUp,omitempty"`   // share of the sent that was not seen there
	LossDown      *float64 `json:"lossDown,omitempty"` // share of the seen whose answer was not heard here
	JitterUp      float64  `json:"jitterUp_ms"`
	JitterDown    float64  `json:"jitterDown_ms"`
	ReorderedUp   int      `json:"reorderedUp,omitempty"`
	ReorderedDown int      `json:"reorderedDown,omitempty"`
}

// DescribeMedia says in a few words what flows showed, loss aside.
func DescribeMedia(flows []Media) string {
	var said []string
	for _, m := range flows {
		said = append(said, fmt.Sprintf("%s %d of %d", m.Flow, m.Heard, m.Sent))
	}
	var up, down float64
	var there, back int
	for _, m := range flows {
		up, down = max(up, m.JitterUp), max(down, m.JitterDown)
		there, back = there+m.ReorderedUp, back+m.ReorderedDown
	}
	text := fmt.Sprintf("%s datagrams answered, delay varies by %.1f ms there and %.1f ms back", strings.Join(said, ", "), up, down)
	if there+back > 0 {
		text += fmt.Sprintf(", %d out of order there and %d back", there, back)
	}
	return text
}
