package middlebox

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"golang.org/x/crypto/ssh"
)

// An SSHInterceptor speaks SSH to both ends, as gateways do that look into it:
// it is a TCP box's Between. To the client it shows a host key of its own; the
// server hears the client's name, and each side's channels and requests go on
// to the other. It knows no way to log in but by a name alone, which is all
// that the reflector asks for.
type SSHInterceptor struct {
	Version string // what it says to both, RFC 4253 section 4.2; empty is the library's

	once sync.Once
	key  ssh.Signer
	err  error // of making it
}

// Fingerprint is that of the key that clients see.
func (i *SSHInterceptor) Fingerprint() (string, error) {
	if err := i.make(); err != nil {
		return "", err
	}
	return ssh.FingerprintSHA256(i.key.PublicKey()), nil
}

func (i *SSHInterceptor) make() error {
	i.once.Do(func() {
		var private ed25519.PrivateKey
		if _, private, i.err = ed25519.GenerateKey(rand.Reader); i.err == nil {
			i.key, i.err = ssh.NewSignerFromKey(private)
		}
	})
	if i.err != nil {
		return fmt.Errorf("ssh interceptor: %w", i.err)
	}
	return nil
}

// An sshSide is the box's end of one of the two connections.
type sshSide struct {
	ssh.Conn
	channels <-chan ssh.NewChannel
	requests <-chan *ssh.Request
}

// Between is TCP.Between.
func (i *SSHInterceptor) Between(client, server net.Conn) {
	if i.make() != nil {
		return // who opened the box asked for the fingerprint, or sees no key
	}
	near, far, err := i.shake(client, server)
	if far != nil {
		defer far.Close()
	}
	if err != nil {
		return
	}
	defer near.Close()
	var wg sync.WaitGroup
	for _, way := range [][2]*sshSide{{near, far}, {far, near}} {
		from, to := way[0], way[1]
		wg.Go(func() { passRequests(to, from.requests) })
		wg.Go(func() { passChannels(to, from.channels) })
		wg.Go(func() {
			_ = from.Wait()
			_ = to.Close()
		})
	}
	wg.Wait()
}

// shake lets the client in as the server does: under its own name, with the
// server's words to it.
func (i *SSHInterceptor) shake(client, server net.Conn) (near, far *sshSide, err error) {
	var pre ssh.ServerPreAuthConn
	config := &ssh.ServerConfig{NoClientAuth: true, ServerVersion: i.Version, PreAuthConnCallback: func(c ssh.ServerPreAuthConn) { pre = c }}
	config.NoClientAuthCallback = func(c ssh.ConnMetadata) (*ssh.Permissions, error) {
		if far != nil {
			return nil, errors.New("once is enough")
		}
		conn, channels, requests, err := ssh.NewClientConn(server, "", &ssh.ClientConfig{
			User: c.User(), ClientVersion: i.Version, BannerCallback: pre.SendAuthBanner,
			HostKeyCallback: ssh.InsecureIgnoreHostKey(), // #nosec: it believes whoever is there, as its clients believe it
		})
		if err == nil {
			far = &sshSide{conn, channels, requests}
		}
		return nil, err
	}
	config.AddHostKey(i.key)
	conn, channels, requests, err := ssh.NewServerConn(client, config)
	return &sshSide{conn, channels, requests}, far, err
}

// passRequests hands on what one side asks outside channels.
func passRequests(to *sshSide, requests <-chan *ssh.Request) {
	for q := range requests {
		ok, payload, err := to.SendRequest(q.Type, q.WantReply, q.Payload)
		if q.WantReply {
			_ = q.Reply(ok && err == nil, payload)
		}
	}
}

// passChannels opens for each channel of one side its like on the other.
func passChannels(to *sshSide, channels <-chan ssh.NewChannel) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for asked := range channels {
		there, thereAsks, err := to.OpenChannel(asked.ChannelType(), asked.ExtraData())
		if err != nil {
			_ = asked.Reject(ssh.ConnectionFailed, err.Error())
			continue
		}
		here, hereAsks, err := asked.Accept()
		if err != nil {
			_ = there.Close()
			continue
		}
		wg.Go(func() { passChannel(there, here, hereAsks) })
		wg.Go(func() { passChannel(here, there, thereAsks) })
	}
}

// passChannel hands on one direction of a channel until its side closes it.
func passChannel(to, from ssh.Channel, asks <-chan *ssh.Request) {
	var data sync.WaitGroup
	data.Go(func() {
		_, _ = io.Copy(to, from)
		_ = to.CloseWrite()
	})
	for q := range asks {
		ok, err := to.SendRequest(q.Type, q.WantReply, q.Payload)
		if q.WantReply {
			_ = q.Reply(ok && err == nil, nil)
		}
	}
	data.Wait()
	_ = to.Close()
}
