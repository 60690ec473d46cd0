package main

import (
	"context"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/wallprobe/wallprobe/lab"
)

// hostsVariable names the folder of the sockets of hosts that others have
// wired. Where it is set the lab is made of those.
const hostsVariable = "WALLPROBE_HOSTS"

func keptHosts() string { return os.Getenv(hostsVariable) }

// buildWorld makes the lab, of namespaces or of the hosts that there are.
func buildWorld(ctx context.Context, cfg lab.Config) (*lab.World, error) {
	if dir := keptHosts(); dir != "" {
		return lab.Join(ctx, dir, cfg)
	}
	return lab.Build(ctx, cfg)
}

// sideBySide is how many labs can stand at a time.
func sideBySide() int {
	if keptHosts() != "" {
		return 1
	}
	return worlds
}

// needsNamespaces refuses what takes several labs at a time, or more of one than
// keepers do.
func needsNamespaces(c *cli.Context) error {
	if keptHosts() == "" {
		return nil
	}
	return usage("%s: needs labs of namespaces, and the hosts of %s make a single one; run it outside of the containers", c.Command.HelpName, hostsVariable)
}

func keepCommand() *cli.Command {
	return &cli.Command{
		Name:      "keep",
		Usage:     "be a host of a lab that is made of containers",
		ArgsUsage: "HOST",
		Description: "For docker-compose.yml: keeps one host of the lab, of which others have made the\n" +
			"networks, with a socket in the folder that " + hostsVariable + " names. wallprobe lab, with the same\n" +
			"variable, measures on such hosts in place of its own. Hosts: " + strings.Join(lab.KeeperNames(), ", ") + ".\n" +
			"It takes the network over, so it runs only as the first process of a container.",
		Action: func(c *cli.Context) error {
			name, dir := c.Args().First(), keptHosts()
			if c.Args().Len() != 1 || !slices.Contains(lab.KeeperNames(), name) {
				return usage("lab keep: which host? There are %s", strings.Join(lab.KeeperNames(), ", "))
			}
			if dir == "" {
				return usage("lab keep: %s must name the folder for the sockets", hostsVariable)
			}
			if err := lab.Keep(c.Context, name, dir); err != nil {
				return usage("lab keep %s: %v", name, err)
			}
			return nil
		},
	}
}

func viaCommand() *cli.Command {
	return &cli.Command{
		Name:      "via",
		Hidden:    true,
		Usage:     "run a program on a host that is kept",
		ArgsUsage: "-- SOCKET COMMAND [ARG...]",
		Action: func(c *cli.Context) error {
			if c.Args().Len() < 2 {
				return usage("lab via: which socket, and which command?")
			}
			status, err := lab.Via(c.Args().First(), c.Args().Tail())
			if err != nil {
				return usage("%v", err)
			}
			if status != 0 {
				return &exitError{status: status}
			}
			return nil
		},
	}
}
