package lab

// For the truth table, which is in a package of its own: the middleboxes that
// it needs are built on this one.
var (
	NeedLab = needLab
	Stand   = build
	TempDir = tempDir
)
