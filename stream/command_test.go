package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"libreceivewal/segment"
)

// call runs an operation of the Session beside the test; result waits for its end.
func (p *play) call(f func(ctx context.Context) error) {
	p.running.Go(func() { p.result <- f(p.ctx) })
}

// identifyWith answers the commands of IdentifySystem in this way, and returns its results.
func (p *play) identifyWith(answers ...[]pgproto3.BackendMessage) (sys System, err error) {
	p.call(func(ctx context.Context) error {
		sys, err = p.s.IdentifySystem(ctx)
		return err
	})
	commands := []string{"IDENTIFY_SYSTEM", "SHOW wal_segment_size", "SHOW data_directory_mode"}
	for i, a := range answers {
		p.command(commands[i], a...)
	}
	<-p.result
	return sys, err
}

func TestIdentifySystem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300000))
		for range 2 { // as often as one likes
			sys, err := p.identifyWith(answerOf("18446744073709551615", "4294967295", "FFFFFFFF/FFFFFFFF", nil, "a new column"),
				answerOf("1GB"), answerOf("0750"))
			if err != nil {
				t.Fatal(err)
			}
			want := System{1<<64 - 1, 1<<32 - 1, 1<<64 - 1, 1 << 30, 0o750}
			if sys != want {
				t.Errorf("%+v, expected %+v", sys, want)
			}
		}
		p.usable()
	})
}

// A server's answer that makes no sense is refused, but the answer was complete: the connection is still good.
func TestIdentifySystemRefusesOddAnswers(t *testing.T) {
	who := answerOf(testSystem, 1, "0/300000", nil)
	size := answerOf("16MB")
	type answers = [][]pgproto3.BackendMessage
	for name, test := range map[string]struct {
		answers answers
		want    error
	}{
		"no system":           {answers{answerOf(nil, 1, "0/300000", nil)}, ErrProtocol},
		"system of letters":   {answers{answerOf("x", 1, "0/300000", nil)}, ErrProtocol},
		"negative system":     {answers{answerOf("-1", 1, "0/300000", nil)}, ErrProtocol},
		"no timeline":         {answers{answerOf(testSystem, nil, "0/300000", nil)}, ErrProtocol},
		"timeline 0":          {answers{answerOf(testSystem, 0, "0/300000", nil)}, ErrProtocol},
		"timeline -1":         {answers{answerOf(testSystem, -1, "0/300000", nil)}, ErrProtocol},
		"timeline too high":   {answers{answerOf(testSystem, "4294967296", "0/300000", nil)}, ErrProtocol},
		"no LSN":              {answers{answerOf(testSystem, 1, nil, nil)}, ErrProtocol},
		"LSN of letters":      {answers{answerOf(testSystem, 1, "here", nil)}, ErrProtocol},
		"no row":              {answers{rows()}, ErrProtocol},
		"two rows":            {answers{rows(row(testSystem, 1, "0/300000"), row(testSystem, 1, "0/300000"))}, ErrProtocol},
		"two columns":         {answers{answerOf(testSystem, 1)}, ErrProtocol},
		"no columns":          {answers{answerOf()}, ErrProtocol},
		"a database":          {answers{answerOf(testSystem, 1, "0/300000", "postgres")}, ErrUnsupported},
		"no segment size":     {answers{who, answerOf(nil)}, ErrProtocol},
		"segment size 0":      {answers{who, answerOf("0")}, ErrProtocol},
		"segment size odd":    {answers{who, answerOf("3MB")}, ErrProtocol},
		"segment too small":   {answers{who, answerOf("512kB")}, ErrProtocol},
		"segment too large":   {answers{who, answerOf("2GB")}, ErrProtocol},
		"segment of no unit":  {answers{who, answerOf("16MX")}, ErrProtocol},
		"segment size absent": {answers{who, rows()}, ErrProtocol},
		"no mode":             {answers{who, size, answerOf(nil)}, ErrProtocol},
		"mode not octal":      {answers{who, size, answerOf("0800")}, ErrProtocol},
		"mode with more bits": {answers{who, size, answerOf("01700")}, ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlay(t, oneTimeline(0x300000))
				if _, err := p.identifyWith(test.answers...); !errors.Is(err, test.want) {
					t.Errorf("%v, expected %v", err, test.want)
				}
				p.usable()
			})
		})
	}
}

// data_directory_mode came with PostgreSQL 11; a server whose version is not known says that it doesn't know it.
func TestIdentifySystemWithoutDirectoryMode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300000))
		sys, err := p.identifyWith(answerOf(testSystem, 1, "0/300000"), answerOf("16MB"),
			refusal("ERROR", "42704", "unrecognized configuration parameter"))
		if err != nil || sys.DataDirectoryMode != 0o700 {
			t.Errorf("%+v, %v", sys, err)
		}
		p.usable()
	})
}

// What a server is too old for, it is not asked; what version it is may have to be learned from a ParameterStatus
// of the authentication that is still unread.
func TestOldServersAreAskedOnlyWhatTheyKnow(t *testing.T) {
	for _, test := range []struct {
		version  int
		text     string
		commands int // of those of IdentifySystem
	}{
		{version: 90624, commands: 1},
		{version: 100000, commands: 2},
		{version: 110000, commands: 3},
		{text: "9.4.26", commands: 1},
		{text: "10.23 (Debian 10.23-1)", commands: 2},
		{text: "11beta1", commands: 3},
		{text: "?", commands: 3},
		{version: 110000, text: "9.4.26", commands: 3}, // the caller knows better
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlay(t, oneTimeline(0x300000))
			p.s.serverVersion = test.version
			first := answerOf(testSystem, 1, "0/300000", nil)
			if test.text != "" {
				first = append([]pgproto3.BackendMessage{&pgproto3.ParameterStatus{Name: "server_version", Value: test.text}}, first...)
			}
			all := [][]pgproto3.BackendMessage{first, answerOf("16MB"), answerOf("0700")}
			sys, err := p.identifyWith(all[:test.commands]...)
			want := System{testSystem, 1, 0x300000, 16 << 20, 0o700}
			if err != nil || sys != want {
				t.Errorf("%+v: %+v, %v", test, sys, err)
			}
			p.quiet()
		})
	}
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300000))
		p.s.serverVersion = 90326
		if _, err := p.s.IdentifySystem(p.ctx); !errors.Is(err, ErrUnsupported) {
			t.Error(err)
		}
		p.quiet()
	})
}

func TestServerErrorsKeepTheirFields(t *testing.T) {
	for _, localized := range []string{"ERROR", "FEHLER"} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlay(t, oneTimeline(0x300000))
			_, err := p.identifyWith([]pgproto3.BackendMessage{&pgproto3.ErrorResponse{
				Severity: localized, SeverityUnlocalized: "ERROR", Code: "55000", Message: "not now", Detail: "because", Hint: "later",
			}, ready})
			var e *ServerError
			if !errors.As(err, &e) || *e != (ServerError{"ERROR", "55000", "not now", "because", "later"}) {
				t.Errorf("%+v", err)
			}
			if want := `could not send replication command "IDENTIFY_SYSTEM": ERROR:  not now`; err.Error() != want {
				t.Errorf("%q, expected %q", err, want)
			}
			p.usable()
		})
	}
}

// Servers before 9.6 say the severity only in their language.
func TestServerErrorOfAnOldServer(t *testing.T) {
	e := newServerError(&pgproto3.ErrorResponse{Severity: "FATAL", Code: "57P01", Message: "bye"})
	if !e.fatal() || e.Severity != "FATAL" {
		t.Errorf("%+v", e)
	}
}

// After a FATAL error the server closes the connection.
func TestFatalErrorLosesTheConnection(t *testing.T) {
	for _, severity := range []string{"FATAL", "PANIC"} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlay(t, oneTimeline(0x300000))
			_, err := p.identifyWith([]pgproto3.BackendMessage{errorOf(severity, "57P01", "terminating connection")})
			var e *ServerError
			if !errors.Is(err, ErrConnectionLost) || !errors.As(err, &e) || e.SQLSTATE != "57P01" {
				t.Error(err)
			}
			p.unusable()
		})
	}
}

// authentication is what a server sends after the password was right.
var authentication = []pgproto3.BackendMessage{
	&pgproto3.AuthenticationOk{},
	&pgproto3.ParameterStatus{Name: "server_version", Value: "15.18"},
	&pgproto3.ParameterStatus{Name: "TimeZone", Value: "UTC"},
	&pgproto3.BackendKeyData{ProcessID: 1, SecretKey: []byte{1, 2, 3, 4}},
	&pgproto3.ReadyForQuery{TxStatus: 'I'},
}

// The owner of the connection may have left the last messages of the authentication unread.
func TestUnreadMessagesOfTheAuthentication(t *testing.T) {
	for i := range authentication {
		synctest.Test(t, func(t *testing.T) {
			p := newPlay(t, oneTimeline(0x300000))
			go p.conn.Write(encode(authentication[i:]...))
			p.usable()
			if want := 150018; i < 2 && p.s.serverVersion != want {
				t.Errorf("server version %d, expected %d", p.s.serverVersion, want)
			}
		})
	}
}

// Later on, they are not what the server should send.
func TestAuthenticationInAnAnswer(t *testing.T) {
	for _, m := range []pgproto3.BackendMessage{authentication[0], authentication[3]} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlay(t, oneTimeline(0x300000))
			_, err := p.identifyWith([]pgproto3.BackendMessage{&pgproto3.RowDescription{}, m})
			if !errors.Is(err, ErrProtocol) {
				t.Error(err)
			}
			p.unusable()
		})
	}
}

// anytime is what a server may send at any moment.
var anytime = []pgproto3.BackendMessage{
	&pgproto3.NoticeResponse{Severity: "NOTICE", SeverityUnlocalized: "NOTICE", Code: "00000", Message: "two\nlines"},
	&pgproto3.ParameterStatus{Name: "TimeZone", Value: "CET"},
	&pgproto3.NotificationResponse{PID: 1, Channel: "c", Payload: "p"},
}

// between puts messages before each of some others, and behind them.
func between(what, messages []pgproto3.BackendMessage) []pgproto3.BackendMessage {
	var all []pgproto3.BackendMessage
	for _, m := range messages {
		all = append(append(all, what...), m)
	}
	return all
}

func TestNoticesInAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300000))
		_, err := p.identifyWith(between(anytime, answerOf(testSystem, 1, "0/300000", nil)),
			between(anytime, answerOf("16MB")), between(anytime, answerOf("0700")))
		if err != nil {
			t.Error(err)
		}
		p.usable()
	})
}

// What follows the answer to a command is not read: it belongs to the connection's owner.
func TestBytesAfterTheAnswerAreLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300000))
		later := encode(anytime...)
		p.call(func(ctx context.Context) error { return p.s.DropSlot(ctx, "s", false) })
		p.expect(`DROP_REPLICATION_SLOT "s"`)
		go p.conn.Write(append(encode(&pgproto3.CommandComplete{CommandTag: []byte("DROP_REPLICATION_SLOT")}, ready), later...))
		if err := <-p.result; err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(later))
		if _, err := io.ReadFull(p.client, got); err != nil || string(got) != string(later) {
			t.Errorf("%q, %v", got, err)
		}
	})
}

func TestBrokenAnswers(t *testing.T) {
	for name, test := range map[string]struct {
		bytes string
		want  error
	}{
		"unknown type":           {"?\x00\x00\x00\x04", ErrProtocol},
		"CopyData":               {"d\x00\x00\x00\x04", ErrProtocol},
		"CopyBothResponse":       {string(encode(&pgproto3.CopyBothResponse{})), ErrProtocol},
		"error, then COPY":       {string(encode(errorOf("ERROR", "1", "x"), &pgproto3.CopyBothResponse{})), ErrProtocol},
		"length 3":               {"Z\x00\x00\x00\x03", ErrProtocol},
		"length 0":               {"Z\x00\x00\x00\x00", ErrProtocol},
		"negative length":        {"Z\xff\xff\xff\xff", ErrProtocol},
		"smallest length":        {"Z\x80\x00\x00\x00", ErrProtocol},
		"17 MiB":                 {"D\x01\x10\x00\x00", ErrProtocol},
		"2 GiB":                  {"N\x7f\xff\xff\xff", ErrProtocol},
		"row without a count":    {"D\x00\x00\x00\x04", ErrProtocol},
		"row of too many values": {"D\x00\x00\x00\x06\xff\xff", ErrProtocol},
		"value too long":         {"D\x00\x00\x00\x0b\x00\x01\x7f\xff\xff\xffx", ErrProtocol},
		"value of length -2":     {"D\x00\x00\x00\x0b\x00\x01\xff\xff\xff\xfex", ErrProtocol},
		"error without end":      {"E\x00\x00\x00\x08SERR", ErrProtocol},
		"notice without end":     {"N\x00\x00\x00\x08SNOT", ErrProtocol},
		"parameter without end":  {"S\x00\x00\x00\x08name", ErrProtocol},
		"parameter of one part":  {"S\x00\x00\x00\x09name\x00", ErrProtocol},
		"header cut off":         {"Z\x00\x00\x00", ErrConnectionLost},
		"body cut off":           {"Z\x00\x00\x00\x05", ErrConnectionLost},
		"TLS handshake":          {"\x16\x03\x01\x00\x02\x02\x28", ErrEncrypted},
		"TLS alert":              {"\x15\x03\x03\x00\x02\x02\x46", ErrEncrypted},
		"TLS data":               {"\x17\x03\x03\x00\x02\x02\x46", ErrEncrypted},
		"HTTP":                   {"HTTP/1.1 400 Bad Request\r\n\r\n", ErrProtocol},
		"SSH":                    {"SSH-2.0-OpenSSH_9.2p1\r\n", ErrProtocol},
		"nothing":                {"", ErrConnectionLost},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlay(t, oneTimeline(0x300000))
				p.call(func(ctx context.Context) error { return p.s.DropSlot(ctx, "s", false) })
				p.expect(`DROP_REPLICATION_SLOT "s"`)
				go func() { // the client need not read all of it
					p.conn.Write([]byte(test.bytes))
					p.conn.Close()
				}()
				if err := <-p.result; !errors.Is(err, test.want) {
					t.Errorf("%v, expected %v", err, test.want)
				}
				if n := cap(p.s.wire.buf); n > maxMessage {
					t.Errorf("a buffer of %d bytes", n)
				}
				p.unusable()
			})
		})
	}
}

// However much a server answers, memory is bounded.
func TestAnswersAreBounded(t *testing.T) {
	big := row(strings.Repeat("x", 9<<20))
	for name, answer := range map[string][]pgproto3.BackendMessage{
		"many rows": rows(func() (r []*pgproto3.DataRow) {
			for range maxRows + 1 {
				r = append(r, row(1))
			}
			return r
		}()...),
		"large rows": rows(big, big),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlay(t, oneTimeline(0x300000))
				p.call(func(ctx context.Context) error { _, err := p.s.IdentifySystem(ctx); return err })
				p.expect("IDENTIFY_SYSTEM")
				go p.conn.Write(encode(answer...))
				if err := <-p.result; !errors.Is(err, ErrProtocol) {
					t.Error(err)
				}
				p.unusable()
			})
		})
	}
}

// ------------------------------------------------------------------------------------------------------- slots

func TestCreateSlot(t *testing.T) {
	for _, test := range []struct {
		o   CreateSlotOptions
		sql string
	}{
		{CreateSlotOptions{}, `CREATE_REPLICATION_SLOT "a_9" PHYSICAL`},
		{CreateSlotOptions{ReserveWAL: true}, `CREATE_REPLICATION_SLOT "a_9" PHYSICAL RESERVE_WAL`},
		{CreateSlotOptions{Temporary: true}, `CREATE_REPLICATION_SLOT "a_9" TEMPORARY PHYSICAL`},
		{CreateSlotOptions{Temporary: true, ReserveWAL: true}, `CREATE_REPLICATION_SLOT "a_9" TEMPORARY PHYSICAL RESERVE_WAL`},
		{CreateSlotOptions{IfNotExists: true}, `CREATE_REPLICATION_SLOT "a_9" PHYSICAL`},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlay(t, oneTimeline(0x300000))
			var slot Slot
			p.call(func(ctx context.Context) (err error) { slot, err = p.s.CreateSlot(ctx, "a_9", test.o); return err })
			p.command(test.sql, answerOf("a_9", "1/23", nil, nil)...)
			if err := <-p.result; err != nil || slot != (Slot{RestartLSN: 0x1_00000023}) {
				t.Errorf("%+v, %v", slot, err)
			}
			p.usable()
		})
	}
}

// slotErrors is which error of the server means what, for a command that names a slot.
var slotErrors = map[string]error{"42704": ErrNoSlot, "42710": ErrSlotExists, "55006": ErrSlotBusy}

func TestSlotErrors(t *testing.T) {
	for state, want := range slotErrors {
		for _, sql := range []string{`CREATE_REPLICATION_SLOT "s" PHYSICAL`, `DROP_REPLICATION_SLOT "s"`, `READ_REPLICATION_SLOT "s"`} {
			synctest.Test(t, func(t *testing.T) {
				p := newPlay(t, oneTimeline(0x300000))
				p.call(func(ctx context.Context) (err error) {
					switch sql[0] {
					case 'C':
						_, err = p.s.CreateSlot(ctx, "s", CreateSlotOptions{})
					case 'D':
						err = p.s.DropSlot(ctx, "s", false)
					case 'R':
						_, err = p.s.ReadSlot(ctx, "s")
					}
					return err
				})
				p.command(sql, refusal("ERROR", state, "no")...)
				err := <-p.result
				var e *ServerError
				if !errors.Is(err, want) || !errors.As(err, &e) || e.SQLSTATE != state {
					t.Errorf("%s: %v, expected %v", state, err, want)
				}
				p.usable()
			})
		}
	}
}

// IfNotExists forgives a slot that exists, and nothing else.
func TestCreateSlotIfNotExists(t *testing.T) {
	for state, want := range map[string]error{"42710": nil, "42704": ErrNoSlot, "55006": ErrSlotBusy} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlay(t, oneTimeline(0x300000))
			p.call(func(ctx context.Context) error {
				_, err := p.s.CreateSlot(ctx, "s", CreateSlotOptions{IfNotExists: true})
				return err
			})
			p.command(`CREATE_REPLICATION_SLOT "s" PHYSICAL`, refusal("ERROR", state, "no")...)
			if err := <-p.result; !errors.Is(err, want) {
				t.Errorf("%s: %v, expected %v", state, err, want)
			}
			p.usable()
		})
	}
}

func TestDropSlot(t *testing.T) {
	for wait, sql := range map[bool]string{false: `DROP_REPLICATION_SLOT "s"`, true: `DROP_REPLICATION_SLOT "s" WAIT`} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlay(t, oneTimeline(0x300000))
			p.call(func(ctx context.Context) error { return p.s.DropSlot(ctx, "s", wait) })
			p.command(sql, &pgproto3.CommandComplete{CommandTag: []byte("DROP_REPLICATION_SLOT")}, ready)
			if err := <-p.result; err != nil {
				t.Error(err)
			}
			p.usable()
		})
	}
}

func TestReadSlot(t *testing.T) {
	for name, test := range map[string]struct {
		answer []pgproto3.BackendMessage
		slot   Slot
		want   error
	}{
		"with a position":       {answerOf("physical", "16/B374D848", 3), Slot{0x16_B374D848, 3}, nil},
		"never used":            {answerOf("physical", nil, nil), Slot{}, nil},
		"does not exist":        {answerOf(nil, nil, nil), Slot{}, ErrNoSlot}, // and so it is said
		"logical":               {answerOf("logical", "0/300000", 1), Slot{}, ErrNoSlot},
		"position of letters":   {answerOf("physical", "x", 1), Slot{}, ErrProtocol},
		"timeline of letters":   {answerOf("physical", "0/300000", "x"), Slot{}, ErrProtocol},
		"too few columns":       {answerOf("physical", "0/300000"), Slot{}, ErrProtocol},
		"no row":                {rows(), Slot{}, ErrProtocol},
		"a logical one":         {refusal("ERROR", "0A000", "cannot use READ_REPLICATION_SLOT with a logical replication slot"), Slot{}, ErrNoSlot},
		"command of SQL":        {refusal("ERROR", "XX000", "cannot execute SQL commands in WAL sender for physical replication"), Slot{}, ErrUnsupported},
		"command not known":     {refusal("ERROR", "42601", "syntax error"), Slot{}, ErrUnsupported},
		"command not permitted": {refusal("ERROR", "42501", "permission denied"), Slot{}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlay(t, oneTimeline(0x300000))
				var slot Slot
				p.call(func(ctx context.Context) (err error) { slot, err = p.s.ReadSlot(ctx, "s"); return err })
				p.command(`READ_REPLICATION_SLOT "s"`, test.answer...)
				err := <-p.result
				var e *ServerError
				if test.want == nil && errors.As(err, &e) {
					if e.SQLSTATE != "42501" || errors.Is(err, ErrNoSlot) || errors.Is(err, ErrUnsupported) {
						t.Error(err)
					}
				} else if !errors.Is(err, test.want) || strings.HasSuffix(fmt.Sprint(err), name) != (name == "does not exist") || err == nil && slot != test.slot {
					t.Errorf("%+v, %v, expected %+v, %v", slot, err, test.slot, test.want)
				}
				p.usable()
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300000))
		p.s.serverVersion = 140000
		if _, err := p.s.ReadSlot(p.ctx, "s"); !errors.Is(err, ErrUnsupported) {
			t.Error(err)
		}
		p.quiet()
	})
}

// A name that PostgreSQL refuses, or that is more than a name, never gets on the wire.
func TestSlotNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300000))
		for _, name := range []string{
			"", strings.Repeat("a", 64), "A", "a-b", "a b", "a.b", `a"b`, `"; DROP_REPLICATION_SLOT "b`, "a;b", "a\x00b", "a\nb", "ä", `a\`, "a'",
			" a", "a ", `" PHYSICAL`, "a\xff",
		} {
			_, create := p.s.CreateSlot(p.ctx, name, CreateSlotOptions{})
			_, read := p.s.ReadSlot(p.ctx, name)
			receive := error(ErrInvalid)
			if name != "" { // none
				receive = p.s.Receive(p.ctx, Options{Directory: "wal", Slot: name})
			}
			for _, err := range []error{create, read, p.s.DropSlot(p.ctx, name, false), receive} {
				if !errors.Is(err, ErrInvalid) {
					t.Errorf("%q: %v", name, err)
				}
			}
		}
		p.quiet()
		long := strings.Repeat("z", 63)
		p.call(func(ctx context.Context) error { return p.s.DropSlot(ctx, long, false) })
		p.command(fmt.Sprintf("DROP_REPLICATION_SLOT %q", long), &pgproto3.CommandComplete{}, ready)
		if err := <-p.result; err != nil {
			t.Error(err)
		}
	})
}

// ------------------------------------------------------------------------------------------------- one at a time

func TestOneOperationAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300000))
		p.call(func(ctx context.Context) error { return p.s.DropSlot(ctx, "s", true) })
		p.expect(`DROP_REPLICATION_SLOT "s" WAIT`)
		if p.s.Usable() {
			t.Error("usable in the middle of a command")
		}
		if err := p.s.DropSlot(p.ctx, "s", true); !errors.Is(err, ErrBusy) {
			t.Error(err)
		}
		if err := p.s.Receive(p.ctx, Options{Directory: "wal"}); !errors.Is(err, ErrBusy) {
			t.Error(err)
		}
		p.quiet()
		p.send(&pgproto3.CommandComplete{}, ready)
		if err := <-p.result; err != nil {
			t.Error(err)
		}
		p.usable()
	})
}

// A command that was stopped is waited for a moment, so that the connection can still be used.
func TestStopInACommand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300000))
		p.call(func(ctx context.Context) error { return p.s.DropSlot(ctx, "s", true) })
		p.expect(`DROP_REPLICATION_SLOT "s" WAIT`)
		p.stop()
		time.Sleep(stopGrace - time.Millisecond)
		p.send(&pgproto3.CommandComplete{}, ready)
		if err := <-p.result; err != nil {
			t.Error(err)
		}
		if err := p.s.DropSlot(p.ctx, "s", true); !errors.Is(err, ErrStopped) {
			t.Error(err)
		}
		p.quiet()
		p.usable()
	})
}

// A server that doesn't answer, or never comes to an end, does not hold a stop up.
func TestStopWithoutAnAnswer(t *testing.T) {
	for name, server := range map[string]func(p *play){
		"silence": func(p *play) {},
		"half a message": func(p *play) {
			p.conn.Write([]byte("Z\x00\x00\x00"))
		},
		"byte by byte": func(p *play) {
			for _, b := range encode(&pgproto3.NoticeResponse{Message: strings.Repeat("x", 100)}) {
				if _, err := p.conn.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		},
		"notices": func(p *play) {
			for {
				if _, err := p.conn.Write(encode(anytime...)); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		},
		"a flood of notices": func(p *play) {
			for {
				if _, err := p.conn.Write(encode(anytime...)); err != nil {
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlay(t, oneTimeline(0x300000))
				p.call(func(ctx context.Context) error { return p.s.DropSlot(ctx, "s", true) })
				p.expect(`DROP_REPLICATION_SLOT "s" WAIT`)
				stopped := make(chan time.Time, 1)
				time.AfterFunc(100*time.Millisecond, func() {
					stopped <- time.Now()
					p.stop()
				})
				ended := make(chan struct{})
				go func() { server(p); close(ended) }()
				select {
				case err := <-p.result:
					if took := time.Since(<-stopped); !errors.Is(err, ErrStopped) || took > stopGrace {
						t.Errorf("%v after %s", err, took)
					}
				case <-time.After(time.Minute):
					t.Error("the stop is without effect")
				}
				p.close()
				<-ended
				p.unusable()
			})
		})
	}
}

// A connection that its owner closes is lost, whether that shows while reading, writing or setting a deadline.
func TestConnectionClosedByItsOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300000))
		p.call(func(ctx context.Context) error { return p.s.DropSlot(ctx, "s", true) })
		p.expect(`DROP_REPLICATION_SLOT "s" WAIT`)
		p.client.Close()
		if err := <-p.result; !errors.Is(err, ErrConnectionLost) {
			t.Error(err)
		}
		if _, err := p.s.wire.read(1, time.Now().Add(time.Hour)); !errors.Is(err, ErrConnectionLost) {
			t.Error(err)
		}
		if err := p.s.wire.write([]byte("x")); !errors.Is(err, ErrConnectionLost) {
			t.Error(err)
		}
		p.unusable()
	})
}

// A connection that comes with a deadline from its earlier life is as good as any.
func TestConnectionWithAnOldDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300000))
		p.client.SetDeadline(time.Now().Add(-time.Second))
		p.usable()
	})
}

// Every operation gives the connection back without a deadline, and with nobody left who could set one.
func TestNoDeadlineIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300000))
		p.call(func(ctx context.Context) error { return p.s.DropSlot(ctx, "s", true) })
		p.expect(`DROP_REPLICATION_SLOT "s" WAIT`)
		p.stop()
		p.wait()
		p.send(&pgproto3.CommandComplete{}, ready)
		<-p.result
		p.wait()
		if !p.client.clean() {
			t.Error("there is a deadline")
		}
	})
}

func TestParseVersion(t *testing.T) {
	for text, want := range map[string]int{
		"15.18": 150018, "15.18 (Debian 15.18-0+deb12u1)": 150018, "9.6.3": 90603, "9.4.26": 90426, "10.0": 100000,
		"19devel": 190000, "18beta1": 180000, "17rc1": 170000, "16": 160000, "9.6": 90600, "": 0, "x": 0, "PostgreSQL 9": 0,
		"99999999999999999999": 0, "1.2.3.4.5": 10203,
	} {
		if got := ParseVersion(text); got != want {
			t.Errorf("%q: %d, expected %d", text, got, want)
		}
	}
}

func TestParseDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"1min": time.Minute, "60s": time.Minute, "1500ms": 1500 * time.Millisecond, "0": 0, "7": 7 * time.Millisecond, "2h": 2 * time.Hour,
		"24d": 24 * 24 * time.Hour, "": 0, "min": 0, "1y": 0, "-1": 0, "1 min": 0, "2147483648": 0,
		"2147483647d": 0, "2147483647ms": 2147483647 * time.Millisecond,
	} {
		if got := parseDuration(text); got != want {
			t.Errorf("%q: %s, expected %s", text, got, want)
		}
	}
}

var _ = segment.LSN(0)
