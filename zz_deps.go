//go:build ignore_never

package wallprobe

import (
 _ "github.com/pion/turn/v2"
 _ "github.com/pion/stun"
 _ "github.com/urfave/cli/v2"
 _ "github.com/vishvananda/netlink"
 _ "github.com/vishvananda/netns"
 _ "github.com/cilium/ebpf"
 _ "github.com/google/go-cmp/cmp"
 _ "go.yaml.in/yaml/v3"
 _ "github.com/santhosh-tekuri/jsonschema/v6"
 _ "golang.org/x/net/ipv4"
 _ "golang.org/x/net/dns/dnsmessage"
 _ "golang.org/x/sys/unix"
 _ "golang.org/x/crypto/hkdf"
 _ "golang.org/x/sync/errgroup"
 _ "golang.org/x/term"
 _ "github.com/rogpeppe/go-internal/testscript"
 _ "github.com/pion/logging"
)
