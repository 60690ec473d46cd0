package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Keep keeps a part of a lab, until ctx ends, in the network namespace of this
// process: it makes of it what a [Join] asks for that finds its socket in dir,
// and runs programs there for those who ask, as the user who asks. There must
// be no link in it but the loopback: no machine that somebody works on may
// become a host of a lab, and nothing leads out of one.
func Keep(ctx context.Context, name, dir string) error {
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	for _, l := range links {
		if a := l.Attrs(); a.Flags&(net.FlagLoopback|net.FlagUp) == net.FlagUp {
			return fmt.Errorf("it takes the network over where it runs, and here is one already, with the link %s; start it in a container without any (network_mode: none)", a.Name)
		}
	}
	socket := socketOf(dir, name)
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	defer listener.Close()
	// Everybody in the lab may ask: there is nobody else.
	if err := os.Chmod(socket, 0o666); err != nil {
		return err
	}
	return new(keeper).accept(ctx, listener)
}

type keeper struct {
	mu        sync.Mutex // held while the host is changed
	wired     *World     // where this keeps the switches
	resolvers resolvers
}

func (k *keeper) accept(ctx context.Context, listener *net.UnixListener) error {
	var asked sync.WaitGroup
	defer func() {
		asked.Wait()
		_ = k.resolvers.stop()
	}()
	for {
		c, err := listener.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		asked.Go(func() {
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			k.serve(c)
		})
	}
}

// serve answers one request.
func (k *keeper) serve(c *net.UnixConn) {
	in, files, err := receive(c)
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	lines := json.NewDecoder(in)
	var q request
	if err == nil {
		err = lines.Decode(&q)
	}
	var r reply
	var rights []byte
	switch {
	case err != nil:
	case q.Do == askNamespace:
		var own *os.File
		if own, err = os.Open(threadNamespace); err == nil {
			defer own.Close()
			rights = unix.UnixRights(int(own.Fd()))
		}
	case q.Do == askRun && len(q.Run) > 0 && len(files) == 4:
		r.Status, err = run(c, lines, q.Run, files)
	default:
		r.Ports, err = k.change(q, files)
		if q.Do == askWire {
			files = nil // it keeps them
		}
	}
	if err != nil {
		r.Error = err.Error()
		if errno, ok := errors.AsType[unix.Errno](err); ok {
			r.Errno = int(errno)
		}
	}
	line, err := json.Marshal(r)
	if err == nil {
		_, _, _ = c.WriteMsgUnix(append(line, '\n'), rights, nil) // who asked may be gone
	}
}

// receive reads the beginning of a message with the files that come with it.
func receive(c *net.UnixConn) (io.Reader, []*os.File, error) {
	buf, oob := make([]byte, 4096), make([]byte, 256)
	n, oobn, _, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, nil, err
	}
	var files []*os.File
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return nil, files, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return io.MultiReader(bytes.NewReader(buf[:n]), c), files, err
}

// change does what changes this part of the lab.
func (k *keeper) change(q request, files []*os.File) (ports []string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	w := &World{config: Config{MTU: q.MTU}, processes: map[*Process]bool{}}
	var own *Host
	for i, s := range q.Sites {
		h := &Host{site: s, world: w}
		if q.Do == askWire && i < len(files) {
			h.ns = &namespace{file: files[i]}
		}
		if s.Name == q.Name {
			own = h
		}
		w.hosts = append(w.hosts, h)
	}
	switch {
	case q.Do == askWire && len(files) == len(q.Sites):
		return k.wire(w)
	case q.Do == askLink && k.wired != nil:
		return nil, k.wired.addLink(context.Background(), q.Name, q.Number)
	case q.Do == askSettle:
		return nil, settle(q.Ports)
	case own == nil:
		return nil, fmt.Errorf("not a request: %q of %q", q.Do, q.Name)
	case q.Do == askClear:
		return nil, own.clear()
	case q.Do == askConfigure:
		return nil, k.configure(own, q)
	}
	return nil, fmt.Errorf("not a request: %q", q.Do)
}

// wire makes the switches anew. The namespaces of the hosts are kept for links
// that are asked for later.
func (k *keeper) wire(w *World) ([]string, error) {
	if k.wired != nil {
		_ = k.wired.release() // it fails only if they were closed before
	}
	k.wired = w
	if err := clearLinks(); err != nil {
		return nil, err
	}
	return w.wire()
}

// clear leaves nothing of an earlier lab: neither links, nor rules, nor the
// connections that a firewall knows.
func (h *Host) clear() error {
	if err := h.prepare(); err != nil {
		return err
	}
	if h.site.Forward {
		if _, err := h.NFT(context.Background(), nil, "flush", "ruleset"); err != nil {
			return err
		}
		// A kernel without such a table has no connections to forget.
		_ = netlink.ConntrackTableFlush(netlink.ConntrackTable)
	}
	return clearLinks()
}

// clearLinks removes what a lab has made: all wires and switches, with the routes
// over them, and the ranges that are the host's own.
func clearLinks() error {
	owned, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_LOCAL}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return err
	}
	for _, r := range owned {
		if r.Protocol == unix.RTPROT_KERNEL {
			continue // of an address, with which it goes
		}
		// It may have gone just now with a wire whose other end was removed.
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove %s: %w", r.Dst, err)
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	for _, l := range links {
		if !slices.Contains([]string{"veth", "macvlan", "bridge"}, l.Type()) {
			continue
		}
		// The other end of a wire may have taken it along.
		err := netlink.LinkDel(l)
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("remove %s: %w", l.Attrs().Name, err)
		}
	}
	return nil
}

// configure brings up the host with the links that were wired.
func (k *keeper) configure(own *Host, q request) error {
	if err := own.configure(own.world.hosts); err != nil {
		return err
	}
	_ = k.resolvers.stop()
	k.resolvers = resolvers{}
	if !own.site.DNS {
		return nil
	}
	for name, content := range etc {
		if err := rewrite("/etc/"+name, content); err != nil {
			return err
		}
	}
	k.resolvers.know(own.world.hosts, q.Names)
	return k.resolvers.listen()
}

// rewrite replaces what is in a file, which may be mounted, unless it is not there.
func rewrite(name, content string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_TRUNC, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	return errors.Join(err, f.Close())
}

// run runs a program as the user who asks, with the capabilities of the network
// and no others. When the connection ends, so does the program.
func run(c *net.UnixConn, lines *json.Decoder, argv []string, files []*os.File) (status int, err error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = files[0], files[1], files[2]
	// The folder need not be there for this process.
	cmd.Dir = fmt.Sprintf("/proc/self/fd/%d", files[3].Fd())
	who, err := peer(c)
	if err != nil {
		return 0, err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: who, AmbientCaps: []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW}}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	for _, f := range files {
		f.Close() // the program has its own, and others wait for the last to be closed
	}
	var listening sync.WaitGroup
	listening.Go(func() {
		for {
			var q request
			if lines.Decode(&q) != nil {
				_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) // it fails if all have ended
				return
			}
			_ = cmd.Process.Signal(syscall.Signal(q.Signal))
		}
	})
	status, err = exitStatus(cmd, cmd.Wait())
	_ = c.CloseRead()
	listening.Wait()
	return status, err
}

// peer is the user at the other end of a Unix socket, nil for this process's own.
func peer(c *net.UnixConn) (*syscall.Credential, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var u *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { u, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil {
		err = cerr
	}
	if err != nil {
		return nil, fmt.Errorf("who asks: %w", err)
	}
	if int(u.Uid) == os.Getuid() && int(u.Gid) == os.Getgid() {
		return nil, nil
	}
	return &syscall.Credential{Uid: u.Uid, Gid: u.Gid}, nil
}
