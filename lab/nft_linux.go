package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/wallprobe/wallprobe/reflector/steer"
)

// nftTimeout bounds every call of nft and of the programs that load dumps. A
// list of 20,000 rules takes a slow machine some seconds.
const nftTimeout = time.Minute

// An nftError is the complaint of nft, or of a program that loads dumps.
type nftError struct{ program, message string }

func (e *nftError) Error() string { return e.program + ": " + e.message }

// NFT runs the nft program on the host, for at most a minute, and returns its
// standard output. Where nft is missing the error names the package to install.
func (h *Host) NFT(ctx context.Context, stdin []byte, args ...string) ([]byte, error) {
	return h.nft(ctx, ".", stdin, args...)
}

func (h *Host) nft(ctx context.Context, dir string, stdin []byte, args ...string) ([]byte, error) {
	return h.ruler(ctx, "nft", "nftables", dir, stdin, args...)
}

// ruler runs a program that reads or changes rules, of a package of Debian. What
// it complains of is an *nftError.
func (h *Host) ruler(ctx context.Context, name, pkg, dir string, stdin []byte, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, nftTimeout)
	defer cancel()
	program, err := steer.Program(name)
	if err != nil {
		return nil, fmt.Errorf("%s is missing: apt-get install %s", name, pkg)
	}
	cmd := h.Command(ctx, program, args...)
	var stdout, stderr bytes.Buffer
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = dir, bytes.NewReader(stdin), &stdout, &stderr
	err = h.Run(cmd)
	if _, exited := errors.AsType[*exec.ExitError](err); exited && ctx.Err() == nil {
		return nil, &nftError{name, strings.TrimSpace(stderr.String())}
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil, fmt.Errorf("%s %s took longer than %v", name, strings.Join(args, " "), nftTimeout)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return stdout.Bytes(), nil
}
