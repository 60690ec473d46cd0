package lab

import (
	"os"
	"slices"
	"testing"

	"go.yaml.in/yaml/v3"
)

// A container cannot make its own kernel settings, so docker-compose.yml has to
// have all those that a host of the lab would make.
func TestContainersHaveTheKernelSettingsOfTheLab(t *testing.T) {
	text, err := os.ReadFile("../docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Services map[string]struct {
			Command []string          `yaml:"command"`
			Sysctls map[string]string `yaml:"sysctls"`
		} `yaml:"services"`
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	sites, err := plan(Config{Far: new(Firewall), Hosts: []string{lan2Name, otherName}})
	if err != nil {
		t.Fatal(err)
	}
	kept := map[string]map[string]string{}
	for _, s := range file.Services {
		if len(s.Command) == 3 && s.Command[1] == "keep" {
			kept[s.Command[2]] = s.Sysctls
		}
	}
	for _, name := range KeeperNames() {
		if kept[name] == nil {
			t.Errorf("no service keeps %s", name)
		}
	}
	for _, s := range sites {
		h := Host{site: s}
		for _, want := range append(h.settings(), [2]string{"net.ipv6.conf.default.disable_ipv6", "0"}) {
			if got := kept[s.Name][want[0]]; got != want[1] {
				t.Errorf("%s: %s is %q, want %s", s.Name, want[0], got, want[1])
			}
		}
	}
	if len(kept) != len(KeeperNames()) || !slices.Contains(KeeperNames(), farName) {
		t.Errorf("%d services for %v", len(kept), KeeperNames())
	}
}
