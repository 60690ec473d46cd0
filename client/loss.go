package client

import (
	"fmt"
	"math"

	"github.com/wallprobe/wallprobe/scenarios"
)

// doubt is how many ports of a sweep may be called blocked by mistake: a silent
// run is believed if loss alone would bring about fewer like it.
const doubt = 0.01

// weighLoss judges a sweep as a whole. A sweep asks a port only until it
// answers, so that its loss shows in how often the ports had to be asked; and
// where much is lost, the silence of a few ports among many proves nothing.
func weighLoss(parts []Part, f *Finding, maxLoss float64) []Part {
	loss := sweepLoss(f)
	if f.Transport != scenarios.UDP || loss.share() == 0 || loss.sent < lossFrom {
		return parts
	}
	heavy := loss.share() > maxLoss
	why := fmt.Sprintf("%.0f %% of %d datagrams lost; at most %.0f %% are allowed", loss.share()*100, loss.sent, maxLoss*100)
	var out []Part
	for _, p := range parts {
		switch p.Verdict {
		case Open:
			if heavy {
				p.Verdict, p.Why = Degraded, why
			}
		case RequestLost, ReplyLost:
			chance := loss.takeOut(&p)
			if chance.Why = why; !heavy {
				chance.Why = fmt.Sprintf("silent, which is chance where %.0f %% of the datagrams are lost", loss.share()*100)
			}
			if len(chance.Ports) > 0 {
				out = addPart(out, chance)
			}
		}
		if len(p.Ports) > 0 {
			out = addPart(out, p)
		}
	}
	return out
}

// A rangeLoss counts the datagrams to the ports of a sweep that answered.
type rangeLoss struct{ sent, answered, ports int }

func (l rangeLoss) share() float64 {
	if l.sent == 0 {
		return 0
	}
	return 1 - float64(l.answered)/float64(l.sent)
}

func sweepLoss(f *Finding) (l rangeLoss) {
	for i := range f.Evidence.Near {
		o := &f.Evidence.Near[i]
		if !o.ByLocal && o.Ports.Len() == 1 && f.Ports.Len() < wide || o.Answered == 0 {
			continue
		}
		n := o.Ports.Len()
		if len(o.Probed) > 0 {
			n = intersect(o.Probed, o.Ports).Len()
		}
		l.sent += n * o.Sent
		l.answered += n * o.Answered
		l.ports += n
	}
	return l
}

// takeOut moves the runs of a silent part that loss alone explains to a part of
// their own.
func (l rangeLoss) takeOut(p *Part) Part {
	n := p.Ports.Len()
	sent, seen := p.Attempts.Sent/n, p.Attempts.Seen/n
	chance := Part{Target: p.Target, Verdict: Degraded, Attempts: &Attempts{}}
	kept := Part{Target: p.Target, Verdict: p.Verdict, Why: p.Why, Attempts: &Attempts{}}
	for _, run := range p.Ports {
		k := int(run.Last) - int(run.First) + 1
		to := &kept
		if float64(l.ports)*math.Pow(l.share(), float64(k*max(sent, 1))) > doubt {
			to = &chance
		}
		to.Ports = append(to.Ports, run)
		to.Attempts.Sent += k * sent
		to.Attempts.Seen += k * seen
	}
	*p = kept
	return chance
}
