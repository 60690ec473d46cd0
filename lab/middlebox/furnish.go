package middlebox

import (
	"fmt"
	"strings"

	"github.com/wallprobe/wallprobe/scenarios"
)

// A MissingError says which program a box needs.
type MissingError struct{ Box, Program, Package string }

func (e *MissingError) Error() string {
	return fmt.Sprintf("the box %s needs %s, which is missing: apt-get install %s", e.Box, e.Program, e.Package)
}

// nftPorts writes a set of ports as nft has it.
func nftPorts(s scenarios.PortSet) string {
	return "{ " + strings.ReplaceAll(s.String(), ",", ", ") + " }"
}
