// Package middlebox holds the faults that rules alone cannot produce: resets
// forged towards one side, connections and datagrams altered on the way, cut
// off, or answered by somebody who is not the server. They run on a host of
// the lab, mostly the firewall:
//
//	box, err := middlebox.TCP{Ports: "443", Answer: middlebox.Portal("http://portal.example/")}.Open(firewall)
//	defer box.Close()
//	err = box.Serve(ctx)
//
// Open puts the box into the way; traffic is held until Serve, which returns
// nil when ctx ends and lifts the box out again. What the proxies forward
// comes from the address of the host they run on, as with most real ones, or
// from the client's where TCP.AsClient asks for that; it is not subject to the
// host's forwarding rules. Loading other rules removes the proxies from the
// way: load first, open then. Furnish opens the boxes that the comments of a
// firewall's file ask for.
package middlebox
