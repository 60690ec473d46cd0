package relay

import (
	"net/netip"
	"time"
)

// Limits bound what strangers and sessions can make the service hold or
// send. A field that is zero takes the default named beside it.
type Limits struct {
	Allocations  int           // allocations in all: 256; beyond it 508
	PerSession   int           // allocations of one session: 8; beyond it 486
	PerSource    int           // allocations of one client address: 32; beyond it 486
	Permissions  int           // peer addresses, and channels, of one allocation: 16; beyond it 508
	Lifetime     time.Duration // longest allocation lifetime between refreshes: 10 min; under 1 h
	Conns        int           // TCP and TLS connections in all: 1024
	ConnsPerAddr int           // TCP and TLS connections of one client address: 64
	Idle         time.Duration // to the first valid credential, to a whole message, and between messages without an allocation: 30 s
	Challenges   int           // 401, 438 and other unauthenticated errors per second and source: 20
	Plain        int           // PlainSTUN answers longer than their requests per second and source: 20
	PlainTotal   int           // the same in all: 1000
	Sources      int           // sources that the rates remember: 10000; beyond it strangers are refused
}

func (l Limits) withDefaults() Limits {
	for _, f := range []struct {
		field *int
		value int
	}{
		{&l.Allocations, 256}, {&l.PerSession, 8}, {&l.PerSource, 32}, {&l.Permissions, 16},
		{&l.Conns, 1024}, {&l.ConnsPerAddr, 64}, {&l.Challenges, 20},
		{&l.Plain, 20}, {&l.PlainTotal, 1000}, {&l.Sources, 10000},
	} {
		if *f.field <= 0 {
			*f.field = f.value
		}
	}
	if l.Lifetime <= 0 {
		l.Lifetime = 10 * time.Minute
	}
	// pion takes an hour and more for its own default, 10 minutes.
	l.Lifetime = min(max(l.Lifetime, time.Second), time.Hour-time.Second)
	if l.Idle <= 0 {
		l.Idle = 30 * time.Second
	}
	return l
}

// source is what rates and quotas count by: an IPv4 address, or the /64 that
// one IPv6 host commonly has to itself.
func source(a netip.Addr) netip.Addr {
	if a = a.Unmap().WithZone(""); a.Is4() {
		return a
	}
	p, err := a.Prefix(64)
	if err != nil {
		return a // the zero Addr
	}
	return p.Addr()
}

// rate is a token bucket per source. It remembers a bounded number of
// sources; when that is full of recent ones, new ones are refused, because
// forgetting would hand a flood of spoofed sources a fresh bucket each.
type rate struct {
	perSecond int
	sources   int
	buckets   map[netip.Addr]bucket
	swept     time.Time
}

type bucket struct {
	tokens float64
	at     time.Time
}

// allow takes one token of key's bucket, which holds two seconds' worth.
func (r *rate) allow(key netip.Addr, now time.Time) bool {
	full := 2 * float64(r.perSecond)
	b, known := r.buckets[key]
	switch {
	case !known && len(r.buckets) >= r.sources && !r.sweep(now):
		return false
	case !known:
		b = bucket{full, now}
	default:
		gained := now.Sub(b.at).Seconds() * float64(r.perSecond)
		b = bucket{min(full, b.tokens+max(0, gained)), now}
	}
	ok := b.tokens >= 1
	if ok {
		b.tokens--
	}
	if r.buckets == nil {
		r.buckets = make(map[netip.Addr]bucket)
	}
	r.buckets[key] = b
	return ok
}

// sweep forgets full buckets, at most once a second so that a flood cannot
// buy a walk over the map with every packet. It reports whether there is room.
func (r *rate) sweep(now time.Time) bool {
	if now.Sub(r.swept) < time.Second {
		return false
	}
	r.swept = now
	for k, b := range r.buckets {
		if now.Sub(b.at) > 2*time.Second {
			delete(r.buckets, k)
		}
	}
	return len(r.buckets) < r.sources
}

// proofLifetime is how long a credit is kept.
const proofLifetime = time.Minute

// maxCredit bounds what a 5-tuple can save up, in bytes.
const maxCredit = 4096

// proof is what a 5-tuple may be answered beyond the length of its request.
// A MAC says who wrote a packet, not where it came from: a session can spoof
// a source and a recorded Binding can be replayed from one. So a Binding
// earns only the bytes by which it was longer than its answer, and bytes out
// never exceed bytes in.
type proof struct {
	credit  int
	expires time.Time
	told    told
}

// told bounds what a session is told of a 5-tuple that proves no more than that
// a Binding of its own came from there.
type told struct {
	session string // empty while there was no Binding
	times   int
}

// maxTold is how often it is told: a probe is challenged once, and once more
// when its nonce is too old.
const maxTold = 4

// next gives the session to tell, and takes note of it.
func (t *told) next() (session string, ok bool) {
	if t.session == "" || t.times >= maxTold {
		return "", false
	}
	t.times++
	return t.session, true
}

type proofs struct {
	tuples int
	known  map[tuple]proof
	swept  time.Time
}

// update changes t's proof and keeps it for another minute.
func (p *proofs) update(t tuple, now time.Time, change func(*proof)) {
	v, ok := p.known[t]
	if !ok && len(p.known) >= p.tuples && !p.sweep(now) {
		return
	}
	if now.After(v.expires) {
		v = proof{}
	}
	change(&v)
	v.expires = now.Add(proofLifetime)
	if p.known == nil {
		p.known = make(map[tuple]proof)
	}
	p.known[t] = v
}

// spend reports whether t may be sent extra bytes beyond its request, and
// takes them off its credit.
func (p *proofs) spend(t tuple, extra int, now time.Time) bool {
	v, ok := p.known[t]
	switch {
	case !ok || now.After(v.expires):
		return false
	case v.credit < extra:
		return false
	}
	v.credit -= extra
	p.known[t] = v
	return true
}

func (p *proofs) sweep(now time.Time) bool {
	if now.Sub(p.swept) < time.Second {
		return false
	}
	p.swept = now
	for k, v := range p.known {
		if now.After(v.expires) {
			delete(p.known, k)
		}
	}
	return len(p.known) < p.tuples
}
