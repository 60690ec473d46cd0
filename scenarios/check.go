package scenarios

import (
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// transportKeys says for which transport a key of a path has a meaning.
var transportKeys = []struct {
	key       string
	transport Transport
}{
	{"bytes", TCP},
	{"datagram", UDP},
	{"maxLoss", UDP},
}

// check notes what is wrong between values that are right by themselves.
// Values with a problem of their own are zero here, and are passed over.
func (d *decoder) check(s *Scenario) {
	for _, r := range d.refs {
		if defs := d.defs[r.kind]; len(defs) > 0 && defs[r.node.Value] == nil {
			d.problem(r.node, "unknown %s %q%s", r.kind, r.node.Value, Suggest(r.node.Value, d.known(r.kind)))
		}
	}
	sites := map[string]string{}
	for _, r := range s.Roles {
		sites[r.Name] = r.Site
	}
	paths := map[string]Path{}
	for i, p := range s.Paths {
		place := "paths/" + strconv.Itoa(i)
		if d.nodes[place].Kind != yaml.MappingNode {
			continue // told already
		}
		d.keys(p, place)
		d.transports(p, place)
		d.sites(p, place, sites)
		paths[p.ID] = p
	}
	for i, o := range s.Outcomes {
		place := "outcomes/" + strconv.Itoa(i)
		d.quoted(o.Quote, place)
		for j, w := range o.Ways {
			d.way(o, w, place+"/ways/"+strconv.Itoa(j)+"/paths/", paths)
		}
	}
}

// known lists the names that the file defines, or none if they are so many
// that looking for the nearest one would take long.
func (d *decoder) known(kind string) []string {
	if len(d.defs[kind]) > 500 {
		return nil
	}
	return slices.Sorted(maps.Keys(d.defs[kind]))
}

// keys checks which keys of a path go together.
func (d *decoder) keys(p Path, place string) {
	n := d.nodes[place]
	for _, k := range needKeys {
		given := d.nodes[place+"/"+k.key]
		if p.Need == k.need && given == nil {
			d.problem(n, "need %s demands the key %q", k.need, k.key)
		}
		if p.Need != "" && p.Need != k.need && given != nil {
			d.problem(given, "%q is only for need %s, and this path has need %s", k.key, k.need, p.Need)
		}
	}
	for _, key := range measurableKeys {
		if d.nodes[place+"/unmeasured"] == nil && d.nodes[place+"/"+key] == nil {
			d.problem(n, "key %q is missing; without it the key \"unmeasured\" must say why the path cannot be probed", key)
		}
	}
	d.quoted(p.Quote, place)
	known := keysOf(d.fieldsOf(reflect.TypeFor[Path]()))
	for i, key := range p.Inferred {
		at := d.nodes[place+"/inferred/"+strconv.Itoa(i)]
		switch {
		case key == "":
		case !slices.Contains(known, key):
			d.problem(at, "%q is not a key of a path%s", key, Suggest(key, known))
		case d.nodes[place+"/"+key] == nil:
			d.problem(at, "%q is called inferred, but the path does not have it", key)
		}
	}
}

func (d *decoder) quoted(quote, place string) {
	if quote != "" && d.nodes[place+"/source"] == nil {
		d.problem(d.nodes[place+"/quote"], "a quote demands the key \"source\"")
	}
}

// transports checks the keys that only one transport knows.
func (d *decoder) transports(p Path, place string) {
	if len(p.Transport) == 0 || slices.Contains(p.Transport, "") {
		return
	}
	for _, k := range transportKeys {
		if given := d.nodes[place+"/"+k.key]; given != nil && !slices.Contains(p.Transport, k.transport) {
			d.problem(given, "%q is only for %s, and this path has %s", k.key, k.transport, joined(p.Transport))
		}
	}
}

func joined(list []Transport) string { return strings.Join(texts(list...), " and ") }

// sites checks a path's direction against where its roles stand.
func (d *decoder) sites(p Path, place string, sites map[string]string) {
	at := d.nodes[place+"/direction"]
	crosses, stays := "", "" // one pair of roles of each kind, told in the problem
	for _, from := range p.From {
		for _, to := range p.To {
			a, b := sites[from], sites[to]
			switch {
			case a == "" || b == "":
				return
			case a != b:
				crosses = from + " is at " + a + " and " + to + " at " + b
			default:
				stays = from + " and " + to + " are both at " + a
			}
		}
	}
	switch {
	case p.Direction == LAN && crosses != "":
		d.problem(at, "direction lan stays within one site, but %s", crosses)
	case p.Direction == Loop && !sameRoles(p.From, p.To):
		d.problem(at, "direction loop stays within one machine, but \"from\" and \"to\" name different roles")
	case (p.Direction == Out || p.Direction == In) && crosses == "" && stays != "":
		d.problem(at, "direction %s crosses a site's border, but %s", p.Direction, stays)
	}
}

func sameRoles(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// way checks the paths that a way of an outcome refers to.
func (d *decoder) way(o Outcome, w Way, place string, paths map[string]Path) {
	for i, ref := range w.Paths {
		at := d.nodes[place+strconv.Itoa(i)]
		id, transport := SplitRef(ref)
		p, ok := paths[id]
		switch {
		case ref == "":
			continue
		case !ok:
			d.problem(at, "unknown path %q%s", id, Suggest(id, d.known("path")))
			continue
		case p.Unmeasured != "":
			d.problem(at, "path %s is unmeasured, so this way could never be seen to work", id)
		case len(p.Transport) == 0 || slices.Contains(p.Transport, ""):
		case ref != id && !slices.Contains(p.Transport, transport):
			d.problem(at, "path %s has no transport %q; it has %s", id, transport, joined(p.Transport))
		}
		if !d.rolesKnown(p) {
			continue
		}
		for _, role := range o.Roles {
			if role != "" && !p.Owned(role) {
				d.problem(at, "path %s is not one of role %s, for which this outcome is asked", id, role)
			}
		}
	}
}

// rolesKnown tells whether the direction and the roles of p were read well.
func (d *decoder) rolesKnown(p Path) bool {
	for _, role := range slices.Concat(p.From, p.To) {
		if d.defs["role"][role] == nil {
			return false
		}
	}
	return p.Direction != "" && len(p.From) > 0 && len(p.To) > 0
}
