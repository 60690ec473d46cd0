package protocol

import (
	"context"
	"net"
	"strings"
	"time"
)

// TLS in FTP (RFC 4217), at the far end alone: real clients ask for it by
// themselves, and a firewall's helper reads nothing of what is said inside. Our
// own near end stays in clear, which is what helpers are there for.

// ftpFeatures is the answer to FEAT (RFC 2389), which clients may ask for before
// they log in: AUTH TLS comes first of all.
var ftpFeatures = []string{"211-Features:", " AUTH TLS", " PBSZ", " PROT", " EPRT", " EPSV", " SIZE", " REST STREAM", "211 End"}

func (f *ftpFar) features() error {
	for _, line := range ftpFeatures {
		if err := f.say("%s", line); err != nil {
			return err
		}
	}
	return nil
}

// ftpSecurity are the commands of RFC 2228 that RFC 4217 section 4 has.
var ftpSecurity = map[string]func(*ftpFar, string) error{
	"AUTH": (*ftpFar).authenticate,
	"PBSZ": (*ftpFar).size,
	"PROT": (*ftpFar).level,
}

func (f *ftpFar) authenticate(mechanism string) error {
	mechanism = strings.ToUpper(mechanism)
	switch {
	case mechanism != "TLS" && mechanism != "TLS-C":
		return f.say("504 AUTH TLS is what is known here")
	case f.tls != nil || f.keys != nil:
		return f.say("503 AUTH comes before the login, and once")
	case f.r.Buffered() > 0:
		return f.over(f.Conn) // says what is wrong with that
	}
	if err := f.say("234 go on in TLS"); err != nil {
		return err
	}
	f.e.Stage = StageTLS
	tc, seen, err := acceptTLS(f.ctx, f.Conn, f.far, nil)
	f.e.TLS = seen
	if err != nil {
		return err
	}
	f.tls, f.e.Stage = tc, StageLogin
	return f.over(tc)
}

// size agrees on no buffer, whatever is asked for: TLS has none (RFC 4217
// section 8).
func (f *ftpFar) size(string) error {
	if f.tls == nil {
		return f.say("503 AUTH comes first")
	}
	f.sized = true
	return f.say("200 PBSZ=0")
}

func (f *ftpFar) level(arg string) error {
	private := strings.EqualFold(arg, "P")
	switch {
	case !f.sized:
		return f.say("503 PBSZ comes first")
	case !private && !strings.EqualFold(arg, "C"):
		return f.say("536 P and C are the levels of TLS")
	}
	f.private = private
	return f.say("200 PROT as you say")
}

// protect moves a file over a data connection, inside TLS after PROT P.
func (f *ftpFar) protect(ctx context.Context, c *metered, move func(net.Conn) error) error {
	if !f.private {
		return move(c)
	}
	tc, _, err := acceptTLS(ctx, c, f.far, nil)
	if err != nil {
		return err
	}
	if err = move(tc); err == nil {
		c.SetWriteDeadline(time.Now().Add(farStall))
		err = tc.CloseWrite() // else the file might have been cut on the way
	}
	return err
}

// closeTLS takes leave of a control connection in TLS.
func (f *ftpFar) closeTLS() {
	if f.tls != nil {
		f.tls.SetWriteDeadline(time.Now().Add(time.Second))
		f.tls.CloseWrite()
	}
}
