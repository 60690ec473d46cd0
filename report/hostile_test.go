package report

import (
	"reflect"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/expect"
	"github.com/wallprobe/wallprobe/scenarios"
)

// nasty breaks out of everything that is not escaped, and has what XML cannot
// hold, what hides text, and a word that is wider than a telephone.
const nasty = "</script></style>]]>--><img src=x onerror=alert(1)>\"'`|\\<b>@team #12 www.evil.example https://evil.example\n\r\n# head\x00\x01\x1b[31m\u202e\u2028\ufffe{{.}} javascript:alert(1) &lt; " +
	"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

// hostile is a sample in which every text is s: those that files name, and those
// that strangers sent. Only words of closed lists are left alone.
func hostile(s string) *client.Result {
	r := sample()
	poison(reflect.ValueOf(r).Elem(), s)
	for i := range r.Outcomes { // else some would name a path, and lead there
		for j := range r.Outcomes[i].Ways {
			for k := range r.Outcomes[i].Ways[j].Stopped {
				r.Outcomes[i].Ways[j].Stopped[k] = "NONE " + s
			}
		}
	}
	return r
}

// strange is a sample in which the words of closed lists are s too, as nobody
// writes them but somebody who made the file by hand.
func strange(s string) *client.Result {
	r := sample()
	for i := range r.Findings {
		f := &r.Findings[i]
		f.Verdict, f.Transport, f.Need, f.Direction, f.Pick = client.Verdict(s), scenarios.Transport(s), scenarios.Need(s), scenarios.Direction(s), scenarios.Pick(s)
		for j := range f.Parts {
			f.Parts[j].Verdict = client.Verdict(s)
		}
	}
	return r
}

// hostileComparison is the sample of a comparison, treated alike.
func hostileComparison(s string) expect.Comparison {
	c := sampleComparison()
	poison(reflect.ValueOf(&c).Elem(), s)
	return c
}

func poison(v reflect.Value, s string) {
	switch v.Kind() {
	case reflect.String:
		if v.Type() == reflect.TypeFor[string]() && v.CanSet() {
			v.SetString(s)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				poison(v.Field(i), s)
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			poison(v.Index(i), s)
		}
	case reflect.Pointer:
		if !v.IsNil() {
			poison(v.Elem(), s)
		}
	}
}
