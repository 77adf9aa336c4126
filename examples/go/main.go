// Command receive takes a connection of pgx, receives WAL over it into a directory, and goes on using the connection.
//
//	go build -o receive ./examples/go
//	./receive -slot backup "host=db user=backup sslmode=verify-full" /backup/wal
//
// Ctrl-C, or a SIGTERM, stops it cleanly: what was received is durable, and the server knows.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"libreceivewal/segment"
	"libreceivewal/stream"
)

func main() {
	options := stream.Options{}
	flag.StringVar(&options.Slot, "slot", "", "physical replication `slot`; it is created if it does not exist")
	flag.BoolVar(&options.Synchronous, "synchronous", false, "flush WAL as soon as it arrives, and tell the server at once")
	flag.Func("end", "stop after this `LSN`", func(text string) (err error) {
		options.EndLSN, err = segment.ParseLSN(text)
		return err
	})
	flag.Func("mode", "permission bits of the files, for example 0640; as the server's own unless told", func(text string) error {
		mode, err := strconv.ParseUint(text, 8, 32)
		options.FileMode = fs.FileMode(mode) & fs.ModePerm
		return err
	})
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "usage: %s [OPTION]... CONNECTION-STRING DIRECTORY\n", os.Args[0])
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() != 2 {
		flag.Usage()
		os.Exit(2)
	}
	options.Directory = flag.Arg(1)

	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := run(ctx, log, flag.Arg(0), options); err != nil {
		log.Error(err.Error())
		if errors.Is(err, stream.ErrWALRemoved) {
			log.Error("what follows the directory's last segment is lost: take a new base backup, and a new directory")
		}
		os.Exit(1)
	}
}

// run connects, receives until ctx ends or options.EndLSN is reached, and uses the connection once more.
func run(ctx context.Context, log *slog.Logger, dsn string, options stream.Options) error {
	config, err := pgconn.ParseConfig(dsn)
	if err != nil {
		return err
	}
	config.RuntimeParams["replication"] = "true" // physical: of no database
	conn, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	lent, err := lend(ctx, conn)
	if err != nil {
		return errors.Join(err, conn.Close(ctx))
	}
	session := stream.NewSession(lent.Conn, stream.SessionOptions{
		ServerVersion: stream.ParseVersion(lent.ParameterStatuses["server_version"]),
	})
	options.Events.Log = func(level slog.Level, text string) { log.Log(ctx, level, text) }
	options.Events.SegmentCompleted = func(s stream.Segment) error {
		log.Info("segment completed", "name", s.Name, "end", s.EndLSN)
		return nil // an error would stop the receive
	}
	err = receive(ctx, session, options)
	if errors.Is(err, stream.ErrStopped) {
		err = nil // by the signal, cleanly
	}
	flushed := session.Progress().FlushedLSN

	// Whatever has ended the receive: where the connection is idle it is as good as new.
	if !session.Usable() {
		return errors.Join(err, lent.Conn.Close())
	}
	conn, constructErr := pgconn.Construct(lent)
	if constructErr != nil {
		return errors.Join(err, constructErr, lent.Conn.Close())
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second) // the signal has ended the other
	defer cancel()
	results, queryErr := conn.Exec(ctx, "IDENTIFY_SYSTEM").ReadAll()
	if queryErr == nil {
		log.Info("the connection is back", "flushed", flushed, "server", string(results[0].Rows[0][2]))
	}
	return errors.Join(err, queryErr, conn.Close(ctx))
}

// lend takes the connection out of pgx. What pgx has read ahead would be lost with it; SyncConn sees to it that there is
// nothing, if need be by asking the server something and reading all of the answer. A walsender for physical replication
// refuses that question, which is an answer too.
func lend(ctx context.Context, conn *pgconn.PgConn) (*pgconn.HijackedConn, error) {
	for {
		err := conn.SyncConn(ctx)
		if err == nil {
			return conn.Hijack()
		}
		var refused *pgconn.PgError
		if !errors.As(err, &refused) || conn.IsClosed() {
			return nil, err
		}
	}
}

// receive creates the slot if that is missing.
func receive(ctx context.Context, session *stream.Session, options stream.Options) error {
	err := session.Receive(ctx, options)
	if options.Slot == "" || !errors.Is(err, stream.ErrNoSlot) {
		return err
	}
	if _, err := session.CreateSlot(ctx, options.Slot, stream.CreateSlotOptions{ReserveWAL: true}); err != nil {
		return err
	}
	return session.Receive(ctx, options)
}
