package protocol

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"

	pkgsftp "github.com/pkg/sftp"

	"github.com/wallprobe/wallprobe/wire"
)

// What the far end holds of one open file: clients have some dozen requests
// under way at one time, which arrive and are served a little out of order.
const (
	readWindow  = 4 << 20 // bytes behind the furthest that was read
	writeWindow = 4 << 20 // bytes beyond the first gap
	maxRewinds  = 8
)

// sftpFiles are the files of one session.
type sftpFiles struct{ far *sftpFar }

// broken is deferred in what pkg/sftp calls, from goroutines of its own: a panic
// there is that request's error, and ends the connection.
func (f *sftpFar) broken(err *error) {
	if v := recover(); v != nil {
		*err = errors.New("an error in wallprobe")
		f.panics.note(v)
		f.end()
	}
}

// opened counts an open file.
func (s *sftpFiles) opened() error {
	s.far.mu.Lock()
	defer s.far.mu.Unlock()
	if s.far.open >= maxOpen {
		return errors.New("too many open files")
	}
	s.far.open++
	return nil
}

func (s *sftpFiles) closed() {
	s.far.mu.Lock()
	defer s.far.mu.Unlock()
	s.far.open--
}

// Fileread is pkg/sftp's FileReader.
func (s *sftpFiles) Fileread(q *pkgsftp.Request) (_ io.ReaderAt, err error) {
	defer s.far.broken(&err)
	n, ok := fileSize(q.Filepath)
	if !ok {
		return nil, os.ErrNotExist
	}
	if err := s.opened(); err != nil {
		return nil, err
	}
	return &keyedReader{files: s, size: int64(n)}, nil
}

// Filewrite is pkg/sftp's FileWriter.
func (s *sftpFiles) Filewrite(q *pkgsftp.Request) (_ io.WriterAt, err error) {
	defer s.far.broken(&err)
	if err := s.opened(); err != nil {
		return nil, err
	}
	w := &keyedWriter{files: s, size: -1, sum: io.Discard, pace: newPace()}
	if n, ok := fileSize(q.Filepath); ok {
		f := s.far
		w.size = int64(n)
		w.sum = &compared{want: f.keys.NewStream(wire.Request, f.m.Probe, f.m.Attempt)}
	}
	return w, nil
}

// Filecmd is pkg/sftp's FileCmder: times and modes are taken and forgotten.
func (s *sftpFiles) Filecmd(q *pkgsftp.Request) (err error) {
	defer s.far.broken(&err)
	if q.Method == "Setstat" {
		return nil
	}
	return pkgsftp.ErrSSHFxOpUnsupported
}

// Filelist is pkg/sftp's FileLister.
func (s *sftpFiles) Filelist(q *pkgsftp.Request) (_ pkgsftp.ListerAt, err error) {
	defer s.far.broken(&err)
	switch n, ok := fileSize(q.Filepath); {
	case q.Method == "List" && q.Filepath == "/":
		var all infos
		for _, n := range listed {
			all = append(all, info{fileName(n), int64(n)})
		}
		return all, nil
	case q.Method == "Stat" && q.Filepath == "/":
		return infos{info{"/", -1}}, nil
	case q.Method == "Stat" && ok:
		return infos{info{fileName(n), int64(n)}}, nil
	}
	return nil, os.ErrNotExist
}

// infos is pkg/sftp's ListerAt.
type infos []info

// ListAt fills in what is left from an offset on.
func (l infos) ListAt(to []os.FileInfo, from int64) (int, error) {
	if from >= int64(len(l)) {
		return 0, io.EOF
	}
	n := 0
	for ; n < len(to) && int(from)+n < len(l); n++ {
		to[n] = l[int(from)+n]
	}
	if n < len(to) {
		return n, io.EOF
	}
	return n, nil
}

// An info describes a file or, with a size of -1, the one directory.
type info struct {
	name string
	size int64
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return max(i.size, 0) }
func (i info) ModTime() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) }
func (i info) IsDir() bool        { return i.size < 0 }
func (i info) Sys() any           { return nil }

func (i info) Mode() fs.FileMode {
	if i.IsDir() {
		return fs.ModeDir | 0o755
	}
	return 0o644
}

// A keyedReader makes a file as it is read, mostly forwards.
type keyedReader struct {
	files   *sftpFiles
	size    int64
	mu      sync.Mutex
	stream  *wire.Stream
	window  []byte // the bytes before pos, as far as they are kept
	pos     int64
	rewinds int
}

// ReadAt is io.ReaderAt, but gives at most half a window.
func (r *keyedReader) ReadAt(p []byte, at int64) (_ int, err error) {
	defer r.files.far.broken(&err)
	if at < 0 || at >= r.size {
		return 0, io.EOF
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	n := min(int64(len(p)), r.size-at, readWindow/2)
	if r.stream == nil || at < r.pos-int64(len(r.window)) {
		if r.rewinds++; r.rewinds > maxRewinds {
			return 0, errors.New("read backwards too often")
		}
		f := r.files.far
		r.stream, r.pos, r.window = f.keys.NewStream(wire.Reply, f.m.Probe, f.m.Attempt), 0, r.window[:0]
	}
	for r.pos < at+n {
		r.more(min(at+n-r.pos, readWindow/2))
	}
	from := int64(len(r.window)) - (r.pos - at)
	copy(p, r.window[from:from+n])
	f := r.files.far
	f.mu.Lock()
	f.e.BytesOut += n
	f.mu.Unlock()
	return int(n), nil
}

// more makes the next n bytes.
func (r *keyedReader) more(n int64) {
	if r.window == nil {
		r.window = make([]byte, 0, min(r.size, readWindow*3/2))
	}
	if len(r.window)+int(n) > cap(r.window) {
		kept := copy(r.window, r.window[len(r.window)-readWindow:])
		r.window = r.window[:kept]
	}
	have := len(r.window)
	r.window = r.window[:have+int(n)]
	r.stream.Read(r.window[have:])
	r.pos += n
}

// Close is io.Closer.
func (r *keyedReader) Close() error { r.files.closed(); return nil }

// A keyedWriter takes a file from its beginning. One of a known size must be
// the near end's stream; what has another name is counted alone.
type keyedWriter struct {
	files   *sftpFiles
	size    int64 // -1 is unknown
	sum     io.Writer
	mu      sync.Mutex
	pos     int64
	early   map[int64][]byte // beyond the first gap
	waiting int64            // bytes in early
	pace    *pace
	err     error
}

// WriteAt is io.WriterAt.
func (w *keyedWriter) WriteAt(p []byte, at int64) (_ int, err error) {
	defer w.files.far.broken(&err)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pace.came(len(p))
	switch {
	case w.err != nil:
		return 0, w.err
	case at < w.pos || w.early[at] != nil || len(p) == 0:
		return 0, fmt.Errorf("byte %d was written already, or nothing is", at)
	case at > w.pos:
		if w.waiting += int64(len(p)); w.waiting > writeWindow {
			return 0, fmt.Errorf("byte %d never came", w.pos)
		}
		if w.early == nil {
			w.early = make(map[int64][]byte)
		}
		w.early[at] = append([]byte(nil), p...)
		return len(p), nil
	}
	w.take(p)
	for w.err == nil && w.early[w.pos] != nil {
		next := w.early[w.pos]
		delete(w.early, w.pos)
		w.waiting -= int64(len(next))
		w.take(next)
	}
	if w.err != nil {
		return 0, w.err
	}
	return len(p), nil
}

// take checks the next bytes.
func (w *keyedWriter) take(p []byte) {
	limit := w.size
	if limit < 0 {
		limit = MaxBytes
	}
	if w.pos+int64(len(p)) > limit {
		w.err = fmt.Errorf("more than %d bytes: %w", limit, errAltered)
	} else {
		var n int
		n, w.err = w.sum.Write(p)
		w.pos += int64(n)
		f := w.files.far
		f.mu.Lock()
		f.e.BytesIn, f.e.Pause = f.e.BytesIn+int64(n), w.pace.stood(f.e.Pause, false)
		f.mu.Unlock()
	}
	if w.err != nil {
		w.files.far.fail(w.err)
	}
}

// Close is io.Closer; its error reaches the client.
func (w *keyedWriter) Close() (err error) {
	defer w.files.far.broken(&err)
	defer w.files.closed()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil && (w.waiting > 0 || w.size >= 0 && w.pos != w.size) {
		w.err = fmt.Errorf("the file ended after %d bytes", w.pos)
	}
	return w.err
}
