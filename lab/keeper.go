package lab

import (
	"net/netip"
	"path/filepath"
)

// A keeper is a process that keeps one namespace of the lab where others have
// made it, a container for one. It does there what Build does in namespaces of
// its own. One connection to its Unix socket is one request, a line of JSON,
// and its reply.
type request struct {
	Do     string
	Name   string                  `json:",omitempty"` // of the host, or of a link
	Number int                     `json:",omitempty"`
	Sites  []site                  `json:",omitempty"` // of all hosts
	Names  map[string][]netip.Addr `json:",omitempty"`
	MTU    int                     `json:",omitempty"`
	Ports  []string                `json:",omitempty"`
	Run    []string                `json:",omitempty"`

	Signal int `json:",omitempty"` // for the program that runs, in a later line
}

// What keepers can be asked to do.
const (
	askNamespace = "namespace" // hand out the network namespace, a file that comes with the reply
	askClear     = "clear"     // make the host as new, and as Name of Sites needs it
	askWire      = "wire"      // run wires between the hosts, whose namespaces come with the request
	askLink      = "link"      // add one called Name to the firewall, the Number-th that leads nowhere
	askConfigure = "configure" // bring up Name of Sites, with Names to be answered
	askSettle    = "settle"    // take Ports of the switches into use
	askRun       = "run"       // run a program; with the request come its three files and its folder
)

// A reply is what a keeper answers.
type reply struct {
	Ports  []string `json:",omitempty"`
	Status int      // of a program that has ended, as a shell has it
	Error  string   `json:",omitempty"`
	Errno  int      `json:",omitempty"` // of the error, where the kernel refused something
}

// switchName is what keeps the switches of the LAN and the WAN; it is no host.
const switchName = "switch"

// KeeperNames are the parts of a lab that can be kept.
func KeeperNames() []string {
	return []string{hostName, lan2Name, firewallName, serverName, otherName, farName, switchName}
}

// socketOf is where the keeper of a host listens.
func socketOf(dir, host string) string { return filepath.Join(dir, host+".sock") }

// A KeptError is why hosts that others keep cannot be used.
type KeptError struct{ Why string }

func (e *KeptError) Error() string { return e.Why }
