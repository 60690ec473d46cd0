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

// nftTimeout bounds every call of nft.
const nftTimeout = 10 * time.Second

// An nftError is nft's own complaint.
type nftError struct{ message string }

func (e *nftError) Error() string { return "nft: " + e.message }

// NFT runs the nft program on the host, for at most 10 s, and returns its
// standard output. Where nft is missing the error names the package to install.
func (h *Host) NFT(ctx context.Context, stdin []byte, args ...string) ([]byte, error) {
	return h.nft(ctx, ".", stdin, args...)
}

func (h *Host) nft(ctx context.Context, dir string, stdin []byte, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, nftTimeout)
	defer cancel()
	program, err := steer.Program("nft")
	if err != nil {
		return nil, errors.New("nft is missing: apt-get install nftables")
	}
	cmd := h.Command(ctx, program, args...)
	var stdout, stderr bytes.Buffer
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = dir, bytes.NewReader(stdin), &stdout, &stderr
	err = h.Run(cmd)
	if _, exited := errors.AsType[*exec.ExitError](err); exited && ctx.Err() == nil {
		return nil, &nftError{strings.TrimSpace(stderr.String())}
	}
	if err != nil {
		return nil, fmt.Errorf("nft %s: %w", strings.Join(args, " "), err)
	}
	return stdout.Bytes(), nil
}
