package protocol

import (
	"context"
	"encoding/base64"
	"net"
)

// framedPath is where the imitated Control Center asks; its requests carry the
// token in front of the body instead of in a header.
const (
	framedPath  = "/SolutionCenter"
	framedStart = "POST " + framedPath
)

// controlCenter stands for the Control Center of ConnectWise Automate (CWA-9).
var controlCenter = &Protocol{
	Names:     true,
	Doc:       "HTTP POST of a framed binary body; the token and its answer are the first frame",
	Imitation: "the Control Center's protocol on 8484 is not documented; requests with an opaque framed body stand for it",
	Claims:    func(peek Peek, inTLS bool) bool { return !inTLS && kindOfHTTP(peek) == kindFramed },
	Patience:  httpTime,
	TCP:       &Ends{Probe: probeControlCenter, Serve: serveHTTP},
}

// probeControlCenter is the near end.
func probeControlCenter(ctx context.Context, c net.Conn, x Exchange) (r Result) {
	x.overHTTP(ctx, c, &r, func(h *httpConn) requests {
		return requests{x: x, r: &r, conn: h, base: x.base(c, "http", 80), send: newHTTP1(h, x.Stall).RoundTrip, framed: true}
	})
	return r
}

// framedText is a frame's message as a token is written.
func framedText(p []byte) string { return base64.RawURLEncoding.EncodeToString(p) }
