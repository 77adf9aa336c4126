package main

/*
#cgo CFLAGS: -std=c11 -Wall -Wextra -Werror -I${SRCDIR}/../include -I${SRCDIR}/../loader
#include <stdlib.h>
#include "core.h"
*/
import "C"

import (
	"io/fs"
	"math"
	"runtime/cgo"
	"time"
	"unsafe"

	"libreceivewal/segment"
	"libreceivewal/stream"
)

// guard turns a panic of an exported function into ERR_INTERNAL. It must be deferred directly.
func guard(status *C.receivewal_status, text **C.char) {
	if r := recover(); r != nil {
		*status = C.RECEIVEWAL_ERR_INTERNAL
		if text != nil {
			*text = C.CString(panicError(r).Error())
		}
	}
}

// lookup finds the session behind an id. One that is not valid panics, as cgo.Handle does; guard answers for it.
func lookup(id C.uint64_t) *session {
	return cgo.Handle(id).Value().(*session)
}

//export receivewal_core_open
func receivewal_core_open(fd C.int, connection *C.receivewal_connection, eventFD, stopFD C.int, id *C.uint64_t,
	text **C.char) (status C.receivewal_status) {
	defer guard(&status, text)
	s, err := openSession(lentOf(fd, connection), int(eventFD), int(stopFD))
	if err != nil {
		*text = C.CString(err.Error())
		return statusOf(err)
	}
	*id = C.uint64_t(cgo.NewHandle(s))
	return C.RECEIVEWAL_OK
}

// lentOf maps a connection that the host lends; nil if there is none.
func lentOf(fd C.int, c *C.receivewal_connection) *lent {
	if c == nil {
		return nil
	}
	l := &lent{
		fd:      int(fd),
		relayed: c.io != nil,
		options: stream.SessionOptions{ServerVersion: int(c.server_version)},
	}
	if c.read_ahead_length > 0 {
		l.options.ReadAhead = unsafe.Slice((*byte)(c.read_ahead), int(c.read_ahead_length)) // NewSession copies
	}
	if c.streaming != 0 {
		l.options.Started = &stream.StartedStream{
			LSN:              segment.LSN(c.stream_lsn),
			Timeline:         segment.Timeline(c.stream_timeline),
			SystemIdentifier: uint64(c.system_identifier),
			SegmentSize:      segment.Size(c.segment_size),
		}
	}
	return l
}

//export receivewal_core_begin
func receivewal_core_begin(id C.uint64_t, request *C.rw_core_request, text **C.char) (status C.receivewal_status) {
	defer guard(&status, text)
	s := lookup(id)
	name, directory := C.GoString(request.name), C.GoString(request.directory)
	panicOnPurpose("export", directory)
	switch request.op {
	case C.RW_CORE_IDENTIFY:
		s.begin(identify)
	case C.RW_CORE_CREATE_SLOT:
		s.begin(createSlot(name, stream.CreateSlotOptions{
			ReserveWAL:  request.flags&C.RECEIVEWAL_SLOT_RESERVE_WAL != 0,
			Temporary:   request.flags&C.RECEIVEWAL_SLOT_TEMPORARY != 0,
			IfNotExists: request.flags&C.RECEIVEWAL_SLOT_IF_NOT_EXISTS != 0,
		}))
	case C.RW_CORE_DROP_SLOT:
		s.begin(dropSlot(name, request.flags&C.RECEIVEWAL_SLOT_WAIT != 0))
	case C.RW_CORE_READ_SLOT:
		s.begin(readSlot(name))
	case C.RW_CORE_FIND_START:
		s.begin(findStart(directory, segment.Size(request.segment_size)))
	case C.RW_CORE_CHECK:
		s.begin(check(directory, segment.CheckOptions{
			Size: segment.Size(request.segment_size), Pages: true, Decode: request.flags != 0,
			Suffixes: stringsOf(request.suffixes, request.suffix_count)}))
	case C.RW_CORE_RESTORE:
		s.begin(restore(directory, name, C.GoString(request.target)))
	case C.RW_CORE_RECEIVE:
		s.begin(receive(optionsOf(request.options, directory), uint32(request.wanted)))
	case C.RW_CORE_SETTLE:
		s.begin(settle(uint64(request.passed)))
	default:
		return C.RECEIVEWAL_ERR_INTERNAL
	}
	return C.RECEIVEWAL_OK
}

// optionsOf maps the options of a receive, all but its events.
func optionsOf(o *C.receivewal_options, directory string) stream.Options {
	options := stream.Options{
		Directory:        directory,
		StartLSN:         segment.LSN(o.start_lsn),
		StartTimeline:    segment.Timeline(o.start_timeline),
		EndLSN:           segment.LSN(o.end_lsn),
		StatusInterval:   time.Duration(o.status_interval) * time.Millisecond,
		ProgressInterval: time.Duration(o.progress_interval) * time.Millisecond,
		Synchronous:      o.synchronous != 0,
		NoSync:           o.no_sync != 0,
		ReceiveTimeout:   time.Duration(o.receive_timeout) * time.Millisecond,
		FlushInterval:    time.Duration(o.flush_interval) * time.Millisecond,
		Repair:           stream.RepairMode(o.repair), // the same numbers
		WaitOnDiskFull:   o.on_disk_full == C.RECEIVEWAL_DISK_FULL_WAIT,
		CheckPages:       o.check_pages != 0,
		FileMode:         fs.FileMode(o.file_mode),
	}
	if o.status_interval == 0 {
		options.StatusInterval = -1 // only when the server asks; to package stream 0 is the default
	}
	if o.slot != nil {
		options.Slot = C.GoString(o.slot)
	}
	options.Compression = segment.Compression(o.compression) // the same numbers
	options.CompressionLevel = int(o.compression_level)
	options.CompressionWorkers = int(o.compression_workers)
	options.Suffixes = stringsOf(o.suffixes, o.suffix_count)
	options.Mirrors = stringsOf(o.mirrors, o.mirror_count)
	options.MirrorRequired = o.mirror_required != 0
	options.Confirm = o.confirm != 0
	options.SlotWait = time.Duration(o.slot_wait) * time.Millisecond
	return options
}

func stringsOf(list **C.char, count C.size_t) []string {
	var texts []string
	for _, text := range unsafe.Slice(list, int(count)) {
		texts = append(texts, C.GoString(text))
	}
	return texts
}

//export receivewal_core_take
func receivewal_core_take(id C.uint64_t, list **C.rw_core_event) (status C.receivewal_status) {
	defer guard(&status, nil)
	tail := list
	for _, e := range lookup(id).take() {
		*tail = eventOf(e)
		tail = &(*tail).next
	}
	return C.RECEIVEWAL_OK
}

//export receivewal_core_cancel
func receivewal_core_cancel(id C.uint64_t) (status C.receivewal_status) {
	defer guard(&status, nil)
	lookup(id).stop()
	return C.RECEIVEWAL_OK
}

//export receivewal_core_reconnect
func receivewal_core_reconnect(id C.uint64_t, kind C.rw_core_answer, fd C.int, connection *C.receivewal_connection,
	text **C.char) (status C.receivewal_status) {
	defer guard(&status, text)
	var err error
	switch kind {
	case C.RW_CORE_CONNECTED:
		err = lookup(id).reconnected(lentOf(fd, connection))
	case C.RW_CORE_LATER:
		err = lookup(id).reconnected(nil)
	default:
		err = lookup(id).gaveUp()
	}
	if err != nil && text != nil {
		*text = C.CString(err.Error())
	}
	return statusOf(err)
}

//export receivewal_core_lost
func receivewal_core_lost(id C.uint64_t, reason *C.char) (status C.receivewal_status) {
	defer guard(&status, nil)
	lookup(id).lost(C.GoString(reason))
	return C.RECEIVEWAL_OK
}

//export receivewal_core_taken
func receivewal_core_taken(id C.uint64_t, bytes C.uint64_t) (status C.receivewal_status) {
	defer guard(&status, nil)
	lookup(id).taken(uint64(bytes))
	return C.RECEIVEWAL_OK
}

//export receivewal_core_confirm
func receivewal_core_confirm(id C.uint64_t, lsn C.receivewal_lsn, text **C.char) (status C.receivewal_status) {
	defer guard(&status, text)
	err := lookup(id).confirm(segment.LSN(lsn))
	if err != nil {
		*text = C.CString(err.Error())
	}
	return statusOf(err)
}

//export receivewal_core_progress
func receivewal_core_progress(id C.uint64_t, progress *C.receivewal_progress) (status C.receivewal_status) {
	defer guard(&status, nil)
	setProgress(progress, lookup(id).progress())
	return C.RECEIVEWAL_OK
}

//export receivewal_core_usable
func receivewal_core_usable(id C.uint64_t) (usable C.int) {
	var status C.receivewal_status
	defer guard(&status, nil)
	if lookup(id).usable() {
		return 1
	}
	return 0
}

//export receivewal_core_close
func receivewal_core_close(id C.uint64_t) (status C.receivewal_status) {
	defer guard(&status, nil)
	lookup(id).close()
	cgo.Handle(id).Delete()
	return C.RECEIVEWAL_OK
}

// receivewal_core_alive counts open sessions plus goroutines of this package, for tests that look for leaks.
//
//export receivewal_core_alive
func receivewal_core_alive() C.int64_t {
	return C.int64_t(alive.Load())
}

// eventOf copies an event into C memory, which the loader frees.
func eventOf(e event) *C.rw_core_event {
	c := (*C.rw_core_event)(C.calloc(1, C.sizeof_rw_core_event))
	u := unsafe.Pointer(&c.u)
	switch e := e.(type) {
	case logEvent:
		c.kind, c.level, c.text = C.RW_CORE_LOG, levelOf(e.level), C.CString(e.text)
	case segmentEvent:
		c.kind, c.text = C.RW_CORE_OPENED, C.CString(e.Name)
		if e.completed {
			c.kind = C.RW_CORE_COMPLETED
		}
		*(*C.receivewal_segment)(u) = C.receivewal_segment{
			size:         C.sizeof_receivewal_segment,
			lsn:          C.receivewal_lsn(e.LSN),
			end_lsn:      C.receivewal_lsn(e.EndLSN),
			timeline:     C.uint32_t(e.Timeline),
			segment_size: C.uint32_t(e.Size),
		}
	case stream.TimelineSwitch:
		c.kind = C.RW_CORE_TIMELINE
		*(*C.receivewal_timeline_switch)(u) = C.receivewal_timeline_switch{
			size:         C.sizeof_receivewal_timeline_switch,
			old_timeline: C.uint32_t(e.OldTimeline),
			new_timeline: C.uint32_t(e.NewTimeline),
			switch_lsn:   C.receivewal_lsn(e.SwitchLSN),
			start_lsn:    C.receivewal_lsn(e.StartLSN),
		}
	case stream.Progress:
		c.kind = C.RW_CORE_PROGRESS
		setProgress((*C.receivewal_progress)(u), e)
	case reconnectEvent:
		c.kind = C.RW_CORE_RECONNECT
		setError(c, e.Lost)
		*(*C.int)(u) = C.int(min(e.Attempt, math.MaxInt32))
	case stream.Hole:
		c.kind, c.text, c.file = C.RW_CORE_PROBLEM, C.CString(e.Text), C.CString(e.File)
		c.directory = C.CString(e.Directory)
		*(*C.receivewal_problem)(u) = C.receivewal_problem{
			size:     C.sizeof_receivewal_problem,
			kind:     kindOf(e.Kind),
			state:    C.receivewal_problem_state(e.State), // the same numbers
			timeline: C.uint32_t(e.Timeline),
			lsn:      C.receivewal_lsn(e.LSN),
			end_lsn:  C.receivewal_lsn(e.EndLSN),
		}
	case stream.DiskFull:
		c.kind = C.RW_CORE_DISK_FULL
		full := (*C.receivewal_disk_full)(u)
		*full = C.receivewal_disk_full{size: C.sizeof_receivewal_disk_full, waited: C.int64_t(e.Waited.Milliseconds())}
		if e.Full {
			full.full, c.text = 1, C.CString(e.Err.Error())
		}
	case stream.MirrorChange:
		c.kind, c.directory = C.RW_CORE_MIRROR, C.CString(e.Directory)
		*(*C.receivewal_mirror)(u) = C.receivewal_mirror{
			size:  C.sizeof_receivewal_mirror,
			state: C.receivewal_mirror_state(e.State), // the same numbers
		}
		if e.Err != nil {
			setError(c, e.Err)
		}
	case *dataEvent:
		c.kind, c.data = C.RW_CORE_DATA, e.bytes
		*(*C.receivewal_data)(u) = C.receivewal_data{
			size:       C.sizeof_receivewal_data,
			timeline:   C.uint32_t(e.Timeline),
			lsn:        C.receivewal_lsn(e.LSN),
			server_lsn: C.receivewal_lsn(e.ServerLSN),
			data:       e.bytes,
			length:     C.size_t(e.length),
		}
	case doneEvent:
		setDone(c, u, e)
	}
	return c
}

// setError fills in an error.
func setError(c *C.rw_core_event, err error) {
	c.status, c.text = statusOf(err), C.CString(err.Error())
	if server := serverError(err); server != nil {
		c.sqlstate, c.detail, c.hint = C.CString(server.SQLSTATE), C.CString(server.Detail), C.CString(server.Hint)
	}
}

// setDone fills the event that ends a request: its error, or what it found.
func setDone(c *C.rw_core_event, u unsafe.Pointer, e doneEvent) {
	c.kind = C.RW_CORE_DONE
	if e.err != nil {
		setError(c, e.err)
		return
	}
	switch r := e.result.(type) {
	case stream.System:
		*(*C.receivewal_system)(u) = C.receivewal_system{
			size:                C.sizeof_receivewal_system,
			system_identifier:   C.uint64_t(r.SystemIdentifier),
			timeline:            C.uint32_t(r.Timeline),
			segment_size:        C.uint32_t(r.SegmentSize),
			lsn:                 C.receivewal_lsn(r.LSN),
			data_directory_mode: C.uint32_t(r.DataDirectoryMode.Perm()),
		}
	case stream.Slot:
		*(*C.receivewal_slot)(u) = C.receivewal_slot{
			size:             C.sizeof_receivewal_slot,
			restart_lsn:      C.receivewal_lsn(r.RestartLSN),
			restart_timeline: C.uint32_t(r.RestartTimeline),
		}
	case segment.Report:
		setCheck((*C.receivewal_check)(u), r)
	case segment.Start:
		start := (*C.receivewal_start_point)(u)
		*start = C.receivewal_start_point{
			size:         C.sizeof_receivewal_start_point,
			lsn:          C.receivewal_lsn(r.LSN),
			timeline:     C.uint32_t(r.Timeline),
			segment_size: C.uint32_t(r.Size),
		}
		setName(&start.segment, r.File)
	}
}

func setCheck(c *C.receivewal_check, r segment.Report) {
	*c = C.receivewal_check{
		size:              C.sizeof_receivewal_check,
		segments:          C.uint64_t(r.Segments),
		system_identifier: C.uint64_t(r.SystemIdentifier),
		segment_size:      C.uint32_t(r.Size),
		timeline:          C.uint32_t(r.Next.Timeline),
		lsn:               C.receivewal_lsn(r.Next.LSN),
	}
	if r.SizeAssumed {
		c.segment_size_assumed = 1
	}
	if r.Segments > 0 && r.Oldest.Timeline != 0 {
		c.oldest_lsn = C.receivewal_lsn(r.Oldest.LSN(r.Size))
	}
	for _, p := range r.Problems {
		if p.Kind == segment.Leftover {
			c.leftovers++
		} else {
			c.problems++
		}
	}
}

func setProgress(c *C.receivewal_progress, p stream.Progress) {
	*c = C.receivewal_progress{
		size:          C.sizeof_receivewal_progress,
		state:         stateOf(p.State),
		timeline:      C.uint32_t(p.Timeline),
		start_lsn:     C.receivewal_lsn(p.StartLSN),
		written_lsn:   C.receivewal_lsn(p.WrittenLSN),
		flushed_lsn:   C.receivewal_lsn(p.FlushedLSN),
		server_lsn:    C.receivewal_lsn(p.ServerLSN),
		bytes:         C.uint64_t(p.Bytes),
		segments:      C.uint64_t(p.Segments),
		reconnects:    C.uint64_t(p.Reconnects),
		stored_bytes:  C.uint64_t(p.StoredBytes),
		server_time:   microseconds(p.ServerTime),
		received_time: microseconds(p.ReceivedTime),

		mirrors:        C.uint32_t(p.Mirrors),
		mirrors_failed: C.uint32_t(p.MirrorsFailed),
		reported_lsn:   C.receivewal_lsn(p.ReportedLSN),
		confirmed_lsn:  C.receivewal_lsn(p.ConfirmedLSN),
		lag:            C.uint64_t(p.Lag),
		lag_time:       milliseconds(p.LagTime),
		rate:           C.uint64_t(p.Rate),
		catch_up_time:  milliseconds(p.CatchUpTime),
		flush_time:     C.int64_t(max(p.FlushTime, 0)+time.Microsecond-1) / C.int64_t(time.Microsecond),
		flush_time_max: C.int64_t(max(p.FlushTimeMax, 0)+time.Microsecond-1) / C.int64_t(time.Microsecond),
	}
	setName(&c.segment, p.Segment)
}

// milliseconds of a duration: 0 only for 0, -1 for a negative one.
func milliseconds(d time.Duration) C.int64_t {
	if d < 0 {
		return -1
	}
	return C.int64_t((d + time.Millisecond - 1) / time.Millisecond)
}

func microseconds(t time.Time) C.int64_t {
	if t.IsZero() {
		return 0
	}
	return C.int64_t(t.UnixMicro())
}

// setName copies a file name as far as it fits; the array is all zero before, so it ends with a NUL.
func setName(c *[C.RECEIVEWAL_NAME_MAX]C.char, name string) {
	for i := 0; i < len(name) && i < len(c)-1; i++ {
		c[i] = C.char(name[i])
	}
}
