package protocol

import "strings"

const (
	xmppOpen = `<stream:stream to="a.example" version="1.0" xmlns="jabber:client" xmlns:stream="http://etherx.jabber.org/streams">`
	long     = "line longer than 1024 bytes"
	many     = "more commands than a client needs"
	smtpX    = "220 x\r\n"
	imapX    = "* OK x\r\n"
	popX     = "+OK x\r\n"
)

// mailStrangers are what peers say that are not the near end, by the protocol
// that they say it to, and where that ends. Of those that begin with TLS it is
// what is said inside.
var mailStrangers = map[string]map[string]mailEnd{
	"submission": {
		"":                                    {StageBanner, FaultEOF},
		"EHLO exam":                           {StageBanner, FaultEOF},
		"QUIT\r\n":                            {StageSTARTTLS, FaultEOF},
		"\r\n\r\nQUIT\n":                      {StageSTARTTLS, FaultEOF},
		"XXXXXXXX\r\n":                        {StageSTARTTLS, FaultEOF},
		"GET / HTTP/1.1\r\nHost: x\r\n":       {StageSTARTTLS, FaultEOF},
		string(alert):                         {StageBanner, FaultEOF},
		string(alert) + "\n":                  {StageBanner, FaultForeign},
		"EHLO x\r\n\xff\xfe\x00\n":            {StageSTARTTLS, FaultForeign},
		strings.Repeat("A", 1<<16):            {StageBanner, long},
		"EHLO " + strings.Repeat("A", 1<<16):  {StageBanner, long},
		strings.Repeat("NOOP\r\n", 10_000):    {StageSTARTTLS, many},
		strings.Repeat("\r\n", 10_000):        {StageSTARTTLS, many},
		"STARTTLS\r\n":                        {StageTLS, FaultEOF},
		"STARTTLS\r\nEHLO evil\r\n":           {StageSTARTTLS, FaultAltered},
		"STARTTLS\r\n" + string(alert):        {StageSTARTTLS, FaultAltered},
		"AUTH PLAIN AGEAYg==\r\nQUIT\r\n":     {StageSTARTTLS, FaultEOF},
		"MAIL FROM:<a@b>\r\nDATA\r\nQUIT\r\n": {StageSTARTTLS, FaultEOF},
	},
	"smtps": { // what is spoken inside
		"":                                      {StageBanner, FaultEOF},
		"STARTTLS\r\nQUIT\r\n":                  {StageLogin, FaultEOF},
		"AUTH PLAIN\r\n":                        {StageLogin, FaultEOF},
		"AUTH PLAIN !!\r\nQUIT\r\n":             {StageLogin, FaultForeign},
		"AUTH LOGIN YQ==\r\nYQ==\r\nQUIT\r\n":   {StageLogin, FaultForeign},
		"AUTH PLAIN\r\n\x00\r\n":                {StageLogin, FaultForeign},
		strings.Repeat("AUTH PLAIN YQ\r\n", 99): {StageLogin, FaultForeign},
		strings.Repeat("NOOP\r\n", 10_000):      {StageLogin, many},
	},
	"imap": {
		"":                                   {StageBanner, FaultEOF},
		"a LOGOUT\r\n":                       {StageSTARTTLS, FaultEOF},
		"a\r\n":                              {StageSTARTTLS, FaultEOF},
		"* BYE\r\n+\r\n":                     {StageSTARTTLS, FaultEOF},
		"a LOGIN {5}\r\nhello\r\n":           {StageSTARTTLS, FaultEOF},
		"a SELECT INBOX\r\n":                 {StageSTARTTLS, FaultEOF},
		"a STARTTLS\r\nb LOGIN x y\r\n":      {StageSTARTTLS, FaultAltered},
		"a " + strings.Repeat("(", 1<<16):    {StageBanner, long},
		strings.Repeat("a NOOP\r\n", 10_000): {StageSTARTTLS, many},
		string(alert) + "\n":                 {StageBanner, FaultForeign},
	},
	"imaps": {
		"a LOGIN x y\r\nb LOGOUT\r\n":             {StageLogin, FaultForeign},
		"a AUTHENTICATE PLAIN\r\n":                {StageLogin, FaultEOF},
		"a AUTHENTICATE NTLM\r\nb LOGOUT\r\n":     {StageLogin, FaultEOF},
		"a FETCH 1 BODY[]\r\nb LOGOUT\r\n":        {StageLogin, FaultEOF},
		strings.Repeat("a LOGIN x y\r\n", 10_000): {StageLogin, FaultForeign},
	},
	"pop3": {
		"":                                 {StageBanner, FaultEOF},
		"QUIT\r\n":                         {StageSTARTTLS, FaultEOF},
		"USER x\r\nPASS y\r\n":             {StageSTARTTLS, FaultEOF},
		"RETR 1\r\n":                       {StageSTARTTLS, FaultEOF},
		"STLS\r\nUSER evil\r\n":            {StageSTARTTLS, FaultAltered},
		strings.Repeat("A", 1<<16):         {StageBanner, long},
		strings.Repeat("CAPA\r\n", 10_000): {StageSTARTTLS, many},
		string(alert) + "\n":               {StageBanner, FaultForeign},
		"CAPA\r\n\x1b[2J\r\n":              {StageSTARTTLS, FaultForeign},
	},
	"pop3s": {
		"USER x\r\nPASS y\r\nQUIT\r\n":               {StageLogin, FaultForeign},
		"PASS y\r\nSTAT\r\nQUIT\r\n":                 {StageLogin, FaultEOF},
		strings.Repeat("USER x\r\nPASS y\r\n", 9999): {StageLogin, FaultForeign},
	},
	"xmpp": {
		"":                                    {StageBanner, FaultEOF},
		xmppOpen[:40]:                         {StageBanner, FaultEOF},
		xmppOpen:                              {StageSTARTTLS, FaultEOF},
		xmppOpen + streamEnd:                  {StageSTARTTLS, FaultEOF},
		xmppOpen + startTLS:                   {StageTLS, FaultEOF},
		xmppOpen + startTLS + "<auth/>":       {StageSTARTTLS, FaultAltered},
		xmppOpen + startTLS + string(alert):   {StageSTARTTLS, FaultAltered},
		string(alert):                         {StageBanner, FaultForeign},
		"GET / HTTP/1.1\r\n":                  {StageBanner, FaultForeign},
		"<!DOCTYPE lolz [<!ENTITY a \"b\">]>": {StageBanner, FaultForeign},
		"<stream:stream to='" + strings.Repeat("A", 1<<16): {StageBanner, errElement.Error()},
		strings.Repeat(" ", 1<<16):                         {StageBanner, FaultEOF},
		strings.Repeat("<a>", 1<<16):                       {StageBanner, errElement.Error()},
		xmppOpen + "<a></b>":                               {StageSTARTTLS, FaultForeign},
		xmppOpen + "<a>\x00</a>":                           {StageSTARTTLS, FaultForeign},
		xmppOpen + "<iq/>":                                 {StageSTARTTLS, FaultForeign},
		strings.Repeat(xmppOpen, 10_000):                   {StageSTARTTLS, many},
	},
	"xmpps": {
		xmppOpen + startTLS:                              {StageLogin, FaultForeign},
		xmppOpen + "<auth/>" + streamEnd:                 {StageLogin, FaultEOF},
		xmppOpen + `<auth mechanism="PLAIN">YQ==</auth>`: {StageLogin, FaultForeign},
	},
}

// strangeAnswers are what somebody answers who is not the far end.
var strangeAnswers = map[string]map[string]mailEnd{
	"submission": {
		"22":                                 {StageBanner, FaultEOF},
		"554 go away\r\n":                    {StageBanner, FaultForeign},
		"2200 what\r\n":                      {StageBanner, FaultForeign},
		smtpX:                                {StageSTARTTLS, FaultEOF},
		smtpX + "250-x\r\n":                  {StageSTARTTLS, FaultEOF},
		smtpX + "500 no\r\n":                 {StageSTARTTLS, FaultForeign},
		smtpX + "250 x\r\n":                  {StageSTARTTLS, FaultForeign}, // not offered
		smtpX + "250 STARTTLS":               {StageSTARTTLS, FaultEOF},
		smtpX + "250 STARTTLS\r\n454 no\r\n": {StageSTARTTLS, FaultForeign},
		smtpX + "250 STARTTLS\r\n220 ok\r\n250 evil\r\n":        {StageSTARTTLS, FaultAltered},
		smtpX + "250 x\r\n220 ok\r\n":                           {StageSTARTTLS, FaultForeign},
		smtpX + strings.Repeat("250-x\r\n", 10_000):             {StageSTARTTLS, errManyLines.Error()},
		smtpX + "250 " + strings.Repeat("x", 1<<16):             {StageSTARTTLS, long},
		smtpX + "250 STARTTLS\r\n220 ok\r\n" + string(alert):    {StageSTARTTLS, FaultAltered},
		smtpX + "250-\x00\x01\xff\r\n250 STARTTLS\r\n220 x\r\n": {StageTLS, FaultEOF},
	},
	"imap": {
		"* BYE\r\n":                  {StageBanner, FaultForeign},
		imapX:                        {StageSTARTTLS, FaultEOF},
		imapX + "a1 OK\r\na2 OK\r\n": {StageSTARTTLS, FaultForeign},
		imapX + "a1 NO\r\n":          {StageSTARTTLS, FaultForeign},
		imapX + strings.Repeat("* x\r\n", 10_000):                       {StageSTARTTLS, errManyLines.Error()},
		imapX + "* CAPABILITY STARTTLS\r\na1 OK\r\na2 BAD\r\n":          {StageSTARTTLS, FaultForeign},
		imapX + "* CAPABILITY STARTTLS\r\na1 OK\r\na2 OK\r\n* evil\r\n": {StageSTARTTLS, FaultAltered},
		imapX + "* CAPABILITY STARTTLS\r\na1 OK\r\na2 OK\r\n":           {StageTLS, FaultEOF},
	},
	"pop3": {
		"-ERR\r\n":                            {StageBanner, FaultForeign},
		popX:                                  {StageSTARTTLS, FaultEOF},
		popX + "+OK\r\n.\r\n+OK\r\n":          {StageSTARTTLS, FaultForeign},
		popX + "+OK\r\nSTLS\r\n.\r\n-ERR\r\n": {StageSTARTTLS, FaultForeign},
		popX + "+OK\r\nSTLS\r\n.\r\n+OK\r\nx": {StageSTARTTLS, FaultAltered},
		popX + "+OK\r\nSTLS\r\n.\r\n+OK\r\n":  {StageTLS, FaultEOF},
		popX + "+OK\r\n" + strings.Repeat("x\r\n", 10_000): {StageSTARTTLS, errManyLines.Error()},
	},
	"xmpp": {
		"<a/>":                               {StageBanner, FaultForeign},
		xmppOpen:                             {StageSTARTTLS, FaultEOF},
		xmppOpen + offersLogin + proceed:     {StageSTARTTLS, FaultForeign},
		xmppOpen + offersTLS + "<failure/>":  {StageSTARTTLS, FaultForeign},
		xmppOpen + offersTLS + proceed:       {StageTLS, FaultEOF},
		xmppOpen + offersTLS + proceed + " ": {StageSTARTTLS, FaultAltered},
		xmppOpen + "<stream:features>" + strings.Repeat("<x/>", 10_000): {StageSTARTTLS, errElement.Error()},
		xmppOpen + strings.Repeat("<", 100):                             {StageSTARTTLS, FaultForeign},
	},
}
