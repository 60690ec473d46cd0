package protocol

import (
	"context"
	"net"
	"time"

	"github.com/wallprobe/wallprobe/wire"
)

// ConnectWise Automate documents its ports and the order of its ways, but no
// byte of what it says there.

// automateRelay and automateRedirector are ways 2 and 3 of a tunnel: both ends
// connect to the server. Its header names the way.
var (
	automateRelay      = automateStream("relay", 2)
	automateRedirector = automateStream("redirector", 3)
)

func automateStream(name string, way byte) *Protocol {
	p := prelude{stage: StageBanner, up: []byte{'A', 'T', 'M', way, 0, 0, 0, 1}, down: []byte{'A', 'T', 'M', way, 0, 0, 0, 2}}
	return &Protocol{
		Doc:       "a header that names the " + name + ", then wallprobe's own message and data",
		Imitation: "the vendor does not document what its " + name + " says: the header is made up, and the data ends at the reflector instead of another machine",
		Claims:    func(peek Peek, inTLS bool) bool { return !inTLS && p.claims(peek) },
		TCP: &Ends{
			Probe: func(ctx context.Context, c net.Conn, x Exchange) Result { return p.probe(ctx, c, x) },
			Serve: func(ctx context.Context, c net.Conn, far Far) []wire.Event { return p.serve(ctx, c, far) },
		},
	}
}

// The datagrams of Automate. The reflector answers their plain messages on every
// port by itself.
var (
	automateMediator = automateDatagrams("what both ends of a tunnel tell the mediator: a datagram that is answered with the address it came from",
		"the vendor does not document how its mediator brings two ends together: one end's addresses are asked for, no hole is punched to another", beats{})
	automateTunnel = automateDatagrams("tunnel data between the ends",
		"the vendor does not document its tunnel, and the reflector stands in for the other end", beats{})
	automateTray = automateDatagrams("agent to system tray, small datagrams",
		"the vendor does not document what an agent and its tray say", beats{})
	automateWakeup = automateDatagrams("agent wakes agent, small datagrams",
		"the vendor does not document its wakeup call", beats{})
	automateHeartbeat = automateDatagrams("three small datagrams, each answered; 5 s apart with --idle, else faster",
		"the vendor does not document its heartbeat: 84 bytes are the least that prove anything, and only with --idle does it keep its rhythm of 5 s", beats{rhythm: heartbeat})
)

// heartbeat is how often an agent sends one.
const heartbeat = 5 * time.Second

func automateDatagrams(doc, imitation string, b beats) *Protocol {
	return &Protocol{Doc: doc, Imitation: imitation, Rhythm: b.rhythm, UDP: &Ends{Probe: b.probe}}
}
