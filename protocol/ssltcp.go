package protocol

import (
	"context"
	"encoding/hex"
	"net"

	"github.com/wallprobe/wallprobe/wire"
)

// sslTCP is what libjingle called "ssltcp", and WebRTC's relay clients spoke on
// 443: a ClientHello and a ServerHello that are always the same bytes and agree
// on nothing, and plain data after them. It passes whoever looks at the first
// bytes alone, and not whoever follows TLS in earnest.
var sslTCP = &Protocol{
	Doc:    "libjingle's pseudo-TLS: a fixed SSLv2-form ClientHello, a fixed ServerHello, then wallprobe's own message in clear",
	Claims: func(peek Peek, inTLS bool) bool { return !inTLS && pseudoTLS.claims(peek) },
	TCP: &Ends{
		Probe: func(ctx context.Context, c net.Conn, x Exchange) Result { return pseudoTLS.probe(ctx, c, x) },
		Serve: func(ctx context.Context, c net.Conn, far Far) []wire.Event { return pseudoTLS.serve(ctx, c, far) },
	},
}

// pseudoTLS has the bytes that WebRTC's rtc_base/socket_adapters.cc documents:
// a hello of 72 bytes in SSLv2's form for TLS 1.0 (RFC 2246 appendix E.1) with
// 15 cipher suites of 3 bytes and a challenge of 16, and one of 79 bytes for
// TLS 1.0 with a session id of 32 and the suite RSA with RC4 and MD5.
var pseudoTLS = prelude{
	stage: StageTLS,
	up: fromHex("80460103 01002d00 000010" +
		"010080 030080 0700c0 060040 020080 040080 000004 00feff 00000a 00fefe 000009 000064 000062 000003 000006" +
		"1f170ca62f0078fc46552eb18339f1ea"),
	down: fromHex("160301004a 02000046 0301" +
		"428545a727a95da0b3c5e753da482b3fc65aca89c15852a1783c5b174600853f" +
		"20 0ed306725b5b1b5f15ac13f988539d9be83d7b0c30326e384da2755741 6c345c" +
		"0004 00"),
}

// fromHex reads hexadecimal digits with spaces.
func fromHex(s string) []byte {
	digits := make([]byte, 0, len(s))
	for i := range len(s) {
		if s[i] != ' ' {
			digits = append(digits, s[i])
		}
	}
	b, err := hex.DecodeString(string(digits))
	if err != nil {
		panic(err) // only for constants of this package
	}
	return b
}
