// Package scenarios holds what vendors document about the network paths of
// their systems, as data: one YAML file per system, read strictly, embedded in
// the program. A user's own file is read by the same code as a built-in one.
//
// A scenario names roles (who talks), paths (one documented way a packet
// takes) and outcomes (what a person wants to work, with the ways in the order
// in which the application tries them).
//
// The struct tags of the types are the one table from which both the strict
// reader and the JSON Schema are made: yaml is the key (omitempty: may be
// left out), form names an entry of forms, limit is the range of a number, def
// defines a name of a kind and ref refers to one.
package scenarios

import (
	"net/netip"
	"time"
)

// SchemaID is the value of the schema key that this version of the program reads.
const SchemaID = "wallprobe/scenario/1"

// A Scenario is one vendor's system as its documents describe it.
type Scenario struct {
	Schema      string     `yaml:"schema" form:"schema"`
	Name        string     `yaml:"name" form:"name"`
	Title       string     `yaml:"title" form:"line"`
	Version     int        `yaml:"version" limit:"1-1000000"`
	Description string     `yaml:"description,omitempty"`
	Sources     []Source   `yaml:"sources"`
	Roles       []Role     `yaml:"roles"`
	Paths       []Path     `yaml:"paths"`
	Outcomes    []Outcome  `yaml:"outcomes"`
	Conflicts   []Conflict `yaml:"conflicts,omitempty"`

	// File is where the scenario was read from; built-in ones say "builtin:NAME.yaml".
	File string `yaml:"-"`
}

// A Source is a document that paths quote from.
type Source struct {
	ID       string `yaml:"id" form:"id" def:"source"` // "D0"; paths refer to it
	File     string `yaml:"file" form:"file"`          // name of the document's file
	Title    string `yaml:"title" form:"line"`
	Language string `yaml:"language" form:"language"` // BCP 47: "de", "ja", "en"
}

// A Role is one kind of machine in the system. Roles with the same site share
// a network: traffic between them does not cross the firewall under test.
type Role struct {
	Name  string `yaml:"name" form:"name" def:"role"`
	Title string `yaml:"title" form:"line"`
	Site  string `yaml:"site" form:"name"`
}

// A Direction is seen from the site that owns the firewall.
type Direction string

// The directions.
const (
	Out  Direction = "out"  // from that site to elsewhere
	In   Direction = "in"   // from elsewhere into that site: the reflector calls
	LAN  Direction = "lan"  // within the site, not crossing the firewall
	Loop Direction = "loop" // within one machine
	P2P  Direction = "p2p"  // both ends send to each other
)

// A Transport is a layer-4 protocol.
type Transport string

// The transports.
const (
	TCP Transport = "tcp"
	UDP Transport = "udp"
)

// A Need says how much the document demands of a path.
type Need string

// The needs.
const (
	Required    Need = "req"
	Optional    Need = "opt"
	Conditional Need = "cond" // required only with a feature, named in Path.When
	Fallback    Need = "fb"   // tried after others, in Path.Order
	Negative    Need = "neg"  // the document says it need not, or must not, be open
)

// A Basis says where a statement comes from.
type Basis string

// The bases. Stated is the default.
const (
	Stated   Basis = "stated"   // written in the document
	Inferred Basis = "inferred" // follows from the document but is not written
	External Basis = "external" // from public sources outside the documents
)

// A Pick says how the application uses a range of ports, and so when a way
// survives a range of which only a part is open.
type Pick string

// The picks. PickAll is the default.
const (
	PickAll Pick = "all" // every port is needed
	PickAny Pick = "any" // the application goes on to another port until one works
	PickOne Pick = "one" // one port is drawn at random for each session: works if at least half are open
)

// A Path is one documented way a packet takes.
type Path struct {
	ID         string         `yaml:"id" form:"id" def:"path"` // catalogue id, for example "CRD-A1"
	Title      string         `yaml:"title" form:"line"`
	From       []string       `yaml:"from" ref:"role"` // role names
	To         []string       `yaml:"to" ref:"role"`   // role names
	Direction  Direction      `yaml:"direction"`
	Transport  []Transport    `yaml:"transport,omitempty"`
	Ports      PortSet        `yaml:"ports,omitempty"`                // destination ports
	LocalPorts PortSet        `yaml:"localPorts,omitempty"`           // own ports, where the document limits them
	Protocol   string         `yaml:"protocol,omitempty" form:"name"` // application protocol, a name of package protocol; for any other a plain exchange is made in its place
	Names      []string       `yaml:"names,omitempty" form:"dns"`     // DNS names; "*.goto.com" for all below
	Addresses  []netip.Prefix `yaml:"addresses,omitempty"`            // documented destination ranges
	Need       Need           `yaml:"need"`
	Order      int            `yaml:"order,omitempty" limit:"1-99"` // of fallbacks: 1 is tried first
	When       string         `yaml:"when,omitempty" form:"line"`   // the feature that makes a conditional path needed
	Pick       Pick           `yaml:"pick,omitempty"`
	Basis      Basis          `yaml:"basis,omitempty"`
	Inferred   []string       `yaml:"inferred,omitempty"`            // keys of this path that are inferred where the rest is stated, for example [transport]
	Quote      string         `yaml:"quote,omitempty"`               // the sentence, in the document's language
	Source     string         `yaml:"source,omitempty" ref:"source"` // Source.ID
	Note       string         `yaml:"note,omitempty"`
	Unmeasured string         `yaml:"unmeasured,omitempty"` // why this path cannot be probed; with it transport and ports may be absent

	// What the exchange must carry for the path to count as open.
	Bytes    int64         `yaml:"bytes,omitempty" limit:"1-1099511627776"` // TCP: bytes in each direction; 0 is the program's default
	Datagram int           `yaml:"datagram,omitempty" limit:"1-65507"`      // UDP: largest payload the application sends, bytes; 0 is the program's default
	Idle     time.Duration `yaml:"idle,omitempty"`                          // silence that the path must survive, for example "50s"
	MaxLoss  float64       `yaml:"maxLoss,omitempty" limit:"0-1"`           // UDP: share of datagrams that may be lost, 0 to 1; 0 is the program's default
}

// An Outcome is something a person wants to work.
type Outcome struct {
	ID       string   `yaml:"id" form:"name" def:"outcome"`
	Title    string   `yaml:"title" form:"line"`
	Roles    []string `yaml:"roles" ref:"role"`   // near ends for which it is asked
	Optional bool     `yaml:"optional,omitempty"` // its failure alone does not make a run fail
	Ways     []Way    `yaml:"ways"`               // in the order in which the application tries them
	Basis    Basis    `yaml:"basis,omitempty"`
	Source   string   `yaml:"source,omitempty" ref:"source"`
	Quote    string   `yaml:"quote,omitempty"`
	Note     string   `yaml:"note,omitempty"`
}

// A Way is a set of paths that together carry an outcome.
type Way struct {
	Title string   `yaml:"title" form:"line"`
	Paths []string `yaml:"paths"` // path ids; "CRD-B4/udp" for one transport of a path that has two
	Basis Basis    `yaml:"basis,omitempty"`
	Note  string   `yaml:"note,omitempty"`
}

// A Conflict keeps two statements of the documents that cannot both hold.
type Conflict struct {
	ID     string   `yaml:"id" form:"name" def:"conflict"`
	Title  string   `yaml:"title" form:"line"`
	Claims []string `yaml:"claims" form:"id"` // ids of paths or experiments
	Note   string   `yaml:"note,omitempty"`
}
