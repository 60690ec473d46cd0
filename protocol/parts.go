package protocol

// Parts of a probe that come after its first exchange, or go beside it, are
// probes of their own in the ledger, so that their counts stay apart: each has
// the probe's number plus one of these. A plan numbers fewer than 65,536 probes.
const (
	PartSize    = (iota + 1) << 16 // datagrams of larger sizes
	PartIdle                       // after silence
	MediaVideo                     // the video of media, whose audio is the probe itself
	partBeside                     // what passes on a port where QUIC does not
	PartMark                       // datagrams whose header fields are set on purpose
	PartName                       // comparisons: another server name,
	PartALPN                       // no ALPN,
	PartPlain                      // no TLS,
	PartPort                       // another port,
	PartAnother                    // and one more
)
