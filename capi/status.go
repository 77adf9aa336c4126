package main

// #include "core.h"
import "C"

import (
	"errors"
	"log/slog"
	"syscall"

	"libreceivewal/segment"
	"libreceivewal/stream"
)

// statuses maps errors to numbers; the first that fits decides. What fits none is a *stream.ServerError, or else
// the disk's.
var statuses = []struct {
	err    error
	status C.receivewal_status
}{
	{syscall.EMFILE, C.RECEIVEWAL_ERR_LIMIT}, // whatever it was that needed a descriptor
	{syscall.ENFILE, C.RECEIVEWAL_ERR_LIMIT},
	{syscall.ENOMEM, C.RECEIVEWAL_ERR_LIMIT},
	{stream.ErrStopped, C.RECEIVEWAL_ERR_STOPPED},
	{stream.ErrInvalid, C.RECEIVEWAL_ERR_INVALID},
	{stream.ErrBusy, C.RECEIVEWAL_ERR_BUSY},
	{stream.ErrBadFD, C.RECEIVEWAL_ERR_BAD_FD},
	{stream.ErrNotSocket, C.RECEIVEWAL_ERR_NOT_SOCKET},
	{stream.ErrNotConnected, C.RECEIVEWAL_ERR_NOT_CONNECTED},
	{stream.ErrEncrypted, C.RECEIVEWAL_ERR_ENCRYPTED},
	{stream.ErrConnectionLost, C.RECEIVEWAL_ERR_CONNECTION},
	{stream.ErrProtocol, C.RECEIVEWAL_ERR_PROTOCOL},
	{stream.ErrWALRemoved, C.RECEIVEWAL_ERR_WAL_REMOVED},
	{stream.ErrNoSlot, C.RECEIVEWAL_ERR_NO_SLOT},
	{stream.ErrSlotBusy, C.RECEIVEWAL_ERR_SLOT_BUSY},
	{stream.ErrSlotExists, C.RECEIVEWAL_ERR_SLOT_EXISTS},
	{stream.ErrUnsupported, C.RECEIVEWAL_ERR_UNSUPPORTED},
	{stream.ErrTimeline, C.RECEIVEWAL_ERR_TIMELINE},
	{segment.ErrInternal, C.RECEIVEWAL_ERR_INTERNAL},
	{segment.ErrNoFile, C.RECEIVEWAL_ERR_NO_FILE},
	{segment.ErrNoDirectory, C.RECEIVEWAL_ERR_NO_DIRECTORY},
	{segment.ErrPermission, C.RECEIVEWAL_ERR_PERMISSION},
	{segment.ErrLocked, C.RECEIVEWAL_ERR_LOCKED},
	{segment.ErrDiskFull, C.RECEIVEWAL_ERR_DISK_FULL},
	{segment.ErrForeign, C.RECEIVEWAL_ERR_FOREIGN},
	{segment.ErrGap, C.RECEIVEWAL_ERR_GAP},
	{errPanic, C.RECEIVEWAL_ERR_INTERNAL},
}

func statusOf(err error) C.receivewal_status {
	if err == nil {
		return C.RECEIVEWAL_OK
	}
	for _, s := range statuses {
		if errors.Is(err, s.err) {
			return s.status
		}
	}
	if serverError(err) != nil {
		return C.RECEIVEWAL_ERR_SERVER
	}
	return C.RECEIVEWAL_ERR_IO
}

// serverError is the server's error behind err, or nil.
func serverError(err error) *stream.ServerError {
	var server *stream.ServerError
	if errors.As(err, &server) {
		return server
	}
	return nil
}

func levelOf(level slog.Level) C.receivewal_log_level {
	switch {
	case level < slog.LevelInfo:
		return C.RECEIVEWAL_LOG_DEBUG
	case level < slog.LevelWarn:
		return C.RECEIVEWAL_LOG_INFO
	case level < slog.LevelError:
		return C.RECEIVEWAL_LOG_WARNING
	}
	return C.RECEIVEWAL_LOG_ERROR
}

func stateOf(state stream.State) C.receivewal_state {
	switch state {
	case stream.StateStarting:
		return C.RECEIVEWAL_STATE_STARTING
	case stream.StateStreaming:
		return C.RECEIVEWAL_STATE_STREAMING
	case stream.StateStopping:
		return C.RECEIVEWAL_STATE_STOPPING
	case stream.StateReconnecting:
		return C.RECEIVEWAL_STATE_RECONNECTING
	case stream.StateDiskFull:
		return C.RECEIVEWAL_STATE_DISK_FULL
	}
	return C.RECEIVEWAL_STATE_IDLE
}

func kindOf(kind segment.ProblemKind) C.receivewal_problem_kind {
	switch kind {
	case segment.Missing:
		return C.RECEIVEWAL_PROBLEM_MISSING
	case segment.WrongSize:
		return C.RECEIVEWAL_PROBLEM_WRONG_SIZE
	case segment.WrongPage:
		return C.RECEIVEWAL_PROBLEM_WRONG_PAGE
	case segment.Damaged:
		return C.RECEIVEWAL_PROBLEM_DAMAGED
	case segment.NoHistory:
		return C.RECEIVEWAL_PROBLEM_NO_HISTORY
	case segment.BadHistory:
		return C.RECEIVEWAL_PROBLEM_BAD_HISTORY
	case segment.ForeignFile:
		return C.RECEIVEWAL_PROBLEM_FOREIGN_FILE
	}
	return C.RECEIVEWAL_PROBLEM_LEFTOVER
}
