package stream

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"time"
)

// Reconnection is what Events.Reconnect is told.
type Reconnection struct {
	Attempt int   // counts from 1 since data was last received
	Lost    error // why the last connection was lost
}

// NewConnection is what Events.Reconnect gives: a connection as NewSession takes it. A nil Conn means: not now, ask
// again later. It belongs to the caller, like the one before it.
type NewConnection struct {
	Conn    net.Conn
	Options SessionOptions
}

// The time before a new connection is asked for: it doubles from the first to the last, and a part of it is left to
// chance, so that many receivers do not come back in the same moment.
const (
	firstBackoff = time.Second
	lastBackoff  = time.Minute
)

// backoff is how long to wait before an attempt, which counts from 1.
func backoff(attempt int) time.Duration {
	d := lastBackoff
	if attempt < 8 {
		d = min(firstBackoff<<(attempt-1), lastBackoff)
	}
	return d/2 + rand.N(d/2+1)
}

// slotRetry is how long to wait before a slot that is in use is asked for again.
const slotRetry = time.Second

// waitForSlot waits before a busy slot is tried again, if the caller wants that: nil then. since is when it was busy first.
func (r *receiver) waitForSlot(ctx context.Context, busy error, since time.Time) error {
	wait := slotRetry
	if r.o.SlotWait >= 0 {
		if wait = min(wait, r.o.SlotWait-time.Since(since)); wait <= 0 {
			return busy
		}
	}
	return r.pause(ctx, wait)
}

// persist receives, over one connection after the other if the caller has some.
func (r *receiver) persist(ctx context.Context) error {
	attempt := 0
	var busySince time.Time // since when the slot is in use; zero: it is not
	for {
		before := r.s.Progress().Bytes
		err := r.run(ctx)
		if r.waitsForDisk(err) && r.s.usable.Load() {
			r.diskFull(err)
			if err := r.pause(ctx, diskRetry); err != nil {
				return err
			}
			continue
		}
		if !errors.Is(err, ErrSlotBusy) || r.s.Progress().Bytes > before {
			busySince = time.Time{}
		}
		if errors.Is(err, ErrSlotBusy) && r.o.SlotWait != 0 && r.s.usable.Load() {
			if busySince.IsZero() {
				busySince = time.Now()
				r.o.Events.log(slog.LevelWarn, "waiting for the slot: "+err.Error())
			}
			if err := r.waitForSlot(ctx, err, busySince); err != nil {
				return err
			}
			continue
		}
		if errors.Is(err, ErrSlotBusy) && r.s.Progress().Reconnects > 0 && r.s.usable.Load() {
			// By the WAL sender of the lost connection, until the server notices that it is lost.
			r.o.Events.log(slog.LevelWarn, err.Error())
			attempt++
			if err := r.pause(ctx, backoff(attempt)); err != nil {
				return err
			}
			continue
		}
		if !errors.Is(err, ErrConnectionLost) || r.o.Events.Reconnect == nil {
			return err
		}
		if r.s.Progress().Bytes > before {
			attempt = 0
		}
		if attempt, err = r.reconnect(ctx, attempt, err); err != nil {
			return err
		}
	}
}

// pause waits, unless somebody wants to stop.
func (r *receiver) pause(ctx context.Context, d time.Duration) error {
	if err := r.stopped(ctx); err != nil {
		return err
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-r.mirrors.pokes():
			r.tellMirrors()
			if r.stop == nil {
				continue
			}
		case <-ctx.Done():
		case <-timer.C:
		}
		return r.stopped(ctx)
	}
}

// reconnect waits and asks for a new connection until there is one; nil then.
func (r *receiver) reconnect(ctx context.Context, attempt int, lost error) (int, error) {
	r.s.setProgress(func(p *Progress) { p.State = StateReconnecting })
	r.o.Events.log(slog.LevelWarn, lost.Error())
	for {
		attempt++
		wait := backoff(attempt)
		r.debugf("waiting %s for a new connection, attempt %d", wait.Round(time.Millisecond), attempt)
		if err := r.pause(ctx, wait); err != nil {
			return attempt, err
		}
		next, err := r.o.Events.Reconnect(ctx, Reconnection{attempt, lost})
		switch {
		case ctx.Err() != nil:
			return attempt, ErrStopped
		case err != nil:
			return attempt, fail(ErrConnectionLost, "no new connection (%v) after: %w", err, lost)
		case next.Conn == nil:
			continue
		}
		r.s.wire.release()
		r.s.lend(next.Conn, next.Options)
		r.s.setProgress(func(p *Progress) { p.State, p.Reconnects = StateStarting, p.Reconnects+1 })
		return attempt, nil
	}
}
