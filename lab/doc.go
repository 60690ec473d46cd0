// Package lab builds a small internet out of network namespaces, puts a real
// nftables firewall into its middle and runs programs on its hosts. It needs
// neither root nor containers:
//
//	inside, code, err := lab.Enter(ctx) // re-executes this program in namespaces of its own
//	if err != nil || !inside {
//		return code, err
//	}
//	firewall, err := lab.OpenFirewall("stateful")
//	world, err := lab.Build(ctx, lab.Config{Firewall: firewall})
//	defer world.Close()
//	code, err = world.Exec(ctx, "host", []string{"curl", "http://server/"})
//
// The world looks like this; the second LAN host and the other host exist only
// when asked for:
//
//	host 10.77.1.2 ─┐                                        ┌─ server 198.51.100.10
//	                ├─ lan0 10.77.1.1 firewall 198.51.100.1 wan0 ─┤
//	lan2 10.77.1.3 ─┘                                        └─ other  198.51.100.20
//
// Each host is a network namespace. The LAN and the WAN are bridges in a
// namespace of their own, so what LAN hosts say to each other never crosses the
// firewall. Everything also speaks IPv6. No link leads out of the lab, names are
// answered by the lab alone, and neighbours are known beforehand, so that no
// packet is ever lost to address resolution. The kernel's limits on ICMP errors
// are off and ports below 1024 are free for everybody.
//
// The firewall's own counters ([World.Counters]) are the truth against which
// verdicts are checked.
package lab
