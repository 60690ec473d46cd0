package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// joinWait is how long keepers may take to be there: they start when this does.
const joinWait = 30 * time.Second

// replyWait bounds every answer of a keeper but the end of a program.
const replyWait = 20 * time.Second

// Join makes the world that the Config describes in network namespaces that
// others have made, those of containers for one, and that [Keep] keeps with its
// sockets in dir. Such a world stands once at a time. Programs of the host run
// as this process's children if its network is the host's. What is said of
// [Build] is true of rules here too; keepers that cannot be used give a
// *[KeptError].
func Join(ctx context.Context, dir string, c Config) (*World, error) {
	return wiredFor(ctx, c, func(ctx context.Context, c Config) (*World, error) { return joinOnce(ctx, dir, c) })
}

func joinOnce(ctx context.Context, dir string, c Config) (*World, error) {
	sites, err := plan(c)
	if err != nil {
		return nil, fmt.Errorf("join lab: %w", err)
	}
	lock, err := lockFolder(dir)
	if err != nil {
		return nil, err
	}
	w := &World{config: c, asked: c.Wiring, processes: map[*Process]bool{}, lock: lock, keeper: socketOf(dir, switchName)}
	w.config.Wiring = c.Wiring.withDefaults()
	for _, s := range sites {
		w.hosts = append(w.hosts, &Host{site: s, world: w, keeper: socketOf(dir, s.Name)})
	}
	if err := w.join(ctx, sites); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// lockFolder keeps others from the hosts. Any user may do so: nothing is written.
func lockFolder(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, &KeptError{fmt.Sprintf("no hosts to measure on: %v", err)}
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, &KeptError{"somebody measures on these hosts just now, and they make one lab at a time; try again when that has ended"}
	}
	return f, nil
}

// join does what build does, by way of the keepers.
func (w *World) join(ctx context.Context, sites []site) error {
	spaces, err := w.namespaces(ctx)
	defer func() {
		for _, f := range spaces {
			f.Close()
		}
	}()
	if err != nil {
		return err
	}
	all := request{Sites: sites, Names: w.names(), MTU: w.config.MTU}
	if err := w.everywhere(ctx, askClear, all); err != nil {
		return err
	}
	all.Do = askWire
	wired, _, err := all.send(ctx, w.keeper, spaces...)
	if err != nil {
		return kept(switchName, err)
	}
	if err := w.everywhere(ctx, askConfigure, all); err != nil {
		return err
	}
	settle := request{Do: askSettle, Ports: wired.Ports}
	if _, _, err := settle.send(ctx, w.keeper); err != nil {
		return kept(switchName, err)
	}
	if err := w.everywhere(ctx, askSettle, request{}); err != nil {
		return err
	}
	if err := w.loadFar(ctx); err != nil {
		return err
	}
	return w.load(ctx, w.config.Firewall)
}

// everywhere asks the keepers of all hosts side by side.
func (w *World) everywhere(ctx context.Context, do string, q request) error {
	var g errgroup.Group
	for _, h := range w.hosts {
		q := q
		q.Do, q.Name = do, h.Name()
		if do == askSettle {
			q.Ports = h.ports()
		}
		g.Go(func() error {
			_, _, err := q.send(ctx, h.keeper)
			return kept(h.Name(), err)
		})
	}
	return g.Wait()
}

// namespaces are those of the hosts, in their order. Where one is this
// process's own, no keeper is needed to start programs there.
func (w *World) namespaces(ctx context.Context) ([]*os.File, error) {
	out := make([]*os.File, len(w.hosts))
	var g errgroup.Group
	for i, h := range w.hosts {
		g.Go(func() (err error) {
			out[i], err = firstAnswer(ctx, h)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err // what did come is closed when it is collected
	}
	var own, other unix.Stat_t
	if err := unix.Stat(threadNamespace, &own); err != nil {
		return out, err
	}
	for i, h := range w.hosts {
		err := unix.Fstat(int(out[i].Fd()), &other)
		h.here = err == nil && own.Ino == other.Ino && own.Dev == other.Dev
	}
	return out, nil
}

// firstAnswer asks a host for its namespace, and waits for it to be there.
func firstAnswer(ctx context.Context, h *Host) (*os.File, error) {
	deadline := time.Now().Add(joinWait)
	for {
		_, files, err := request{Do: askNamespace}.send(ctx, h.keeper)
		switch {
		case err == nil && len(files) == 1:
			return files[0], nil
		case err == nil:
			return nil, kept(h.Name(), errors.New("it hands out no network"))
		case !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ECONNREFUSED):
			return nil, kept(h.Name(), err)
		case time.Now().After(deadline):
			return nil, &KeptError{fmt.Sprintf("host %s is not there: nobody listens at %s; was it started, and what does its log say?", h.Name(), h.keeper)}
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func kept(host string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errNoAnswer):
		err = fmt.Errorf("%w; what does its log say?", err)
	}
	return &KeptError{fmt.Sprintf("%s: %v", host, err)}
}

var errNoAnswer = errors.New("it went away without an answer")

// send makes a request to the keeper at a socket and returns its reply with the
// files that come with it.
func (q request) send(ctx context.Context, socket string, with ...*os.File) (reply, []*os.File, error) {
	c, err := q.open(socket, with...)
	if err != nil {
		return reply{}, nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if err := c.SetDeadline(time.Now().Add(replyWait)); err != nil {
		return reply{}, nil, err
	}
	return readReply(c)
}

// open connects to a keeper and writes the request.
func (q request) open(socket string, with ...*os.File) (*net.UnixConn, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	var fds []int
	for _, f := range with {
		fds = append(fds, int(f.Fd()))
	}
	line, err := json.Marshal(q)
	if err == nil {
		var n int
		n, _, err = c.WriteMsgUnix(line, unix.UnixRights(fds...), nil)
		if err == nil && n < len(line) {
			_, err = c.Write(line[n:])
		}
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func readReply(c *net.UnixConn) (reply, []*os.File, error) {
	in, files, err := receive(c)
	if err != nil {
		return reply{}, nil, err
	}
	var r reply
	if json.NewDecoder(in).Decode(&r) != nil {
		return r, files, errNoAnswer
	}
	if r.Error != "" {
		return r, files, &keeperError{r}
	}
	return r, files, nil
}

// A keeperError is what went wrong elsewhere.
type keeperError struct{ reply }

func (e *keeperError) Error() string { return e.reply.Error }

func (e *keeperError) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return unix.Errno(e.Errno)
}

// Via runs a program by way of the keeper at a socket as if it were run here:
// with this process's standard files, folder and user; signals are passed on.
// It returns its exit status as [World.Exec] does.
func Via(socket string, argv []string) (exitCode int, err error) {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	defer signal.Stop(signals)
	folder, err := os.Open(".")
	if err != nil {
		return 0, err
	}
	defer folder.Close()
	c, err := request{Do: askRun, Run: argv}.open(socket, os.Stdin, os.Stdout, os.Stderr, folder)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		for {
			select {
			case s := <-signals:
				_ = json.NewEncoder(c).Encode(request{Signal: int(s.(unix.Signal))}) // it may have ended just now
			case <-ended:
				return
			}
		}
	}()
	r, _, err := readReply(c)
	return r.Status, err
}

// viaCommand is what runs a program on a host by way of its keeper.
const viaCommand = "via"

// detour makes a command run by way of a keeper.
func detour(cmd *exec.Cmd, socket string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	program, err := exec.LookPath(cmd.Path)
	if err == nil {
		program, err = filepath.Abs(program)
	}
	if err != nil {
		return err
	}
	cmd.Args = append([]string{self, "lab", viaCommand, "--", socket, program}, cmd.Args[1:]...)
	cmd.Path = self
	return nil
}
